"""Every error a user can cause, each with the exit code the command line ends with.

A message reads `<where>: <what must hold>; got <values>` and, where it helps, the fix. Anything
that reaches the user and is not an `FtrtError` is a bug in ftrt (exit code 1).
"""

__all__ = [
    "DISK_ERRORS",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "FtrtError",
    "InterruptedRun",
    "PluginError",
    "UnsupportedError",
    "UsageError",
    "explain_os_error",
    "one_line",
    "suggest",
]

import difflib
import errno
from collections.abc import Iterable

# What a full, read-only or forbidden disk says. A missing file is not among them: the code that
# opens a user's file says which one it wanted, so a bare ENOENT is a bug.
DISK_ERRORS = {
    errno.ENOSPC: "the disk is full; free some space, or choose another folder",
    errno.EDQUOT: "the disk quota is used up; free some space, or choose another folder",
    errno.EACCES: "permission is denied; choose a folder you may write, or change its permissions",
    errno.EPERM: "permission is denied; choose a folder you may write, or change its permissions",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.EIO: "the disk reports an input/output error; check the disk",
    errno.EFBIG: "the file is larger than the file system allows; choose another folder",
    errno.EISDIR: "a folder stands where a file is wanted; choose another path",
    errno.ENOTDIR: "a file stands where a folder is wanted; choose another path",
    errno.ENAMETOOLONG: "the path is too long; choose a shorter one",
}


class FtrtError(Exception):
    """Base of all errors that are the input's fault or the machine's, not ftrt's."""

    exit_code = 1


class UsageError(FtrtError):
    """A command or a public function was called in a way that cannot work."""

    exit_code = 2


class ConfigError(FtrtError):
    """The recipe is wrong: unknown key, wrong type, parts that do not go together."""

    exit_code = 3


class UnsupportedError(ConfigError):
    """The parts are each valid and do not work together (say, full fine-tuning on an int8 base)."""


class DataError(FtrtError):
    """A data file is missing, unreadable or holds rows that do not fit the task."""

    exit_code = 4


class CheckpointError(FtrtError):
    """A model, adapter or run folder cannot be read or written, or is for another base model."""

    exit_code = 5


class PluginError(FtrtError):
    """A plugin cannot be found, imported or used; the message names distribution and file."""

    exit_code = 6


class InterruptedRun(FtrtError):
    """A signal stopped training after its state was saved; the message says how to go on."""

    exit_code = 130


def suggest(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the known name nearest to `name`, or what is known."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    if not names:
        return "; none is known"
    return f"; known: {', '.join(names[:20])}" + (", ..." if len(names) > 20 else "")


def one_line(error: BaseException) -> str:
    """`Type: text` of an exception that is not ours, for the end of a message that is."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def explain_os_error(error: OSError) -> str:
    """What to do about an operating system error, as the end of a message."""
    return DISK_ERRORS.get(error.errno or 0, error.strerror or str(error))
