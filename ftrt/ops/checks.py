"""Operand checks of the ops' reference and fake kernels, with the texts of
`csrc/bindings/checks.h`.

Ops raise RuntimeError, as torch's own do; the compiled kernels can raise nothing else.
"""

__all__ = [
    "MAX_RANK",
    "check_bias",
    "check_columns",
    "check_compute",
    "check_dropout",
    "check_factors",
    "check_features",
    "check_float",
    "check_float_weight",
    "check_given_together",
    "check_hidden",
    "check_int8_depth",
    "check_outliers",
    "check_per_channel",
    "check_quantized",
    "check_row_major",
    "check_saved_input",
    "check_weight",
    "describe",
    "fail",
]

import math
from typing import NoReturn

import torch
from torch import Tensor

# Up to here the low-rank part fits into the epilogue of a tile.
MAX_RANK = 256

# An int32 holds the sum of so many products of -128 and -128.
MAX_INT8_DEPTH = (2**31 - 1) // 128**2


def describe(name: str, tensor: Tensor) -> str:
    """Name, shape and dtype as error messages give them: `x (2, 3) float32`."""
    return f"{name} {tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def fail(op: str, rule: str, got: str) -> NoReturn:
    raise RuntimeError(f"{op}: {rule}; got {got}")


def check_weight(op: str, qweight: Tensor, scale: Tensor, in_features: int) -> None:
    """qweight is packed int8 and scale (out_features, groups) float32, of a weight with
    in_features."""
    got = f"{describe('qweight', qweight)}, {describe('scale', scale)}"
    if qweight.dim() != 4 or qweight.shape[2:] != (16, 4) or qweight.dtype != torch.int8:
        fail(op, "qweight must be int8, packed as (out_features / 16, in_features / 4, 16, 4)", got)
    if not qweight.is_contiguous():
        fail(op, "qweight must be contiguous", got)
    if scale.dim() != 2 or scale.dtype != torch.float32 or not scale.is_contiguous():
        fail(op, "scale must be (out_features, groups) float32, contiguous", got)
    if (scale.shape[0] + 15) // 16 != qweight.shape[0]:
        fail(op, "scale and qweight must have the same out_features", got)
    if in_features == 0:
        fail(op, "in_features must be at least 1", got)
    if (in_features + 3) // 4 != qweight.shape[1]:
        got = f"in_features {in_features}, {describe('qweight', qweight)}"
        fail(op, "qweight must have in_features input features", got)
    if scale.shape[1] == 0 or in_features % scale.shape[1] != 0:
        fail(op, "groups must divide in_features", f"in_features {in_features}, {got}")


def check_per_channel(op: str, scale: Tensor) -> None:
    if scale.shape[1] != 1:
        fail(op, "w8a8 needs one scale per output feature", describe("scale", scale))


def check_row_major(op: str, qweight: Tensor, in_features: int) -> None:
    """qweight, given as a matrix, is (out_features, in_features) int8."""
    if qweight.dim() != 2 or qweight.dtype != torch.int8:
        rule = "qweight must be (out_features, in_features) int8, or packed by pack_int8"
        fail(op, rule, describe("qweight", qweight))
    if qweight.shape[1] != in_features:
        got = f"in_features {in_features}, {describe('qweight', qweight)}"
        fail(op, "the last dimension of x must be in_features", got)


def check_features(op: str, name: str, x: Tensor, what: str, *, fits: bool, of: Tensor) -> None:
    """`x` is floating point, and its last dimension is the weight's `what`.

    Args:
        what: in_features or out_features.
        fits: whether it is.
        of: the weight.
    """
    if x.dim() == 0 or not fits:
        name_of = "weight" if of.is_floating_point() else "qweight"
        got = f"{describe(name, x)}, {describe(name_of, of)}"
        fail(op, f"the last dimension of {name} must be {what}", got)
    check_float(op, name, x)


def check_float(op: str, name: str, x: Tensor) -> None:
    if not x.is_floating_point():
        fail(op, f"{name} must be float32, bfloat16, float16 or float64", describe(name, x))


def check_float_weight(op: str, name: str, x: Tensor, weight: Tensor) -> None:
    """weight is (out_features, in_features), in the dtype of `x`."""
    if weight.dim() != 2 or weight.shape[1] == 0:
        rule = "weight must be (out_features, in_features) with in_features at least 1"
        fail(op, rule, describe("weight", weight))
    check_float(op, name, x)
    if weight.dtype != x.dtype:
        got = f"{describe(name, x)}, {describe('weight', weight)}"
        fail(op, f"{name} and weight must have the same dtype", got)


def check_bias(op: str, bias: Tensor | None, out_features: int) -> None:
    if bias is not None and (bias.dim() != 1 or bias.shape[0] != out_features):
        got = f"{describe('bias', bias)}, out_features {out_features}"
        fail(op, "bias must be (out_features)", got)


def check_compute(op: str, compute: str) -> None:
    if compute not in ("w8a16", "w8a8"):
        fail(op, "compute must be w8a16 or w8a8", repr(compute))


