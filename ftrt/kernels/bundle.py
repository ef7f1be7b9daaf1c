"""Kernels compiled ahead: for machines without NVRTC, and to be shipped with the package."""

__all__ = ["Built", "build_bundle", "list_cubins"]

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ftrt.errors import CheckpointError, UsageError, explain_os_error
from ftrt.kernels.cubins import compile_kernel, kernel_key, unpack_bundle
from ftrt.kernels.kernel import ARCHES, Kernel
from ftrt.kernels.native import native
from ftrt.kernels.nvrtc import open_nvrtc_for_others


@dataclass(frozen=True)
class Built:
    """An entry of a bundle or of the cache.

    Attributes:
        file: its name in the folder, or the bundle's.
        key: what it is looked up by.
        label: kernel, macros and architecture.
        compiler: version of the NVRTC that made it.
        size_bytes: on the disk.
        problem: why it is not usable; empty if it is.
    """

    file: str
    key: str
    label: str
    compiler: tuple[int, int]
    size_bytes: int
    problem: str = ""


def build_bundle(
    kernels: Iterable[Kernel],
    arches: Iterable[str],
    out: Path,
    on_compiled: Callable[[str, int], None] | None = None,
) -> list[Built]:
    """Compile each kernel for each architecture it is for, and write a bundle.

    The oldest NVRTC that is installed compiles, so that drivers of its CUDA version load them too.

    Args:
        arches: of `ARCHES`.
        out: a folder, created if need be; or, if the name has a suffix, one file.
        on_compiled: called with label and bytes of each cubin.

    Returns:
        What the bundle holds.

    Raises:
        UsageError: an unknown architecture, or a source that does not compile.
        UnsupportedError: there is no compiler.
        CheckpointError: the bundle cannot be written.
    """
    wanted = tuple(arches)
    unknown = sorted(set(wanted) - set(ARCHES))
    if unknown:
        raise UsageError(
            f"kernel bundle: arches must be of {', '.join(ARCHES)}; got {', '.join(unknown)}"
        )
    compiler = open_nvrtc_for_others()
    entries = []
    for kernel in kernels:
        for arch in (arch for arch in wanted if arch in kernel.arches):
            image, _ = compile_kernel(kernel, arch)
            label = f"{kernel.label} sm_{arch}"
            entries.append(
                {
                    "key": kernel_key(kernel, arch),
                    "label": label,
                    "compiler": compiler.version,
                    "image": image,
                }
            )
            if on_compiled is not None:
                on_compiled(label, len(image))
    try:
        native().write_bundle(str(out), entries)
    except OSError as error:
        raise CheckpointError(
            f"kernel bundle {out}: must be writable; {explain_os_error(error)}"
        ) from None
    return list_cubins(out)


def list_cubins(path: Path) -> list[Built]:
    """What a bundle, or the cache folder, holds.

    Raises:
        CheckpointError: it cannot be read.
    """
    packed = unpack_bundle(path)
    try:
        if packed is None:
            found = native().list_entries(str(path))
        else:
            found = native().list_bytes(path.name, packed)
    except OSError as error:
        raise CheckpointError(
            f"kernels in {path}: must be readable; {explain_os_error(error)}"
        ) from None
    return [
        Built(one["file"], one["key"], one["label"], one["compiler"], one["bytes"], one["problem"])
        for one in found
    ]
