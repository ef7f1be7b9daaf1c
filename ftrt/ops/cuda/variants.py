"""The variants of the kernels that are launched, each made once.

A backend finds what it has loaded by the identity of the `Kernel`.
"""

__all__ = [
    "gemm_kernel",
    "pack_factor_kernel",
    "project_kernel",
    "quantize_kernel",
    "scale_kernel",
    "thin_gradient_kernel",
    "unpack_kernel",
]

import functools

import torch

from ftrt.kernels.catalog import (
    ELEMENT_NAMES,
    PACK_FACTOR,
    QUANTIZE_PROJECT,
    QUANTIZE_ROWS,
    THIN_GRADIENT,
    UNPACK,
)
from ftrt.kernels.gemm import scale_product, w8a8_gemm
from ftrt.kernels.kernel import Kernel

gemm_kernel = functools.cache(w8a8_gemm)
scale_kernel = functools.cache(scale_product)


@functools.cache
def quantize_kernel(dtype: torch.dtype) -> Kernel:
    """Of x."""
    return QUANTIZE_ROWS.variant(FTRT_ELEMENT=ELEMENT_NAMES[dtype], FTRT_FRONT="none")


@functools.cache
def project_kernel(dtype: torch.dtype) -> Kernel:
    """Of x, float16 or bfloat16."""
    return QUANTIZE_PROJECT.variant(FTRT_ELEMENT=ELEMENT_NAMES[dtype])


@functools.cache
def thin_gradient_kernel(source: torch.dtype, dtype: torch.dtype) -> Kernel:
    """Of x with dtype `source`, multiplied in float16 or bfloat16."""
    names = {"FTRT_INPUT": ELEMENT_NAMES[source], "FTRT_ELEMENT": ELEMENT_NAMES[dtype]}
    return THIN_GRADIENT.variant(**names)


@functools.cache
def unpack_kernel(dtype: torch.dtype, *, transpose: bool) -> Kernel:
    """Of the result."""
    return UNPACK.variant(FTRT_OUTPUT=ELEMENT_NAMES[dtype], FTRT_TRANSPOSE=int(transpose))


@functools.cache
def pack_factor_kernel(source: torch.dtype, dtype: torch.dtype) -> Kernel:
    """Of a factor with dtype `source`, packed in float16 or bfloat16."""
    names = {"FTRT_SOURCE": ELEMENT_NAMES[source], "FTRT_ELEMENT": ELEMENT_NAMES[dtype]}
    return PACK_FACTOR.variant(**names)
