"""Many small kernels as one that is told which of them to be, so that they compile once."""

__all__ = ["TinyKernels"]

from collections.abc import Mapping
from pathlib import Path

import torch
from emulated import EmulatedBackend

from ftrt.kernels.backend import Grid, launch, use_backend
from ftrt.kernels.kernel import Kernel
from ftrt.kernels.signature import Signature


class TinyKernels:
    """Kernels by name.

    Args:
        folder: where the source is written.
        bodies: what a kernel does, in C++: `i` is the thread, `lane` its lane, `base` where shared
            memory begins, `x` and `y` the tensors, const and not, of `element`.
        element: type of the elements of x and y.
        prelude: in front of all functions.
        threads: in a block.
    """

    def __init__(
        self,
        folder: Path,
        bodies: Mapping[str, str],
        *,
        element: str = "float",
        prelude: str = "",
        threads: int = 64,
    ) -> None:
        self.names = list(bodies)
        parameters = f"const {element}* x, {element}* y"
        lines = ['#include "ptx.cuh"', "using namespace ftrt;", prelude]
        for number, body in enumerate(bodies.values()):
            lines += [f"__device__ void tiny_{number}({parameters}) {{"]
            lines += ["const uint32 i = ptx::thread_index(), lane = i % 32;"]
            lines += ["const uint32 base = ptx::shared_base();", body, "}"]
        lines += [f'extern "C" __global__ void tiny(int which, {parameters}) {{']
        lines += ["switch (which) {"]
        lines += [f"case {n}: return tiny_{n}(x, y);" for n in range(len(bodies))]
        source = folder / "tiny.cu"
        source.write_text("\n".join([*lines, "}", "}", ""]))
        self.kernel = Kernel("tiny", source, Signature("ipp"), threads)

    def run(
        self,
        name: str,
        x: torch.Tensor | None,
        y: torch.Tensor | None,
        *,
        seed: int = 0,
        grid: Grid = (1, 1, 1),
        shared_bytes: int = 1024,
    ) -> None:
        """Launch one of them on the emulation."""
        with use_backend(EmulatedBackend(seed)):
            launch(self.kernel, grid, shared_bytes, self.names.index(name), x, y)
