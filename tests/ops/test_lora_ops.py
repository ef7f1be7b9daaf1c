"""lora_linear and int8_lora_linear: values and gradients against float64, at each ISA."""

import pytest
import torch
from op_subjects import (
    COMPUTES,
    DTYPES,
    RANKS,
    ROWS,
    SCALING,
    SIZES,
    check_layer,
    layer_of,
    randn,
)

from ftrt.ops import int8_lora_linear, lora_linear, quantize_per_channel, quantize_per_token


@pytest.mark.parametrize("compute", COMPUTES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_values_and_gradients_are_those_of_float64(isa, size, dtype, compute):
    bias = size[0] % 2 == 1
    layer = layer_of(compute, *size, 8, dtype=dtype, bias=bias)
    for rows in ROWS:
        check_layer(layer, randn(rows, size[1], dtype=dtype))


@pytest.mark.parametrize("compute", COMPUTES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", RANKS)
def test_any_rank(isa, rank, dtype, compute):
    layer = layer_of(compute, 33, 65, rank, dtype=dtype)
    for rows in (1, 17, 65):
        check_layer(layer, randn(rows, 65, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("outliers", [(0,), (3, 40), tuple(range(0, 65, 3)), tuple(range(65))])
def test_outlier_columns_are_exact(isa, outliers, dtype):
    layer = layer_of("w8a8", 33, 65, 8, dtype=dtype, outliers=outliers)
    for rows in (0, 1, 17, 65):
        x = randn(rows, 65, dtype=dtype)
        x[:, layer.outliers] *= 30
        check_layer(layer, x)


@pytest.mark.parametrize("compute", COMPUTES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dropout", [0.1, 0.5])
def test_dropout_is_on_the_update_alone(isa, dropout, dtype, compute):
    layer = layer_of(compute, 33, 65, 8, dtype=dtype, dropout=dropout, outliers=(2, 64))
    for rows in (0, 1, 17, 65):
        check_layer(layer, randn(rows, 65, dtype=dtype))


@pytest.mark.parametrize("groups", [5, 13])
@pytest.mark.parametrize("dtype", DTYPES)
def test_scales_per_group(isa, groups, dtype):
    check_layer(layer_of("w8a16", 33, 65, 8, dtype=dtype, groups=groups), randn(17, 65).to(dtype))


@pytest.mark.parametrize("compute", COMPUTES)
@pytest.mark.parametrize(
    "x",
    [
        randn(2, 3, 65),
        randn(65),
        randn(65, 12).t(),
        randn(40, 65)[::3],
        randn(9, 130)[:, ::2],
        randn(1, 65).expand(5, 65),
        randn(4, 65, 3).transpose(1, 2),
        randn(2, 0, 65),
    ],
    ids=["3-D", "1-D", "transposed", "rows", "columns", "expanded", "batch", "empty"],
)
def test_any_layout_of_x(isa, x, compute):
    check_layer(layer_of(compute, 17, 65, 8, outliers=(3, 40), dropout=0.25), x)


@pytest.mark.parametrize("compute", COMPUTES)
def test_any_layout_of_everything_else(isa, compute):
    layer = layer_of(compute, 17, 64, 8)
    x, grad = randn(9, 64), randn(9, 17, seed=5)
    a, b = layer.a.detach(), layer.b.detach()
    plain = torch.autograd.grad(layer(x), [layer.a, layer.b], grad)
    odd_a = a.t().contiguous().t().requires_grad_()
    odd_b = torch.stack([b, b], 2)[..., 0].requires_grad_()
    odd_grad = grad.t().contiguous().t()
    layer.float_weight = layer.float_weight.t().contiguous().t()
    bias = layer.bias.detach().repeat_interleave(2)[::2]
    odd = torch.autograd.grad(layer(x, a=odd_a, b=odd_b, bias=bias), [odd_a, odd_b], odd_grad)
    for got, want in zip(odd, plain, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    expanded = torch.autograd.grad(layer(x).sum(), [layer.a, layer.b])
    ones = torch.autograd.grad(layer(x), [layer.a, layer.b], torch.ones(9, 17))
    for got, want in zip(expanded, ones, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


# Relative Frobenius error of y against float64: of the float layer, of the dequantized weight, and
# of the weight before it was quantized.
BOUNDS = {
    ("float", torch.float32): 1e-5,
    ("float", torch.bfloat16): 5e-3,
    ("float", torch.float16): 1e-3,
    ("w8a16", torch.float32): 1e-5,
    ("w8a16", torch.bfloat16): 4e-3,
    ("w8a16", torch.float16): 1e-3,
    ("w8a8", torch.float32): 1.5e-2,
    ("w8a8", torch.bfloat16): 1.5e-2,
    ("w8a8", torch.float16): 1.5e-2,
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("compute", COMPUTES)
def test_accuracy_on_gaussian_operands(isa, compute, dtype):
    rows, in_features, out_features, rank = 128, 512, 192, 16
    x, w = randn(rows, in_features, dtype=dtype), randn(out_features, in_features, seed=2)
    w = w / in_features**0.5
    a = (randn(rank, in_features, seed=3) / in_features**0.5).to(dtype).requires_grad_()
    b = randn(out_features, rank, seed=4, dtype=dtype).requires_grad_()
    x.requires_grad_()
    grad = randn(rows, out_features, seed=5, dtype=dtype)
    if compute == "float":
        weight = w.to(dtype)
        y = lora_linear(x, weight, None, a, b, SCALING)
        exact = weight.double()
    else:
        qweight, scale = quantize_per_channel(w)
        y = int8_lora_linear(x, qweight, scale, None, a, b, SCALING, compute=compute)
        exact = w.double() if compute == "w8a8" else qweight.double() * scale.double()
    y.backward(grad)
    xd, ad, bd = (t.detach().double().requires_grad_() for t in (x, a, b))
    expected = xd @ exact.T + SCALING * (xd @ ad.T) @ bd.T
    expected.backward(grad.double())
    bound = BOUNDS[compute, dtype]
    assert (y.double() - expected).norm() <= bound * expected.norm()
    assert (x.grad.double() - xd.grad).norm() <= 2 * bound * xd.grad.norm()
    for got, want in ((a.grad, ad.grad), (b.grad, bd.grad)):
        cosine = torch.nn.functional.cosine_similarity(got.double().ravel(), want.ravel(), dim=0)
        assert cosine >= 0.999


def test_outliers_save_the_accuracy_that_they_cost(isa):
    # Six columns 60 times as large as the others, design/kernels.md section 3.5.
    x, w = randn(64, 512), randn(96, 512, seed=2)
    columns = torch.arange(0, 512, 86)
    x[:, columns] *= 60
    qweight, scale = quantize_per_channel(w)
    exact = x.double() @ w.double().T
    a, b = torch.zeros(1, 512), torch.zeros(96, 1)
    errors = []
    for outliers in (None, columns):
        y = int8_lora_linear(
            x, qweight, scale, None, a, b, SCALING, compute="w8a8", outliers=outliers
        )
        errors.append(((y.double() - exact).norm() / exact.norm()).item())
    assert errors[0] > 3e-2 and errors[1] < 1.5e-2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("compute", COMPUTES)
def test_not_a_number_stays_in_its_row(isa, compute, dtype):
    layer = layer_of(compute, 33, 129, 8, dtype=dtype, outliers=(5,))
    x = randn(9, 129, dtype=dtype)
    clean = layer(x)
    x[3, 17], x[5, 2], x[7, 5] = float("nan"), float("inf"), float("nan")
    y = layer(x)
    assert y[3].isnan().all() and y[7].isnan().all() and not y[5].isfinite().any()
    others = [0, 1, 2, 4, 6, 8]
    assert torch.equal(y[others], clean[others])


@pytest.mark.parametrize("compute", ["w8a16", "w8a8"])
def test_packed_and_row_major_weights_are_the_same(isa, compute):
    from ftrt.ops import pack_int8

    layer = layer_of(compute, 33, 65, 8)
    x = randn(17, 65)
    y = layer(x)
    layer.qweight = pack_int8(layer.qweight)
    assert torch.equal(layer(x), y)


def test_a_shared_quantized_x_gives_the_same(isa):
    layer = layer_of("w8a8", 33, 65, 8, outliers=(3, 40))
    x = randn(2, 9, 65)
    assert torch.equal(layer(x, quantized=quantize_per_token(x, layer.outliers)), layer(x))
