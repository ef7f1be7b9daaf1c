"""Folders that are made once and shared: complete, or not there at all."""

__all__ = ["build_once"]

import errno
import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from ftrt.errors import DataError

log = logging.getLogger(__name__)

MOVE = "free some space, or set FTRT_CACHE_DIR to a folder with room"


def build_once(
    folder: Path, fill: Callable[[Path], None], *, is_complete: Callable[[Path], bool]
) -> None:
    """Make `folder` unless it is complete; several processes at once make it once.

    The content is made in a hidden sibling and renamed into place, so what a killed process leaves
    behind is never taken for the folder; the next call sweeps it away.

    Args:
        folder: where the content shall stand.
        fill: writes the content into the empty folder it is given.
        is_complete: a cheap check, made before and after waiting for the lock.

    Raises:
        DataError: the cache cannot be written.
    """
    if is_complete(folder):
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if is_complete(folder):
                return
            _build(folder, fill)
    except OSError as error:
        raise DataError(_unwritable(folder, error)) from error


def _build(folder: Path, fill: Callable[[Path], None]) -> None:
    prefix = f".{folder.name}.tmp-"
    for left_over in folder.parent.glob(f"{prefix}*"):
        log.info("%s: removed what an interrupted fetch left behind", left_over)
        shutil.rmtree(left_over, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    try:
        content = staging / "content"
        content.mkdir()
        fill(content)
        if folder.exists():
            folder.rename(staging / "replaced")
        content.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _unwritable(folder: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{folder.parent}: the disk must have room for {folder.name}; it is full; {MOVE}"
    return (
        f"{folder.parent}: the cache must be a folder that can be written; got"
        f" {error.strerror or error}; mend it, or set FTRT_CACHE_DIR to another folder"
    )
