"""The CUDA kernels of a plugin: what each must have, and where its source may come from.

A kernel is native code, as trusted as the distribution that ships it and no more than that. So its
files must lie in the package that registers it, and nothing is compiled that lies elsewhere: not
from a model, a data or a working folder, nor through a link that leads there.
"""

__all__ = ["kernel_fault", "source_fault"]

import sys
from pathlib import Path

from ftrt.kernels.kernel import ARCHES, Kernel

THREADS = range(32, 1025, 32)


def kernel_fault(kernel: Kernel) -> str | None:
    """What is missing for `kernel` to be a plugin's, or None."""
    if not kernel.source.is_file() or kernel.source.suffix != ".cu":
        return f"must have a `.cu` file as source; got {kernel.source}"
    if kernel.threads not in THREADS:
        return f"must have whole warps of threads, 32 to 1024; got {kernel.threads}"
    unknown = sorted(set(kernel.arches) - set(ARCHES))
    if unknown or not kernel.arches:
        got = ", ".join(unknown) or "none"
        return f"must have arches among {', '.join(ARCHES)}; got {got}"
    for attribute in ("reference", "example"):
        if not callable(getattr(kernel, attribute)):
            return f"must have a callable {attribute}; got {getattr(kernel, attribute)!r}"
    return None


def source_fault(kernel: Kernel, module: str) -> str | None:
    """Why the source of `kernel`, or a header beside it, may not be compiled; None if it may.

    Args:
        module: the imported module that registers the kernel.
    """
    folder = _package_folder(module)
    if folder is None:
        return f"must be registered by a module of a package, which holds its source; got {module}"
    for file in (kernel.source, *sorted(kernel.source.parent.glob("*.cuh"))):
        if not file.resolve().is_relative_to(folder):
            return (
                f"must have its source in the package that registers it, {folder}; got"
                f" {file.resolve()}; nothing else is compiled"
            )
    return None


def _package_folder(module: str) -> Path | None:
    """The folder of the outermost package with an `__init__.py` that has the module, or None."""
    parts = module.split(".")
    for count in range(1, len(parts) + 1):
        package = sys.modules.get(".".join(parts[:count]))
        file = getattr(package, "__file__", None)
        if file is not None and hasattr(package, "__path__"):
            return Path(file).resolve().parent
    return None