def check_quantized(
    op: str,
    xq: Tensor | None,
    xscale: Tensor | None,
    scale: Tensor,
    *,
    rows: int,
    in_features: int,
) -> None:
    """xq (rows, in_features) int8 and xscale (rows) float32 are x quantized, or both None."""
    if xscale is None:
        if xq is not None:
            fail(op, "xq and xscale must be given together", f"{describe('xq', xq)}, xscale None")
        return
    check_per_channel(op, scale)
    check_int8_depth(op, "in_features", in_features)
    got = describe("xscale", xscale)
    if xq is not None:
        got = f"{describe('xq', xq)}, {got}"
        shape_ok = xq.dim() == 2 and xq.shape[0] == rows and xq.shape[1] == in_features
        if not shape_ok or xq.dtype != torch.int8 or not xq.is_contiguous():
            rule = "xq must be (rows, in_features) int8, contiguous, of the same x"
            fail(op, rule, f"{got}, rows {rows}, in_features {in_features}")
    if xscale.dim() != 1 or xscale.shape[0] != rows or xscale.dtype != torch.float32:
        fail(op, "xscale must be (rows) float32, of the same x", f"{got}, rows {rows}")


def check_given_together(op: str, xq: Tensor | None, xscale: Tensor | None) -> None:
    """A forward pass takes both or neither; a backward pass may do without xq."""
    if (xq is None) != (xscale is None):
        given = [
            f"{name} None" if tensor is None else describe(name, tensor)
            for name, tensor in (("xq", xq), ("xscale", xscale))
        ]
        fail(op, "xq and xscale must be given together", ", ".join(given))


def check_int8_depth(op: str, what: str, depth: int) -> None:
    """The int32 sums of `depth` products of int8 cannot overflow."""
    if depth > MAX_INT8_DEPTH:
        rule = f"w8a8 sums in int32, of at most {MAX_INT8_DEPTH} products; use compute w8a16"
        fail(op, rule, f"{what} {depth}")


def check_outliers(op: str, outliers: Tensor | None) -> None:
    if outliers is not None and (outliers.dim() != 1 or outliers.dtype != torch.int64):
        fail(op, "outliers must be (columns) int64", describe("outliers", outliers))


def check_columns(op: str, outliers: Tensor | None, in_features: int) -> None:
    """The values of outliers on a CPU; reading them elsewhere would wait for the device."""
    if outliers is None or not outliers.is_cpu:
        return
    previous = -1
    for column in outliers.tolist():
        if not previous < column < in_features:
            rule = "outliers must be sorted, without repeats and below in_features"
            fail(op, rule, f"{column} after {previous}, in_features {in_features}")
        previous = column


def check_factors(
    op: str, a: Tensor, b: Tensor, *, in_features: int, out_features: int, dtype: torch.dtype
) -> None:
    """a is (rank, in_features) and b (out_features, rank), in `dtype` or float32."""
    got = f"{describe('a', a)}, {describe('b', b)}"
    if a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1]:
        fail(op, "a must be (rank, in_features) and b (out_features, rank)", got)
    if a.shape[1] != in_features or b.shape[0] != out_features:
        rule = "a must be (rank, in_features) and b (out_features, rank)"
        fail(op, rule, f"{got}, in_features {in_features}, out_features {out_features}")
    if not 1 <= a.shape[0] <= MAX_RANK:
        fail(op, f"rank must be 1 to {MAX_RANK}", got)
    for factor in (a, b):
        if factor.dtype not in (dtype, torch.float32):
            name = str(dtype).removeprefix("torch.")
            fail(op, f"a and b must have the dtype of x, {name}, or float32", got)


def check_dropout(op: str, dropout: float, seed: Tensor | None) -> None:
    if not 0 <= dropout < 1 or math.isnan(dropout):
        fail(op, "dropout must be at least 0 and below 1", f"{dropout:g}")
    if dropout > 0 and (seed is None or seed.dim() != 0 or seed.dtype != torch.int64):
        got = "None" if seed is None else describe("seed", seed)
        fail(op, "seed must be () int64 where dropout is above 0", got)


def check_hidden(op: str, hidden: Tensor, *, rows: int, columns: int) -> None:
    """h is what the forward op returned for as many rows."""
    wide = hidden.dtype in (torch.float32, torch.float64)
    if hidden.dim() != 2 or hidden.shape[0] != rows or hidden.shape[1] != columns or not wide:
        got = f"{describe('h', hidden)}, rows {rows}, columns {columns}"
        fail(op, "h must be (rows, rank + outliers) float32", got)


def check_saved_input(op: str, x: Tensor | None, grad: Tensor, in_features: int) -> None:
    """x is given, and has the rows and the dtype of grad."""
    if x is None:
        fail(op, "x, or xq and xscale, must be given for the gradient of a", "None")
    fits = x.dim() > 0 and x.shape[-1] == in_features and x.dtype == grad.dtype
    if not fits or math.prod(x.shape[:-1]) != math.prod(grad.shape[:-1]):
        got = f"{describe('x', x)}, {describe('grad', grad)}, in_features {in_features}"
        fail(op, "x must have the rows and the dtype of grad", got)
