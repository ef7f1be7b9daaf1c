"""Who launches kernels: the CUDA runtime of `ftrt._C`, or in tests an emulation of it."""

__all__ = ["Backend", "current_backend", "launch", "use_backend"]

import contextlib
import functools
from collections.abc import Iterator
from typing import Protocol

import torch

from ftrt.errors import UnsupportedError
from ftrt.kernels.kernel import Kernel
from ftrt.kernels.native import USE_REFERENCE
from ftrt.kernels.signature import Argument

Grid = tuple[int, int, int]


class Backend(Protocol):
    """Compiles a kernel where it must, and launches it."""

    def launch(
        self,
        kernel: Kernel,
        grid: Grid,
        shared_bytes: int,
        arguments: tuple[Argument, ...],
        device: torch.device,
    ) -> None:
        """Launch on the current stream of `device`, without waiting for it."""

    def arch(self, device: torch.device) -> tuple[int, int]:
        """Compute capability of `device`: (9, 0) for sm_90."""

    def multiprocessors(self, device: torch.device) -> int:
        """How many of them `device` has."""

    def shared_limit(self, device: torch.device) -> int:
        """Most bytes of shared memory a block may have."""


_backend: Backend | None = None


def current_backend() -> Backend:
    """The backend in use: the one `use_backend` has set, or else this machine's GPUs.

    Raises:
        UnsupportedError: there are none; the message says what is missing, and the fix.
    """
    return _cuda_backend() if _backend is None else _backend


@functools.cache
def _cuda_backend() -> Backend:
    from ftrt.kernels.runtime import CudaBackend

    try:
        return CudaBackend()
    except UnsupportedError as error:
        if USE_REFERENCE in str(error):
            raise
        raise UnsupportedError(f"{error}. {USE_REFERENCE}") from None


@contextlib.contextmanager
def use_backend(backend: Backend) -> Iterator[None]:
    """Launch with another backend inside the block, for tests."""
    global _backend
    before, _backend = _backend, backend
    try:
        yield
    finally:
        _backend = before


def launch(kernel: Kernel, grid: Grid, shared_bytes: int, *arguments: Argument) -> None:
    """Launch `kernel` on the device of its tensors, in the current stream.

    Args:
        grid: blocks along x, y and z; nothing is launched where one is 0.
        shared_bytes: of dynamic shared memory.
        arguments: by the kernel's signature. Tensors are passed by address: the caller has checked
            shapes, strides and devices.
    """
    if 0 in grid:
        return
    device = next(a.device for a in arguments if isinstance(a, torch.Tensor))
    current_backend().launch(kernel, grid, shared_bytes, arguments, device)
