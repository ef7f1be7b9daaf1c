"""Operand checks of the ops' reference and fake kernels, with the texts of
`csrc/bindings/checks.h`.

Ops raise RuntimeError, as torch's own do; the compiled kernels can raise nothing else.
"""

__all__ = ["check_bias", "check_features", "check_weight", "describe", "fail"]

from typing import NoReturn

import torch
from torch import Tensor


def describe(name: str, tensor: Tensor) -> str:
    """Name, shape and dtype as error messages give them: `x (2, 3) float32`."""
    return f"{name} {tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def fail(op: str, rule: str, got: str) -> NoReturn:
    raise RuntimeError(f"{op}: {rule}; got {got}")


def check_weight(op: str, qweight: Tensor, scale: Tensor) -> None:
    """qweight is (out_features, in_features) int8, scale (out_features, groups) float32."""
    got = f"{describe('qweight', qweight)}, {describe('scale', scale)}"
    if qweight.dim() != 2 or qweight.dtype != torch.int8 or not qweight.is_contiguous():
        fail(op, "qweight must be (out_features, in_features) int8, contiguous", got)
    if scale.dim() != 2 or scale.dtype != torch.float32 or not scale.is_contiguous():
        fail(op, "scale must be (out_features, groups) float32, contiguous", got)
    if scale.shape[0] != qweight.shape[0]:
        fail(op, "scale and qweight must have the same out_features", got)
    if qweight.shape[1] == 0:
        fail(op, "in_features must be at least 1", got)
    if scale.shape[1] == 0 or qweight.shape[1] % scale.shape[1] != 0:
        fail(op, "groups must divide in_features", got)


def check_features(op: str, name: str, x: Tensor, what: str, qweight: Tensor) -> None:
    """The last dimension of `x` is the weight's `what`, in_features or out_features."""
    features = qweight.shape[1 if what == "in_features" else 0]
    if x.dim() == 0 or x.shape[-1] != features:
        got = f"{describe(name, x)}, {describe('qweight', qweight)}"
        fail(op, f"the last dimension of {name} must be {what}", got)
    if not x.is_floating_point():
        got = describe(name, x)
        fail(op, f"{name} must be float32, bfloat16, float16 or float64", got)


def check_bias(op: str, bias: Tensor, out_features: int) -> None:
    if bias.dim() != 1 or bias.shape[0] != out_features:
        fail(
            op,
            "bias must be (out_features)",
            f"{describe('bias', bias)}, out_features {out_features}",
        )
