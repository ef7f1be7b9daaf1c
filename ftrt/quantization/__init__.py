"""int8 weights: how scales are chosen, the layer that holds them, converting a model and back,
calibration of what multiplies int8 by int8.
"""

__all__ = [
    "Granularity",
    "Int8Linear",
    "LayerChoice",
    "PerChannel",
    "PerGroup",
    "calibrate",
    "choose_qparams",
    "dequantize",
    "dequantize_linears",
    "quantize",
    "quantize_linears",
]

from ftrt.quantization.affine import choose_qparams, dequantize, quantize
from ftrt.quantization.calibration import calibrate
from ftrt.quantization.choices import LayerChoice
from ftrt.quantization.convert import dequantize_linears, quantize_linears
from ftrt.quantization.granularity import Granularity, PerChannel, PerGroup
from ftrt.quantization.int8_linear import Int8Linear
