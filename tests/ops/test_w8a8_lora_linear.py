"""ftrt::w8a8_lora_linear is quantize_per_token and int8_lora_linear, wherever it runs."""

import pytest
import torch
from op_subjects import CUDA_PLACE, DEVICE, DTYPES, SCALING, layer_of, randn
from torch.utils._python_dispatch import TorchDispatchMode

from ftrt.ops import pack_int8, quantize_per_token

OPS = torch.ops.ftrt


def operands(layer, x):
    """What the op takes, with x."""
    first = (x, pack_int8(layer.qweight), layer.scale, layer.bias, layer.a, layer.b, SCALING)
    return *first, layer.outliers, layer.dropout, layer.seed


def pair(layer, x):
    """(y, h, xq, xscale) of the two ops that it stands for."""
    xq, xscale = quantize_per_token(x, layer.outliers)
    y, hidden = OPS.int8_lora_linear(x, xq, xscale, *operands(layer, x)[1:])
    return y, hidden, xq, xscale


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("outliers", [(), (3, 40)])
@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_values_and_gradients_are_those_of_two_ops(isa, dropout, outliers, dtype):
    layer = layer_of("w8a8", 33, 65, 8, dtype=dtype, outliers=outliers, dropout=dropout)
    for rows in (0, 1, 17, 65):
        x = randn(rows, 65, dtype=dtype).requires_grad_()
        leaves, results = [x, layer.a, layer.b, layer.bias], []
        for values in (OPS.w8a8_lora_linear(*operands(layer, x)), pair(layer, x)):
            grad = randn(rows, 33, dtype=dtype, seed=5)
            results.append([*values, *torch.autograd.grad(values[0], leaves, grad)])
        for got, want in zip(*results, strict=True):
            assert got.dtype == want.dtype and torch.equal(got, want)


@pytest.mark.parametrize("outliers", [(), (3, 40)])
def test_opcheck(outliers):
    layer = layer_of("w8a8", 17, 65, 8, outliers=outliers, dropout=0.25)
    x = randn(2, 3, 65).requires_grad_()
    torch.library.opcheck(OPS.w8a8_lora_linear.default, operands(layer, x))


def test_autocast_quantizes_x_in_the_autocast_dtype(isa):
    layer = layer_of("w8a8", 17, 65, 8)
    x = randn(5, 65)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        y, _, xq, _ = OPS.w8a8_lora_linear(*operands(layer, x))
    assert y.dtype == torch.bfloat16
    assert torch.equal(xq, quantize_per_token(x.bfloat16())[0])


class Spy(TorchDispatchMode):
    """Names of ftrt's ops, as they run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, op, types, arguments=(), options=None):
        if op.namespace == "ftrt":
            self.names.append(op.name().removeprefix("ftrt::"))
        return op(*arguments, **(options or {}))


def test_a_layer_takes_it_where_one_kernel_does_both():
    layer = layer_of("w8a8", 17, 65, 8, dtype=torch.bfloat16)
    x = randn(5, 65, dtype=torch.bfloat16)
    with Spy() as spy:
        layer(x)
    two = ["quantize_per_token", "int8_lora_linear"]
    assert spy.names == (["w8a8_lora_linear"] if CUDA_PLACE else two)
    with Spy() as spy:
        layer(x, quantized=quantize_per_token(x, layer.outliers))
    assert spy.names == two


def test_errors_are_those_of_the_layer(isa):
    layer = layer_of("w8a8", 17, 65, 8, groups=5)
    with pytest.raises(RuntimeError) as caught:
        OPS.w8a8_lora_linear(*operands(layer, randn(5, 65)))
    assert str(caught.value) == (
        "ftrt::int8_lora_linear: w8a8 needs one scale per output feature; got scale (17, 5) float32"
    )
