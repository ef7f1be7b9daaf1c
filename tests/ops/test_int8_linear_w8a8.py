"""int8_linear and int8_linear_dx with both sides in int8, at each ISA."""

import pytest
import torch
from op_subjects import DEVICE, DTYPES, ROWS, SIZES, Sum, randn, weight_of

from ftrt.ops import (
    int8_linear,
    int8_linear_dx,
    pack_int8,
    quantize_per_channel,
    quantize_per_token,
)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("share", [0, 3])
def test_the_integer_product_is_exact(isa, size, dtype, share):
    """y against float64 on the quantized x, to the precision of one rounding at the end."""
    out_features, in_features = size
    qweight, scale, weight = weight_of(*size)
    bias = randn(out_features, seed=2)
    outliers = torch.arange(0, in_features, share) if share else None
    for rows in ROWS:
        x = randn(rows, in_features, dtype=dtype)
        xq, xscale = quantize_per_token(x, outliers)
        y = int8_linear(x, qweight, scale, bias, compute="w8a8", outliers=outliers)
        assert y.dtype == dtype and y.shape == (rows, out_features)
        expected = Sum.of(xq.double() * xscale.double()[:, None], weight.T)
        if outliers is not None:
            expected += Sum.of(x.double()[:, outliers], weight.T[outliers])
        terms = 4 if outliers is None else 4 + len(outliers)
        (expected + Sum(bias.double(), 0)).check(y, k=terms, what=f"y, {rows}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_the_gradient_is_an_integer_product_of_the_folded_gradient(isa, size, dtype):
    qweight, scale, _ = weight_of(*size)
    for rows in ROWS:
        grad = randn(rows, size[0], dtype=dtype)
        dzq, dzscale = quantize_per_token(grad.float() * scale[:, 0])
        expected = Sum.of(dzq.double() * dzscale.double()[:, None], qweight.double())
        dx = int8_linear_dx(grad, qweight, scale, compute="w8a8")
        assert dx.dtype == dtype
        expected.check(dx, k=4, what=f"dx, {rows}")


def test_the_largest_sums_do_not_overflow(isa):
    # Every product is 127² or 127 · 128; a saturating or 16-bit sum would show at once.
    for in_features in (4, 64, 1030):
        q = torch.full((17, in_features), 127, dtype=torch.int8)
        q[1] = -128
        q[2, ::2] = -127
        x = torch.full((5, in_features), 127.0)
        x[1], x[2, 1::2] = -127.0, -127.0
        y = int8_linear(x, q, torch.ones(17, 1), compute="w8a8")
        assert torch.equal(y, (x.double() @ q.double().T).float())
        dx = int8_linear_dx(torch.full((3, 17), -127.0), q, torch.ones(17, 1), compute="w8a8")
        assert torch.equal(dx, (torch.full((3, 17), -127.0).double() @ q.double()).float())


def test_error_against_the_true_weight_on_gaussian_operands(isa):
    x, w, grad = randn(128, 768), randn(192, 768, seed=2), randn(128, 192, seed=3)
    qweight, scale = quantize_per_channel(w)
    y = int8_linear(x, qweight, scale, compute="w8a8").double()
    exact = x.double() @ w.double().T
    assert (y - exact).norm() <= 1.5e-2 * exact.norm()
    dx = int8_linear_dx(grad, qweight, scale, compute="w8a8").double()
    exact = grad.double() @ w.double()
    assert (dx - exact).norm() <= 1.5e-2 * exact.norm()


def test_gradient_is_the_int8_product_and_the_bias_gets_its_own(isa):
    qweight, scale, _ = weight_of(11, 65)
    x, bias = randn(2, 7, 65).requires_grad_(), randn(11, seed=3).requires_grad_()
    grad = randn(2, 7, 11, seed=4)
    int8_linear(x, qweight, scale, bias, compute="w8a8").backward(grad)
    assert torch.equal(x.grad, int8_linear_dx(grad, qweight, scale, compute="w8a8"))
    torch.testing.assert_close(bias.grad, grad.sum((0, 1)))


def test_second_derivative_is_that_of_a_linear_map(isa):
    qweight, scale, _ = weight_of(11, 65)
    grad, cotangent = randn(3, 11).requires_grad_(), randn(3, 65, seed=5)
    int8_linear_dx(grad, qweight, scale, compute="w8a8").backward(cotangent)
    assert torch.equal(grad.grad, int8_linear(cotangent, qweight, scale, compute="w8a8"))


def test_neither_x_nor_its_int8_form_is_kept(isa):
    qweight, scale, _ = weight_of(11, 65)
    packed, kept = pack_int8(qweight), []
    x = randn(3, 65).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        int8_linear(x, packed, scale, compute="w8a8")
    assert {t.data_ptr() for t in kept} == {packed.data_ptr(), scale.data_ptr()}


@pytest.mark.parametrize("outliers", [None, (3, 40)])
def test_a_shared_quantized_x_gives_the_same(isa, outliers):
    columns = None if outliers is None else torch.tensor(outliers)
    x = randn(2, 7, 65)
    quantized = quantize_per_token(x, columns)
    for seed in (0, 1):
        qweight, scale, _ = weight_of(33, 65, seed=seed)
        alone = int8_linear(x, qweight, scale, compute="w8a8", outliers=columns)
        shared = int8_linear(
            x, qweight, scale, compute="w8a8", outliers=columns, quantized=quantized
        )
        assert torch.equal(alone, shared)


def test_autocast_quantizes_x_in_the_autocast_dtype(isa):
    qweight, scale, _ = weight_of(11, 65)
    x = randn(3, 65).requires_grad_()
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        y = int8_linear(x, qweight, scale, compute="w8a8")
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, int8_linear(x.bfloat16(), qweight, scale, compute="w8a8"))
    y.float().sum().backward()
    assert x.grad.dtype == torch.float32


@pytest.mark.parametrize("outliers", [None, (3, 40)])
def test_opcheck(outliers):
    qweight, scale, _ = weight_of(11, 65)
    packed, columns = pack_int8(qweight), None if outliers is None else torch.tensor(outliers)
    x, bias = randn(2, 3, 65).requires_grad_(), randn(11).requires_grad_()
    xq, xscale = quantize_per_token(x, columns)
    forward = torch.ops.ftrt.int8_linear.default
    torch.library.opcheck(forward, (x, xq, xscale, packed, scale, bias, columns))
    backward = torch.ops.ftrt.int8_linear_dx.default
    torch.library.opcheck(backward, (randn(2, 3, 11), packed, scale, 65, True))


@pytest.mark.parametrize("autocast", [False, True])
def test_compiles_as_one_graph_whatever_the_number_of_rows(autocast):
    qweight, scale, _ = weight_of(11, 65)
    packed, outliers = pack_int8(qweight), torch.tensor([3, 40])

    def step(x, bias):
        with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=autocast):
            y = int8_linear(x, packed, scale, bias, compute="w8a8", outliers=outliers)
            return torch.nn.functional.gelu(y).float().sum()

    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (3, 8, 21):
        results = []
        for run in (step, compiled):
            x, bias = randn(rows, 65).requires_grad_(), randn(11).requires_grad_()
            run(x, bias).backward()
            results.append((x.grad, bias.grad))
        for got, want in zip(*results, strict=True):
            assert torch.equal(got, want)
