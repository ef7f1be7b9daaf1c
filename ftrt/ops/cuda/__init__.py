"""The int8 ops on CUDA tensors: torch-side orchestration of the kernels in csrc/cuda.

Nothing here waits for a device, and memory comes from torch alone, so that CUDA graphs capture all
of it. Each op raises as its reference does, with the same texts.

Importing this package registers the ops for CUDA tensors, unless `FTRT_CUDA` is "reference".
"""

__all__ = ["IMPLEMENTATIONS"]

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from ftrt.ops.cuda.int8_linear import int8_linear, int8_linear_dx
from ftrt.ops.cuda.int8_lora_linear import (
    int8_lora_linear,
    int8_lora_linear_backward,
    w8a8_lora_linear,
)
from ftrt.ops.cuda.quantize import quantize_per_channel, quantize_per_token
from ftrt.ops.extension import CUDA_OPS
from ftrt.ops.registration import register_cuda

# Name of each op -> its implementation.
IMPLEMENTATIONS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "quantize_per_channel": quantize_per_channel,
        "quantize_per_token": quantize_per_token,
        "int8_linear": int8_linear,
        "int8_linear_dx": int8_linear_dx,
        "int8_lora_linear": int8_lora_linear,
        "int8_lora_linear_backward": int8_lora_linear_backward,
        "w8a8_lora_linear": w8a8_lora_linear,
    }
)

if CUDA_OPS == "kernels":
    for _name, _implementation in IMPLEMENTATIONS.items():
        register_cuda(_name, _implementation)
