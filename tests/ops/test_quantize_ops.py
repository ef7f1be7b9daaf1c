"""quantize_per_token and quantize_per_channel, at each instruction set."""

import math

import pytest
import torch
from op_subjects import DEVICE, ROWS, SIZES, randn

from ftrt.ops import quantize_per_channel, quantize_per_token
from ftrt.quantization.affine import choose_qparams, quantize
from ftrt.quantization.granularity import PerChannel

DTYPES = [torch.float32, torch.bfloat16]


def check_rows(q, scale, rows):
    """q and scale are the quantization of `rows`, up to a rounding of x / scale next to a half."""
    assert q.dtype == torch.int8 and scale.dtype == torch.float32 and q.is_contiguous()
    assert q.shape == rows.shape and scale.shape == rows.shape[:1]
    rows = rows.double()
    absmax = rows.abs().amax(1)
    assert torch.allclose(scale.double(), torch.where(absmax == 0, 1.0, absmax / 127), rtol=1e-6)
    exact = rows / scale.double()[:, None]
    assert ((q.double() - exact).abs() <= 0.5 + 127 * 2**-22).all()
    assert q.min() >= -127 if q.numel() else True
    assert (q.double().abs().amax(1)[absmax > 0] == 127).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("in_features", [1, 7, 16, 65, 111, 129])
def test_token_rows_are_rounded_to_their_own_scale(isa, dtype, in_features):
    for rows in ROWS:
        x = randn(rows, in_features, dtype=dtype) * randn(rows, 1, seed=2).exp().to(dtype)
        check_rows(*quantize_per_token(x), x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_channels_are_those_of_the_quantization_package(isa, dtype, size):
    weight = randn(*size, dtype=dtype)
    q, scale = quantize_per_channel(weight)
    check_rows(q, scale[:, 0], weight)
    assert torch.equal(scale, choose_qparams(weight, PerChannel()))
    assert (q.int() - quantize(weight, scale).int()).abs().max() <= 1
    assert scale.shape == (size[0], 1)


def test_halves_are_rounded_to_even(isa):
    # The scale is 1: quotients are exact.
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5]])
    q, scale = quantize_per_token(x)
    assert scale.item() == 1 and q.tolist() == [[127, 0, 2, 2, 0, -2, -2, 126]]


def test_a_number_and_its_negative_are_stored_alike(isa):
    x = randn(17, 65)
    assert torch.equal(quantize_per_token(-x)[0], -quantize_per_token(x)[0])


def test_zero_rows_have_scale_one(isa):
    x = randn(4, 33)
    x[1], x[2] = 0, 1e-44
    q, scale = quantize_per_token(x)
    # max / 127 of row 2 is less than the smallest float32
    assert scale[1] == 1 and scale[2] == 1 and not q[1:3].any()
    assert quantize_per_channel(x)[1][1] == 1


@pytest.mark.parametrize("outliers", [[0], [3, 40], [0, 1, 2, 64], list(range(65))])
@pytest.mark.parametrize("dtype", DTYPES)
def test_outlier_columns_are_zero_and_do_not_count(isa, dtype, outliers):
    x = randn(17, 65, dtype=dtype)
    columns = torch.tensor(outliers)
    x[:, columns] *= 100
    q, scale = quantize_per_token(x, columns)
    x[:, columns] = 0
    check_rows(q, scale, x)
    assert not q[:, columns].any()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_that_is_not_finite_has_a_scale_that_is_not(isa, dtype, bad):
    x = randn(9, 65, dtype=dtype)
    clean = quantize_per_token(x)
    x[3, 17] = bad
    q, scale = quantize_per_token(x)
    assert not scale[3].isfinite()
    others = [0, 1, 2, 4, 5, 6, 7, 8]
    assert torch.equal(q[others], clean[0][others])
    assert torch.equal(scale[others], clean[1][others])
    # nothing computed from the row may be finite
    assert (q[3].double() * scale[3].double()).isnan().all()


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
def test_any_layout_gives_rows(isa, x):
    q, scale = quantize_per_token(x)
    rows = x.reshape(-1, 65)
    assert q.shape == rows.shape and q.is_contiguous()
    expected = quantize_per_token(rows.contiguous())
    assert torch.equal(q, expected[0]) and torch.equal(scale, expected[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_references_take_every_float(reference, dtype):
    x = randn(17, 65, dtype=dtype)
    check_rows(*quantize_per_token(x), x)
    q, scale = quantize_per_channel(x)
    check_rows(q, scale[:, 0], x)


def test_nothing_is_differentiable():
    x = randn(3, 65).requires_grad_()
    for result in (*quantize_per_token(x), *quantize_per_channel(x)):
        assert not result.requires_grad


def test_autocast_quantizes_what_the_linear_layers_compute_with():
    x = randn(7, 65)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        q, scale = quantize_per_token(x)
        raw = torch.ops.ftrt.quantize_per_token(x, None)
    expected = quantize_per_token(x.bfloat16())
    for got in ((q, scale), raw):
        assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])


@pytest.mark.parametrize("outliers", [None, [3, 40]])
def test_opcheck(outliers):
    columns = None if outliers is None else torch.tensor(outliers)
    for x in (randn(2, 7, 65), randn(65, 7).t()):
        torch.library.opcheck(torch.ops.ftrt.quantize_per_token.default, (x, columns))
    for weight in (randn(17, 65), randn(65, 17).t()):
        torch.library.opcheck(torch.ops.ftrt.quantize_per_channel.default, (weight,))


@pytest.mark.parametrize(
    ("run", "text"),
    [
        (
            lambda: quantize_per_token(torch.tensor(1.0)),
            "ftrt::quantize_per_token: x must be (..., in_features) with in_features at least 1;"
            " got x () float32",
        ),
        (
            lambda: quantize_per_token(torch.ones(3, 0)),
            "ftrt::quantize_per_token: x must be (..., in_features) with in_features at least 1;"
            " got x (3, 0) float32",
        ),
        (
            lambda: quantize_per_token(torch.ones(3, 4, dtype=torch.int32)),
            "ftrt::quantize_per_token: x must be float32, bfloat16, float16 or float64; got x (3,"
            " 4) int32",
        ),
        (
            lambda: quantize_per_token(torch.ones(3, 4), torch.tensor([1.0])),
            "ftrt::quantize_per_token: outliers must be (columns) int64; got outliers (1,) float32",
        ),
        (
            lambda: quantize_per_channel(torch.ones(3)),
            "ftrt::quantize_per_channel: weight must be (out_features, in_features) with"
            " in_features at least 1; got weight (3,) float32",
        ),
        (
            lambda: quantize_per_channel(torch.ones(3, 4, dtype=torch.int8)),
            "ftrt::quantize_per_channel: weight must be float32, bfloat16, float16 or float64; got"
            " weight (3, 4) int8",
        ),
    ],
)
def test_what_is_no_float_matrix_is_an_error_with_its_shape(reference, run, text):
    with pytest.raises(RuntimeError) as caught:
        run()
    assert text in str(caught.value)
