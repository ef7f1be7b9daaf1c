"""The kernels of `row_divergence`: values and gradients against float64, on their emulation."""

import sys
from pathlib import Path

import pytest
import torch
from ftrt_distill import divergence, logit_kl
from ftrt_distill.divergence import row_divergence
from ftrt_distill.logit_kl import LogitKL

from ftrt.errors import UnsupportedError
from ftrt.kernels.backend import use_backend
from ftrt.testing import assert_close, check_kernel

sys.path.insert(0, str(Path(__file__).parents[3] / "tests" / "csrc" / "cuda"))
from emulated import EmulatedBackend

TEMPERATURE = 0.7
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SIZES = [(1, 1), (3, 7), (2, 65), (2, 1000), (1, 2049)]


class ReferenceBackend:
    """Runs a kernel's reference in place of the kernel, in whatever dtype its arguments have."""

    def launch(self, kernel, grid, shared_bytes, arguments, device):
        kernel.reference(*arguments)


@pytest.fixture
def emulated():
    with use_backend(EmulatedBackend(seed=1)):
        yield


def logits(rows, columns, dtype=torch.float32, seed=0, size=3.0):
    generator = torch.Generator().manual_seed(seed)
    return (size * torch.randn(rows, columns, generator=generator)).to(dtype)


def expected(p, q):
    """KL in float64, from what the logits are in their dtypes."""
    p_log, q_log = (torch.log_softmax(t.double() / TEMPERATURE, dim=-1) for t in (p, q))
    return (p_log.exp() * (p_log - q_log)).sum(dim=-1)


@pytest.mark.parametrize("dtypes", [(d, torch.float32) for d in DTYPES] + [(DTYPES[0], DTYPES[2])])
@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_values_are_those_of_float64(emulated, rows, columns, dtypes):
    p, q = logits(rows, columns, dtypes[0]), logits(rows, columns, dtypes[1], seed=1)

    got = row_divergence(p, q, TEMPERATURE)

    assert got.dtype == torch.float32
    assert (got - expected(p, q)).abs().max() < 2e-5 * (1 + expected(p, q).max())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 7), (2, 1001)])
def test_gradients_are_those_of_float64(emulated, rows, columns, dtype):
    sides = [logits(rows, columns, dtype, seed).requires_grad_() for seed in (0, 1)]
    exact = [side.detach().double().requires_grad_() for side in sides]
    weights = torch.arange(1.0, rows + 1)

    (row_divergence(*sides, TEMPERATURE) * weights).sum().backward()
    (expected(*exact) * weights).sum().backward()

    for side, reference in zip(sides, exact, strict=True):
        assert side.grad.dtype == dtype
        # float32 exponents of size 20 are off by 20 eps / 2, and so are their exponentials
        bound = 4 * torch.finfo(dtype).eps + 1e-5
        assert (side.grad - reference.grad).abs().max() <= bound * (1 + reference.grad.abs().max())


def test_only_the_student_gets_a_gradient(emulated):
    teacher, student = logits(2, 9), logits(2, 9, seed=1).requires_grad_()

    row_divergence(teacher, student, 1.0).sum().backward()

    assert teacher.grad is None and student.grad is not None


def test_rows_may_lie_apart_and_columns_be_any_distance_apart(emulated):
    wide = logits(4, 50)
    p, q = wide[::2, 3:40], logits(37, 2, seed=1).t()

    assert_close(row_divergence(p, q, TEMPERATURE), expected(p, q), k=400)


def test_large_logits_do_not_overflow(emulated):
    p, q = logits(2, 300, size=1e4), logits(2, 300, seed=1, size=1e4)

    assert_close(row_divergence(p, q, TEMPERATURE), expected(p, q), k=100)


def test_equal_rows_diverge_by_nothing(emulated):
    p = logits(2, 33, torch.bfloat16).requires_grad_()

    row_divergence(p.detach(), p, 1.0).sum().backward()

    assert p.grad.eq(0).all()


def test_no_rows_are_no_work(emulated):
    assert row_divergence(torch.empty(0, 5), torch.empty(0, 5), 1.0).shape == (0,)


def test_the_order_of_threads_does_not_matter():
    p, q = logits(3, 777), logits(3, 777, seed=1)
    results = []
    for seed in (1, 2, 3):
        with use_backend(EmulatedBackend(seed=seed)):
            results.append(row_divergence(p, q, 1.0))

    assert all(torch.equal(result, results[0]) for result in results)


def test_the_formulas_pass_gradcheck():
    sides = [logits(2, 5, torch.float64, seed).requires_grad_() for seed in (0, 1)]

    with use_backend(ReferenceBackend()):
        assert torch.autograd.gradcheck(
            lambda p, q: divergence._RowDivergence.apply(p, q, TEMPERATURE), sides
        )


@pytest.mark.parametrize("kernel", divergence.register_kernels(), ids=lambda kernel: kernel.name)
def test_the_kernels_pass_the_kit(emulated, kernel):
    check_kernel(kernel, device="cpu")


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_loss_is_the_same_with_and_without_kernels(emulated, monkeypatch, direction, dtype):
    term = LogitKL(LogitKL.Config(direction=direction, temperature=3.0))
    teacher = {"logits": logits(6, 20, dtype).reshape(2, 3, 20)}
    batch = {"labels": torch.tensor([[1, 2, -100], [3, 4, 5]])}
    results = []
    for is_available in (True, False):
        monkeypatch.setattr(logit_kl.kernels, "is_available", lambda device, is_=is_available: is_)
        student = logits(6, 20, dtype, seed=1).reshape(2, 3, 20).requires_grad_()
        total, count = term({"logits": student}, teacher, batch)
        total.backward()
        results.append((total.detach(), student.grad, count))
    (total, gradient, count), (total_2, gradient_2, count_2) = results

    assert_close(total, total_2, k=100)
    assert_close(gradient, gradient_2, k=1)
    assert count == count_2 == 3


@pytest.mark.parametrize(
    ("p", "q", "says"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 4), r"got \(2, 3\) torch.float32 and \(2, 4\)"),
        (torch.zeros(3), torch.zeros(3), r"must have one shape \(rows, columns\)"),
        (torch.zeros(2, 3), torch.zeros(2, 3).double(), r"got .* and \(2, 3\) torch.float64"),
    ],
)
def test_what_does_not_fit_is_refused(p, q, says):
    with pytest.raises(UnsupportedError, match=says):
        row_divergence(p, q, 1.0)
