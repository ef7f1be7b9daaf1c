"""Custom operators: schema, fake, reference and autograd in Python, faster implementations from
`ftrt._C` for CPU tensors and from `ftrt.ops.cuda` for CUDA tensors.

Importing this package loads `ftrt._C` if it is built; `implementation_report()` says what runs, and
why.
"""

__all__ = [
    "MAX_RANK",
    "computed_dtype",
    "dequantize_weight",
    "draw_seed",
    "implementation_report",
    "int8_linear",
    "int8_linear_dx",
    "int8_lora_linear",
    "lora_linear",
    "pack_int8",
    "quantize_per_channel",
    "quantize_per_token",
    "unpack_int8",
]

import ftrt.ops.cuda  # noqa: F401 - registers implementations
from ftrt.ops.autocast import computed_dtype
from ftrt.ops.checks import MAX_RANK
from ftrt.ops.dropout import draw_seed
from ftrt.ops.extension import implementation_report
from ftrt.ops.int8_linear import int8_linear, int8_linear_dx
from ftrt.ops.int8_lora_linear import int8_lora_linear
from ftrt.ops.lora_linear import lora_linear
from ftrt.ops.packing import dequantize_weight, pack_int8, unpack_int8
from ftrt.ops.quantize_per_channel import quantize_per_channel
from ftrt.ops.quantize_per_token import quantize_per_token
