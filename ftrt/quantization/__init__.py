"""int8 weights: how scales are chosen, the layer that holds them, converting a model and back."""

__all__ = [
    "Granularity",
    "Int8Linear",
    "PerChannel",
    "PerGroup",
    "choose_qparams",
    "dequantize",
    "dequantize_linears",
    "quantize",
    "quantize_linears",
]

from ftrt.quantization.affine import choose_qparams, dequantize, quantize
from ftrt.quantization.convert import dequantize_linears, quantize_linears
from ftrt.quantization.granularity import Granularity, PerChannel, PerGroup
from ftrt.quantization.int8_linear import Int8Linear
