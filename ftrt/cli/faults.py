"""From an exception to what the user sees: one message and an exit code."""

__all__ = ["Fault", "explain", "leave_quietly", "report"]

import errno
import os
import sys
import traceback
from dataclasses import dataclass

import typer

from ftrt.cli.output import console, print_json
from ftrt.errors import DISK_ERRORS, CheckpointError, FtrtError, PluginError, UsageError, one_line
from ftrt.manifest import discover
from ftrt.plugin_faults import runtime_fault

# BadParameter's parent is the UsageError of click, or of the copy of click that newer typers carry.
TyperUsageError: type[Exception] = typer.BadParameter.__bases__[0]

BUG = (
    "this is a bug in ftrt. Run the command again with --debug and report the traceback together"
    " with what `ftrt doctor --json` prints"
)


@dataclass(frozen=True)
class Fault:
    """What is told about an exception."""

    kind: str
    message: str
    exit_code: int


def explain(error: BaseException) -> Fault:
    """The message and exit code of an exception that reached the command line."""
    if isinstance(error, FtrtError):
        return Fault(type(error).__name__, str(error), error.exit_code)
    if isinstance(error, TyperUsageError):
        return Fault("UsageError", _usage(error), UsageError.exit_code)
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return Fault("Interrupted", "interrupted", 130)
    disk = _disk_fault(error)
    if disk is not None:
        return Fault("CheckpointError", disk, CheckpointError.exit_code)
    if _is_out_of_memory(error):
        return Fault("OutOfMemory", f"memory is used up: {one_line(error)}. {LESS_MEMORY}", 1)
    plugin = runtime_fault(error, discover().offers)
    if plugin is not None:
        return Fault("PluginError", plugin, PluginError.exit_code)
    return Fault(type(error).__name__, f"{one_line(error)}: {BUG}", 1)


def report(error: BaseException, *, debug: bool, as_json: bool) -> int:
    """Tell the user about `error` and return the exit code."""
    fault = explain(error)
    if debug:
        sys.stderr.write("".join(traceback.format_exception(error)))
    if as_json:
        content = {"type": fault.kind, "message": fault.message, "exit_code": fault.exit_code}
        print_json({"error": content})
    screen = console(stderr=True)
    screen.print("error: ", style="bold red", end="")
    screen.print(fault.message)
    return fault.exit_code


def leave_quietly() -> bool:
    """Whether stdout has lost its reader (`ftrt ... | head`); if so, nothing more is written to it.

    Another pipe may be the one that broke, say that of a data loading process: that is an error.
    """
    try:
        sys.stdout.flush()
        os.write(sys.stdout.fileno(), b"\n")
    except BrokenPipeError:
        # Python flushes stdout on exit and would report the broken pipe then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    except (OSError, ValueError):
        # stdout is no file
        return False
    return False


LESS_MEMORY = (
    "Lower per_device_train_batch_size (and raise gradient_accumulation_steps), lower"
    " data.max_length, or use quantization: {dtype: int8}"
)


def _usage(error: BaseException) -> str:
    near = sorted(getattr(error, "possibilities", None) or ())
    text = str(getattr(error, "message", error)) if near else error.format_message()  # type: ignore[attr-defined]
    if near:
        text = f"{text}; did you mean {' or '.join(near)}?"
    # pydantic, which checks values for typer, starts a ValueError's text with its kind
    text = text.replace(". Did you mean", "; did you mean").replace(": Value error, ", ": ")
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "ftrt"
    stop = "" if text.endswith((".", "?", "!")) else "."
    return f"{text}{stop} Try `{command} --help`"


def _disk_fault(error: BaseException) -> str | None:
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        name = error.filename if isinstance(error.filename, (str, bytes, os.PathLike)) else None
        where = f"{os.fsdecode(name)}: " if name is not None else ""
        return f"{where}{error.strerror}; {DISK_ERRORS[error.errno]}"
    # safetensors and torch write through Rust and C++; their own errors hold the errno as text.
    if not isinstance(error, OSError) and "No space left on device" in str(error):
        return f"{one_line(error)}; {DISK_ERRORS[errno.ENOSPC]}"
    return None


def _is_out_of_memory(error: BaseException) -> bool:
    # By name and text: importing torch to compare classes would cost seconds.
    named = type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError)
    return named or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
