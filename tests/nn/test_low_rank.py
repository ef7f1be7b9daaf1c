"""ftrt.nn.lora_forward against float64, on float, int8 and foreign bases."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ftrt.errors import UsageError
from ftrt.nn import Int8Linear, lora_forward
from ftrt.quantization import PerChannel
from ftrt.testing.tolerances import assert_close


class Foreign(nn.Module):
    """Not a type lora_forward knows; its backward reads its own output."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear

    def forward(self, x):
        return self.linear(x).sigmoid()


def case(kind, rank=8, out_features=7, in_features=65, bias=True):
    """(base, a, b, what the base computes in float64)."""
    torch.manual_seed(0)
    linear = nn.Linear(in_features, out_features, bias=bias).requires_grad_(False)
    a = torch.randn(rank, in_features).requires_grad_()
    b = torch.randn(out_features, rank).requires_grad_()
    base = Int8Linear.from_linear(linear, PerChannel()) if kind == "int8" else linear
    weight = (base.dequantize() if kind == "int8" else linear.weight).double()
    offset = linear.bias.double() if bias else torch.zeros(out_features).double()

    def oracle(x):
        y = x.double() @ weight.T + offset
        return y.sigmoid() if kind == "foreign" else y

    return (Foreign(linear) if kind == "foreign" else base), a, b, oracle


KINDS = ["float", "int8", "foreign"]
SCALING = 0.75


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", [1, 8, 17])
@pytest.mark.parametrize("shape", [(0, 65), (1, 65), (111, 65), (2, 3, 65), (65,)])
def test_values_and_gradients_are_those_of_float64(kind, rank, shape):
    base, a, b, oracle = case(kind, rank)
    x = torch.randn(*shape).requires_grad_()
    y = lora_forward(base, x, a, b, SCALING)
    exact = [t.detach().double().requires_grad_() for t in (x, a, b)]
    expected = oracle(exact[0]) + SCALING * (exact[0] @ exact[1].T) @ exact[2].T
    assert_close(y, expected, k=65 + rank, what="y")
    grad = torch.randn_like(y)
    y.backward(grad)
    expected.backward(grad.double())
    rows = max(x.numel() // 65, 1)
    for name, got, want, k in zip("xab", (x, a, b), exact, (65, rows * 7, rows * 65), strict=True):
        assert_close(got.grad, want.grad, k=k, what=f"d{name}")


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_when_x_does_not_require_grad(kind):
    base, a, b, _ = case(kind)
    x = torch.randn(5, 65)
    lora_forward(base, x, a, b, SCALING).sum().backward()
    assert_close(a.grad, SCALING * b.detach().double().sum(0)[:, None] * x.double().sum(0), k=35)
    assert b.grad is not None


def test_what_the_base_trains_gets_its_gradient():
    base, a, b, _ = case("float")
    base.weight.requires_grad_()
    x = torch.randn(5, 65)
    lora_forward(base, x, a, b, SCALING).sum().backward()
    assert_close(base.weight.grad, x.double().sum(0).expand(7, -1), k=5)


@pytest.mark.parametrize("kind", KINDS)
def test_zero_b_changes_nothing(kind):
    base, a, b, _ = case(kind)
    x = torch.randn(5, 65)
    # A fused op may sum in another order than torch's linear.
    assert_close(lora_forward(base, x, a, torch.zeros_like(b), SCALING), base(x), k=65)


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("factors", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["float", "int8"])
def test_mixed_dtypes_compute_in_the_dtype_of_the_base_output(kind, factors, x_dtype):
    base, a, b, oracle = case(kind)
    base = base.to(x_dtype)
    a, b = (t.detach().to(factors).requires_grad_() for t in (a, b))
    x = torch.randn(5, 65, dtype=x_dtype)
    y = lora_forward(base, x, a, b, SCALING)
    assert y.dtype == x_dtype
    expected = oracle(x) + SCALING * (x.double() @ a.double().T) @ b.double().T
    assert_close(y, expected, k=73)
    y.float().sum().backward()
    assert a.grad.dtype == b.grad.dtype == factors


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_gives_its_dtype_and_float32_gradients(kind):
    base, a, b, oracle = case(kind)
    x = torch.randn(5, 65).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = lora_forward(base, x, a, b, SCALING)
        plain = base(x)
    assert y.dtype == plain.dtype == torch.bfloat16
    expected = oracle(x) + SCALING * (x.double() @ a.double().T) @ b.double().T
    assert_close(y, expected, k=73)
    y.float().sum().backward()
    assert {t.grad.dtype for t in (x, a, b)} == {torch.float32}


def test_a_hook_on_the_base_sees_the_output_without_the_update():
    base, a, b, _ = case("float")
    seen = []
    base.register_forward_hook(lambda module, inputs, output: seen.append(output))
    x = torch.randn(5, 65)
    y = lora_forward(base, x, a, b, SCALING)
    base._forward_hooks.clear()
    assert torch.equal(seen[0], base(x)) and not torch.equal(seen[0], y)


@pytest.mark.parametrize("kind", ["float", "int8"])
def test_gradient_checkpointing_and_compile_give_the_same(kind):
    base, a, b, _ = case(kind)

    def step(x, a, b):
        return lora_forward(base, x, a, b, SCALING).square().sum()

    torch.compiler.reset()
    runs = {
        "plain": step,
        "checkpoint": lambda *args: checkpoint(step, *args, use_reentrant=False),
        "compile": torch.compile(step, fullgraph=True, backend="aot_eager"),
    }
    grads = {}
    for name, run in runs.items():
        tensors = [t.detach().clone().requires_grad_() for t in (torch.ones(5, 65), a, b)]
        run(*tensors).backward()
        grads[name] = [t.grad for t in tensors]
    for name in ("checkpoint", "compile"):
        for got, want in zip(grads[name], grads["plain"], strict=True):
            assert_close(got, want, k=65, what=name)


@pytest.mark.parametrize(
    ("x", "a", "b", "got"),
    [
        ((5, 64), (8, 65), (7, 8), "x (5, 64), a (8, 65), b (7, 8)"),
        ((5, 65), (8, 65), (7, 9), "x (5, 65), a (8, 65), b (7, 9)"),
        ((5, 65), (8,), (7, 8), "x (5, 65), a (8,), b (7, 8)"),
        ((5, 65), (8, 65), (9, 8), "x (5, 65), a (8, 65), b (9, 8), base with out_features 7"),
        ((5, 66), (8, 66), (7, 8), "x (5, 66), a (8, 66), b (7, 8), base with out_features 7"),
    ],
)
@pytest.mark.parametrize("kind", ["float", "int8"])
def test_shapes_that_disagree_are_an_error(kind, x, a, b, got):
    base = case(kind)[0]
    with pytest.raises(UsageError) as caught:
        lora_forward(base, torch.ones(x), torch.ones(a), torch.ones(b), 1.0)
    assert str(caught.value) == (
        "lora_forward: x must be (..., in_features), a (rank, in_features) and b (out_features,"
        f" rank); got {got}"
    )


def test_a_foreign_base_of_another_size_is_an_error():
    base = case("foreign")[0]
    with pytest.raises(UsageError, match="base with out_features 7"):
        lora_forward(base, torch.ones(5, 65), torch.ones(8, 65), torch.ones(9, 8), 1.0)
