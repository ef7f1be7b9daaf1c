"""Launches as they happen: recorded from the ops, so that each kernel can be timed on its own."""

__all__ = ["GEMM", "RecordedLaunch", "RecordingBackend", "recording"]

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ftrt.kernels.backend import Backend, Grid, current_backend, use_backend
from ftrt.kernels.kernel import Kernel
from ftrt.kernels.signature import Argument

GEMM = "w8a8_gemm"
# where w8a8_gemm has rows, columns and depth among its parameters, and unpack its output
_GEMM_SIZES = slice(4, 7)
_UNPACK_OUT = 7


@dataclass(frozen=True)
class RecordedLaunch:
    """One launch of a kernel with its arguments, which it keeps alive."""

    kernel: Kernel
    grid: Grid
    shared_bytes: int
    arguments: tuple[Argument, ...]
    device: torch.device

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for launches that take the same time: kernel, grid and every number."""
        numbers = tuple(tuple(a.shape) if isinstance(a, Tensor) else a for a in self.arguments)
        return (self.kernel.label, self.grid, self.shared_bytes, numbers)

    @property
    def operations(self) -> int:
        """Multiplications and additions of the int8 product; 0 for a kernel that is none."""
        if self.kernel.name != GEMM:
            return 0
        rows, columns, depth = (a for a in self.arguments[_GEMM_SIZES] if isinstance(a, int))
        return 2 * rows * columns * depth

    @property
    def nbytes(self) -> int:
        """Bytes of the operands, each once. `unpack` may be given a whole weight for a chunk of
        it: what it reads is a byte for each element it writes."""
        if self.kernel.name == "unpack":
            out = self.arguments[_UNPACK_OUT]
            return out.numel() * (out.element_size() + 1) if isinstance(out, Tensor) else 0
        tensors = {a.data_ptr(): a for a in self.arguments if isinstance(a, Tensor)}
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())

    def run(self, backend: Backend) -> None:
        """Launch it again."""
        backend.launch(self.kernel, self.grid, self.shared_bytes, self.arguments, self.device)

    def copy(self) -> "RecordedLaunch":
        """The same launch on memory of its own; arguments that share memory share it again."""
        memory: dict[int, Tensor] = {}

        def copied(argument: Argument) -> Argument:
            if not isinstance(argument, Tensor):
                return argument
            storage = argument.untyped_storage()
            if storage.data_ptr() not in memory:
                view = torch.empty(0, dtype=torch.uint8, device=argument.device).set_(storage)
                memory[storage.data_ptr()] = view.clone()
            own = memory[storage.data_ptr()].untyped_storage()
            empty = torch.empty(0, dtype=argument.dtype, device=argument.device)
            return empty.set_(own, argument.storage_offset(), argument.shape, argument.stride())

        return replace(self, arguments=tuple(map(copied, self.arguments)))


class RecordingBackend:
    """Launches with another backend and remembers every launch.

    Attributes:
        launches: in order.
    """

    def __init__(self, backend: Backend) -> None:
        self.launches: list[RecordedLaunch] = []
        self._backend = backend

    def launch(
        self,
        kernel: Kernel,
        grid: Grid,
        shared_bytes: int,
        arguments: tuple[Argument, ...],
        device: torch.device,
    ) -> None:
        """Launch, then remember it."""
        self._backend.launch(kernel, grid, shared_bytes, arguments, device)
        self.launches.append(RecordedLaunch(kernel, grid, shared_bytes, arguments, device))

    def arch(self, device: torch.device) -> tuple[int, int]:
        """That of the other backend."""
        return self._backend.arch(device)

    def multiprocessors(self, device: torch.device) -> int:
        """That of the other backend."""
        return self._backend.multiprocessors(device)

    def shared_limit(self, device: torch.device) -> int:
        """That of the other backend."""
        return self._backend.shared_limit(device)


@contextlib.contextmanager
def recording() -> Iterator[RecordingBackend]:
    """Record every launch inside the block."""
    recorder = RecordingBackend(current_backend())
    with use_backend(recorder):
        yield recorder
