"""What `ftrt kernels` finds out: which kernels there are, where each comes from, what it takes."""

__all__ = [
    "Collected",
    "cache_facts",
    "clear_cache",
    "collect_kernels",
    "list_kernels",
    "require_writable",
    "resource_rows",
]

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftrt import config
from ftrt.errors import CheckpointError, FtrtError, UnsupportedError, explain_os_error
from ftrt.kernels import Kernel

OWN = "ftrt"
# A cubin of the cache, and what stands beside it while one is written (ftrt's names, see
# csrc/runtime/cache.cpp and files.cpp).
CACHE_FILE = re.compile(r"[0-9a-f]{64}-\d+\.\d+\.cubin(\.lock|\.\d+-\d+\.tmp)?")


@dataclass(frozen=True)
class Collected:
    """A kernel, and the distribution that ships it."""

    kernel: Kernel
    distribution: str


def collect_kernels() -> tuple[list[Collected], list[str]]:
    """Every variant of ftrt's kernels and every plugin's, and what is wrong with the others."""
    from ftrt.kernels import catalog
    from ftrt.registry import Registry

    found = [Collected(kernel, OWN) for kernel in catalog.variants()]
    faults = []
    registry = Registry()
    for offer in registry.manager.manifest.offers:
        if offer.kind != "kernel":
            continue
        try:
            for name in registry.manager.members(offer, "kernel"):
                found.append(Collected(registry.kernel(name), offer.distribution))
        except FtrtError as error:
            faults.append(str(error))
    return found, faults


def list_kernels(collected: Iterable[Collected], arches: tuple[str, ...]) -> list[dict[str, Any]]:
    """One row a variant: name, macros, where its cubin for each architecture would come from.

    An origin is "bundle", "cache", "compile" (at its first launch), "missing" (there is no
    compiler), or None where the kernel is not for the architecture.
    """
    from ftrt.kernels.bundle import list_cubins
    from ftrt.kernels.cubins import bundle_paths, kernel_key

    otherwise = "compile" if _has_compiler() else "missing"
    folder = config.kernel_cache_dir()
    bundled = {cubin.key for path in bundle_paths() for cubin in list_cubins(path)}
    cached = {cubin.key for cubin in list_cubins(folder)} if folder.is_dir() else set()

    def origin(kernel: Kernel, arch: str) -> str | None:
        if arch not in kernel.arches:
            return None
        key = kernel_key(kernel, arch)
        return "bundle" if key in bundled else "cache" if key in cached else otherwise

    return [
        {
            "name": one.kernel.name,
            "label": one.kernel.label,
            "defines": dict(one.kernel.defines),
            "distribution": one.distribution,
            "source": str(one.kernel.source),
            "source_sha256": one.kernel.source_hash(),
            "arches": list(one.kernel.arches),
            "origins": {arch: origin(one.kernel, arch) for arch in arches},
        }
        for one in collected
    ]


def _has_compiler() -> bool:
    from ftrt.kernels.nvrtc import open_nvrtc

    try:
        open_nvrtc()
    except UnsupportedError:
        return False
    return True


def resource_rows(
    kernels: Iterable[Kernel], arches: tuple[str, ...], bundle: Path
) -> list[dict[str, Any]]:
    """What each cubin of a bundle takes of a multiprocessor, one row each."""
    from ftrt.kernels.cubin import SHARED_LIMIT_BYTES, read_resources
    from ftrt.kernels.cubins import kernel_key
    from ftrt.kernels.native import native
    from ftrt.kernels.resources import most_shared_bytes

    rows = []
    for kernel in kernels:
        for arch in (arch for arch in arches if arch in kernel.arches):
            entry, _ = native().find_in_bundle(str(bundle), kernel_key(kernel, arch))
            taken = read_resources(entry["image"], kernel.name)
            rows.append(
                {
                    "kernel": kernel.label,
                    "arch": arch,
                    "registers": taken.registers,
                    "shared_bytes": taken.shared_bytes + most_shared_bytes(kernel, arch),
                    "shared_limit_bytes": SHARED_LIMIT_BYTES[arch],
                    "local_bytes": taken.local_bytes,
                    "cubin_bytes": len(entry["image"]),
                }
            )
    return rows


def require_writable(out: Path) -> None:
    """Find out that a bundle cannot be written before minutes are spent on compiling it.

    Raises:
        CheckpointError: the folder it goes into is no folder, or may not be written to.
    """
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    folder = existing.parent if existing.is_file() and existing == out and out.suffix else existing
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise CheckpointError(
            f"--out {out}: must be in a folder that you may write to; got {existing}; choose"
            " another one"
        )


def cache_facts() -> dict[str, Any]:
    """Where compiled kernels are kept, and what is there."""
    from ftrt.kernels.bundle import list_cubins

    folder = config.kernel_cache_dir()
    cubins = list_cubins(folder) if folder.is_dir() else []
    return {
        "folder": str(folder),
        "size_bytes": sum(cubin.size_bytes for cubin in cubins),
        "entries": [
            {
                "label": cubin.label,
                "compiler": "{}.{}".format(*cubin.compiler),
                "size_bytes": cubin.size_bytes,
                "file": cubin.file,
                "problem": cubin.problem,
            }
            for cubin in cubins
        ],
    }


def clear_cache() -> dict[str, Any]:
    """Remove what ftrt wrote into the folder, and the folder if nothing else is in it.

    Raises:
        CheckpointError: a file cannot be removed.
    """
    folder = config.kernel_cache_dir()
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    own = [f for f in files if CACHE_FILE.fullmatch(f.name) and f.is_file() and not f.is_symlink()]
    size = sum(file.stat().st_size for file in own)
    try:
        for file in own:
            file.unlink(missing_ok=True)
        if files and len(own) == len(files):
            folder.rmdir()
    except OSError as error:
        raise CheckpointError(
            f"kernel cache {folder}: must be writable; {explain_os_error(error)}"
        ) from None
    kept = [file.name for file in files if file not in own]
    return {"folder": str(folder), "removed": len(own), "removed_bytes": size, "kept": kept}
