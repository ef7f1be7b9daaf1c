"""The compiled ops with operands that the Python functions do not hand them, and ceilings."""

import pytest
import torch

import ftrt.ops
from ftrt.ops.extension import EXTENSION

pytestmark = pytest.mark.skipif(EXTENSION.module is None, reason="ftrt._C is not built")

OPS = torch.ops.ftrt
MAX_DEPTH = (1 << 17) - 1


def packed(out_features, in_features):
    q = torch.randint(-127, 128, (out_features, in_features), dtype=torch.int8)
    return ftrt.ops.pack_int8(q), torch.rand(out_features, 1), q


def test_w8a8_refuses_sums_that_int32_cannot_hold():
    x = torch.ones(2, MAX_DEPTH + 4)
    qweight, scale, _ = packed(3, MAX_DEPTH + 4)
    xq, xscale = OPS.quantize_per_token(x, None)
    with pytest.raises(RuntimeError, match=r"int8_linear: w8a8 sums in int32.* in_features 131075"):
        OPS.int8_linear(x, xq, xscale, qweight, scale, None, None)
    OPS.int8_linear(x, None, None, qweight, scale, None, None)


def test_the_gradient_of_w8a8_refuses_them_too():
    qweight, scale, _ = packed(MAX_DEPTH + 1, 3)
    grad = torch.ones(1, MAX_DEPTH + 1)
    with pytest.raises(RuntimeError, match=r"int8_linear_dx: w8a8 sums.* out_features 131072"):
        OPS.int8_linear_dx(grad, qweight, scale, 3, True)
    OPS.int8_linear_dx(grad, qweight, scale, 3, False)


def test_the_longest_sum_is_exact():
    q = torch.full((1, MAX_DEPTH), -128, dtype=torch.int8)
    x = torch.full((1, MAX_DEPTH), 127.0)
    xq, xscale = OPS.quantize_per_token(x, None)
    y = OPS.int8_linear(x, xq, xscale, ftrt.ops.pack_int8(q), torch.ones(1, 1), None, None)
    assert y.item() == -128 * 127 * MAX_DEPTH


def test_outliers_may_be_strided():
    x = torch.randn(5, 40)
    qweight, scale, _ = packed(17, 40)
    columns = torch.tensor([3, 99, 20, 99, 31, 99])[::2]
    xq, xscale = OPS.quantize_per_token(x, columns)
    assert not xq[:, [3, 20, 31]].any()
    y = OPS.int8_linear(x, xq, xscale, qweight, scale, None, columns)
    assert torch.equal(y, OPS.int8_linear(x, xq, xscale, qweight, scale, None, columns.clone()))


def test_w8a16_multiplies_outliers_once():
    x = torch.randn(5, 40)
    qweight, scale, q = packed(17, 40)
    y = OPS.int8_linear(x, None, None, qweight, scale, None, torch.tensor([3, 20]))
    torch.testing.assert_close(y, x @ (q * scale).T, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("quantize", [False, True])
def test_a_layer_without_outputs_has_zero_gradients(quantize):
    qweight, scale, _ = packed(0, 8)
    dx = OPS.int8_linear_dx(torch.ones(3, 2, 0), qweight, scale, 8, quantize)
    assert torch.equal(dx, torch.zeros(3, 2, 8))


@pytest.fixture(params=EXTENSION.module.usable_isas() if EXTENSION.module else [])
def level(request):
    kept = EXTENSION.module.chosen_isa()
    EXTENSION.module.set_isa(request.param)
    yield request.param
    EXTENSION.module.set_isa(kept)


def test_ceilings_are_measured_at_the_chosen_level(level):
    measure = EXTENSION.module.measure_ceiling
    assert measure("int8", 1, 0.01) > 1e8 and measure("fp32", 2, 0.01) > 1e8
    if level in ("avx512_bf16", "amx"):
        assert measure("bf16", 1, 0.01) > 1e8
    else:
        with pytest.raises(ValueError, match=f"got kind 'bf16' at level '{level}'"):
            measure("bf16", 1, 0.01)


def test_the_memory_is_read():
    assert 1e8 < EXTENSION.module.measure_ceiling("read", 2, 0.05) < 1e13


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("fp8", 1, 0.1), "kind must be int8, bf16, fp32 or read; got 'fp8'"),
        (("int8", 0, 0.1), "threads must be 1 to 1024 and seconds above 0; got 0, 0.1"),
        (("read", 1, 0.0), "threads must be 1 to 1024 and seconds above 0; got 1, 0.0"),
    ],
)
def test_impossible_ceilings_are_errors(arguments, text):
    with pytest.raises(ValueError, match=text):
        EXTENSION.module.measure_ceiling(*arguments)
