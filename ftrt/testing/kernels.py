"""`check_kernel`: a kernel computes on its example what its reference does."""

__all__ = ["check_kernel"]

import torch
from torch import Tensor

from ftrt.kernels import Kernel, Launch, launch
from ftrt.plugin_kernels import kernel_fault
from ftrt.testing.claims import require_claims
from ftrt.testing.tolerances import assert_close


def check_kernel(kernel: Kernel, *, device: str = "cuda") -> None:
    """Launch a kernel on its example, and compare with its reference; say which claims fail.

    The claims: source, threads, arches, reference and example are there; the example is the same
    each time; every tensor among the arguments holds afterwards what the reference leaves in it,
    so what the reference does not write is not changed either; two launches agree bit for bit.

    Args:
        device: where the example is made. The current backend must launch there: this machine's
            GPUs, or what `ftrt.kernels.backend.use_backend` has set.

    Raises:
        AssertionError: one line for each claim that fails.
        UnsupportedError: there is no CUDA runtime, which the message explains.
    """
    fault = kernel_fault(kernel)
    if fault:
        raise AssertionError(f"{kernel.name}: {fault}")
    subject = _Subject(kernel, torch.device(device))
    subject.launched()  # what is missing on this machine is no fault of the kernel
    require_claims(kernel.label, subject, CLAIMS)


class _Subject:
    def __init__(self, kernel: Kernel, device: torch.device) -> None:
        self.kernel = kernel
        self._device = device

    def example(self) -> Launch:
        assert self.kernel.example is not None
        return self.kernel.example(self._device)

    def launched(self) -> list[Tensor]:
        """The tensors of an example after a launch."""
        problem = self.example()
        launch(self.kernel, problem.grid, problem.shared_bytes, *problem.arguments)
        return _tensors(problem)

    def computed(self) -> list[Tensor]:
        """The tensors of an example after the reference."""
        problem = self.example()
        assert self.kernel.reference is not None
        self.kernel.reference(*problem.arguments)
        return _tensors(problem)


def _tensors(problem: Launch) -> list[Tensor]:
    return [argument for argument in problem.arguments if isinstance(argument, Tensor)]


def example_is_the_same_each_time(subject: _Subject) -> None:
    first, second = _tensors(subject.example()), _tensors(subject.example())
    if not all(torch.equal(a, b) for a, b in zip(first, second, strict=True)):
        raise AssertionError("two examples must have equal tensors; seed what is random")


def reference_writes_something(subject: _Subject) -> None:
    before, after = _tensors(subject.example()), subject.computed()
    if all(torch.equal(a, b) for a, b in zip(before, after, strict=True)):
        raise AssertionError("it must write what the kernel writes; it changed no tensor")


def kernel_agrees_with_reference(subject: _Subject) -> None:
    places = zip(subject.launched(), subject.computed(), strict=True)
    for place, (got, expected) in enumerate(places):
        # a sum is at most as long as the largest argument
        assert_close(got, expected, k=expected.numel(), what=f"tensor {place} of the arguments")


def two_launches_agree(subject: _Subject) -> None:
    for first, second in zip(subject.launched(), subject.launched(), strict=True):
        if not torch.equal(first, second):
            raise AssertionError("two launches must leave equal tensors, bit for bit")


CLAIMS = (
    example_is_the_same_each_time,
    reference_writes_something,
    kernel_agrees_with_reference,
    two_launches_agree,
)
