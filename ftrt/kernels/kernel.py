"""A kernel: a `.cu` file, one entry point in it, and what is fixed when it is compiled."""

__all__ = ["ARCHES", "Kernel", "Launch", "source_folder"]

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from ftrt.kernels.signature import Argument, Signature

# Architectures a kernel may be compiled for, oldest first, as nvcc spells them after `sm_`.
ARCHES = ("80", "86", "89", "90a", "100", "120")

# The headers of ftrt that every kernel may include, a plugin's among them.
_PUBLIC_HEADERS = ("elements.cuh", "ptx.cuh", "types.cuh")

_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)


def source_folder() -> Path:
    """Where ftrt's own kernels stand: in the package, or in the source tree around it."""
    packaged = Path(__file__).parent / "cuda"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "csrc" / "cuda"


@dataclass(frozen=True)
class Launch:
    """What a kernel is launched with.

    Attributes:
        grid: blocks along x, y and z.
        shared_bytes: of dynamic shared memory.
        arguments: by the kernel's signature.
    """

    grid: tuple[int, int, int]
    shared_bytes: int
    arguments: tuple[Argument, ...]


@dataclass(frozen=True)
class Kernel:
    """What is compiled and launched; `variant` makes another one of the same source.

    Attributes:
        name: of the function in the source, declared `extern "C" __global__`.
        source: the `.cu` file. It may include the headers beside it, ftrt's `elements.cuh`,
            `ptx.cuh` and `types.cuh`, and no other.
        signature: the function's parameters, see `ftrt.kernels.signature`.
        defines: macros, by name.
        threads: in a block; the source says `__launch_bounds__` with the same number.
        arches: of `ARCHES`, those it is for.
        reference: the same computation in torch ops. It takes what the kernel takes, with tensors
            where the kernel has pointers, and writes what the kernel writes; None if the kernel is
            tested otherwise.
        example: a small problem on a device, on which kernel and reference are compared.
    """

    name: str
    source: Path
    signature: Signature
    threads: int
    defines: Mapping[str, str] = field(default_factory=dict)
    arches: tuple[str, ...] = ARCHES
    reference: Callable[..., Any] | None = None
    example: Callable[[torch.device], Launch] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "defines", MappingProxyType(dict(self.defines)))

    def variant(self, **defines: str | int) -> "Kernel":
        """The same source with these macros on top."""
        return replace(self, defines={**self.defines, **{k: str(v) for k, v in defines.items()}})

    @property
    def options(self) -> tuple[str, ...]:
        """The defines as compiler options, sorted."""
        return tuple(f"-D{name}={value}" for name, value in sorted(self.defines.items()))

    @property
    def label(self) -> str:
        """Name and macros, for people: `w8a8_gemm[FTRT_ELEMENT=bfloat16]`."""
        macros = ",".join(option.removeprefix("-D") for option in self.options)
        return f"{self.name}[{macros}]" if macros else self.name

    def headers(self) -> dict[str, str]:
        """What the source includes, directly or not, by the name an include has.

        A header beside the source wins over a public one of ftrt. One that is neither is left to
        the compiler to report.
        """
        public = {name: source_folder() / name for name in _PUBLIC_HEADERS}
        files = public | {path.name: path for path in self.source.parent.glob("*.cuh")}
        found: dict[str, str] = {}
        waiting = [self.source.read_text()]
        while waiting:
            for name in _INCLUDE.findall(waiting.pop()):
                if name in files and name not in found:
                    found[name] = files[name].read_text()
                    waiting.append(found[name])
        return dict(sorted(found.items()))

    def source_hash(self) -> str:
        """sha256 of source and headers, hexadecimal."""
        digest = hashlib.sha256(self.source.read_bytes())
        for name, text in self.headers().items():
            digest.update(f"\0{name}\0{text}".encode())
        return digest.hexdigest()
