"""`ftrt._C.kernels`, the compiled half of the runtime, or why it is not there."""

__all__ = ["USE_REFERENCE", "native"]

import functools
import importlib
import importlib.util
from typing import Any

import torch

from ftrt.errors import UnsupportedError

USE_REFERENCE = "FTRT_CUDA=reference in the environment computes with torch's own ops instead"

_REBUILD = (
    "With a C++ compiler (g++ or clang++) on PATH, in the source tree: FTRT_BUILD=1 pip install"
    " --no-build-isolation --force-reinstall --no-deps ."
)


@functools.cache
def native() -> Any:
    """The module.

    Raises:
        UnsupportedError: it is not built, does not load, or is of another version of ftrt.
    """
    if importlib.util.find_spec("ftrt._C") is None:
        raise _missing("it is not built for this Python")
    try:
        # torch, imported above, has brought the libraries that the extension needs
        extension = importlib.import_module("ftrt._C")
    except ImportError as error:
        raise _missing(f"it does not load with torch {torch.__version__}: {error}") from None
    if not hasattr(extension, "kernels"):
        raise _missing("it is of another version of ftrt, without a CUDA runtime")
    return extension.kernels


def _missing(reason: str) -> UnsupportedError:
    return UnsupportedError(
        f"CUDA kernels: ftrt._C must be there; got {reason}. {_REBUILD}. {USE_REFERENCE}"
    )
