"""What the environment can set, read in one place."""

__all__ = [
    "cache_dir",
    "cpu_isa",
    "cuda_ops",
    "is_offline",
    "kernel_bundle",
    "kernel_cache_dir",
    "local_rank",
    "nvrtc_path",
]

import os
from pathlib import Path

from ftrt.errors import ConfigError, suggest

CUDA_OPS = ("kernels", "reference")
ISAS = ("portable", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx")


def cache_dir() -> Path:
    """`FTRT_CACHE_DIR`, else `$XDG_CACHE_HOME/ftrt`, else `~/.cache/ftrt`; not created here."""
    explicit = os.environ.get("FTRT_CACHE_DIR")
    if explicit:
        return Path(explicit).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ftrt"


def kernel_cache_dir() -> Path:
    """Where compiled CUDA kernels are kept: `kernels` in `cache_dir()`; not created here.

    Raises:
        ConfigError: nothing names a folder, and the user has no home.
    """
    try:
        return cache_dir() / "kernels"
    except RuntimeError as error:
        raise ConfigError(
            "FTRT_CACHE_DIR: must name a folder where the user has no home; it is not set"
            f" ({error})"
        ) from None


def kernel_bundle() -> Path | None:
    """`FTRT_KERNEL_BUNDLE`, a folder or a file of CUDA kernels that were compiled ahead."""
    path = os.environ.get("FTRT_KERNEL_BUNDLE")
    return Path(path).expanduser() if path else None


def nvrtc_path() -> Path | None:
    """`FTRT_NVRTC`, the libnvrtc to compile CUDA kernels with, or None to look for one."""
    path = os.environ.get("FTRT_NVRTC")
    return Path(path).expanduser() if path else None


def local_rank() -> int:
    """`LOCAL_RANK`, which launchers set: this process among those of the machine; 0 without."""
    rank = os.environ.get("LOCAL_RANK") or "0"
    if not rank.isdecimal():
        raise ConfigError(f"LOCAL_RANK: must be a number, 0 or above; got {rank!r}")
    return int(rank)


def is_offline() -> bool:
    """`FTRT_OFFLINE=1` forbids fetching assets; only what the cache holds is used."""
    return os.environ.get("FTRT_OFFLINE", "0") not in ("", "0")


def cpu_isa() -> str | None:
    """`FTRT_CPU_ISA`, the instruction set the CPU kernels are forced to, or None for the best, as
    where it is empty.
    """
    isa = os.environ.get("FTRT_CPU_ISA") or None
    if isa is not None and isa not in ISAS:
        near = suggest(isa.lower(), ISAS)
        raise ConfigError(
            f"FTRT_CPU_ISA: must be one of {', '.join(ISAS)}; got {isa!r}"
            f"{near if 'did you mean' in near else ''}"
        )
    return isa


def cuda_ops() -> str:
    """`FTRT_CUDA`, what computes ops on CUDA tensors: "kernels", also where it is empty, or
    "reference".
    """
    ops = os.environ.get("FTRT_CUDA") or "kernels"
    if ops not in CUDA_OPS:
        known = ", ".join(CUDA_OPS)
        raise ConfigError(f"FTRT_CUDA: must be one of {known}; got {ops!r}{suggest(ops, CUDA_OPS)}")
    return ops
