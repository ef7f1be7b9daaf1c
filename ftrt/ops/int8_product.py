"""The two products with a frozen int8 weight in torch ops, on rows, and what every op that makes
them checks."""

__all__ = ["Int8Operands", "input_gradient", "linear_rows", "packed_weight", "restore_rows"]

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ftrt.ops.checks import (
    check_bias,
    check_columns,
    check_float,
    check_given_together,
    check_outliers,
    check_quantized,
    check_row_major,
    check_weight,
)
from ftrt.ops.packing import dequantize_weight, pack_int8, unpack_int8
from ftrt.ops.quantize_per_token import quantize_rows


@dataclass(frozen=True)
class Int8Operands:
    """What `ftrt::int8_linear` takes beside x; xq and xscale are None for w8a16."""

    xq: Tensor | None
    xscale: Tensor | None
    qweight: Tensor
    scale: Tensor
    bias: Tensor | None
    outliers: Tensor | None

    def check(self, op: str, x: Tensor) -> None:
        """They fit each other and x."""
        in_features = x.shape[-1] if x.dim() else 0
        check_weight(op, self.qweight, self.scale, in_features)
        check_float(op, "x", x)
        check_bias(op, self.bias, self.scale.shape[0])
        check_outliers(op, self.outliers)
        rows = math.prod(x.shape[:-1])
        check_given_together(op, self.xq, self.xscale)
        check_quantized(op, self.xq, self.xscale, self.scale, rows=rows, in_features=in_features)

    def check_values(self, op: str, x: Tensor) -> None:
        """What only data can tell, which a fake tensor has none of."""
        check_columns(op, self.outliers, x.shape[-1])


def packed_weight(op: str, qweight: Tensor, in_features: int) -> Tensor:
    """qweight as the ops take it: itself if packed, else packed here."""
    if qweight.dim() == 4:
        return qweight
    check_row_major(op, qweight, in_features)
    return pack_int8(qweight)


def linear_rows(x: Tensor, operands: Int8Operands) -> Tensor:
    """x dequantize(qweight, scale)ᵀ + bias, for x (rows, in_features).

    w8a16 in the dtype of x. w8a8 in float32 or wider, not yet rounded to it: xscale · scale ·
    (xq qᵀ), where the integer product is exact, plus the outlier columns, which are 0 in xq, in
    float.

    Returns:
        (rows, out_features), a new tensor.
    """
    qweight, scale, bias = operands.qweight, operands.scale, operands.bias
    out_features, in_features = scale.shape[0], x.shape[1]
    if operands.xq is None or operands.xscale is None:
        weight = dequantize_weight(qweight, scale, x.dtype, in_features=in_features)
        return F.linear(x, weight, None if bias is None else bias.to(x.dtype))
    wide = torch.promote_types(x.dtype, torch.float32)
    q = unpack_int8(qweight, out_features, in_features)
    y = _integer_product(operands.xq, q.t()).to(wide)
    y = y.mul_(scale[:, 0].to(wide)).mul_(operands.xscale.to(wide).unsqueeze(1))
    if operands.outliers is not None:
        columns = q.index_select(1, operands.outliers).to(wide) * scale.to(wide)
        y = y.addmm_(x.index_select(1, operands.outliers).to(wide), columns.t())
    return y if bias is None else y.add_(bias.to(wide))


def input_gradient(
    grad: Tensor, qweight: Tensor, scale: Tensor, in_features: int, *, quantize: bool
) -> Tensor:
    """grad dequantize(qweight, scale), for grad (rows, out_features).

    Without quantize in the dtype of grad. With it in float32 or wider, not yet rounded to it: dz =
    grad · scale, which folds the scales of the weight in exactly, is quantized per row and
    multiplied as integers.

    Returns:
        (rows, in_features), a new tensor.
    """
    if not quantize:
        return grad.mm(dequantize_weight(qweight, scale, grad.dtype, in_features=in_features))
    wide = torch.promote_types(grad.dtype, torch.float32)
    dzq, dzscale = quantize_rows(grad.float() * scale[:, 0])
    product = _integer_product(dzq, unpack_int8(qweight, scale.shape[0], in_features))
    return product.to(wide).mul_(dzscale.to(wide).unsqueeze(1))


def restore_rows(xq: Tensor, xscale: Tensor, outliers: Tensor | None, values: Tensor) -> Tensor:
    """xq · xscale with the outlier columns put back, (rows, in_features).

    Args:
        values: (rows, columns), what x is in the outlier columns; its dtype is that of the result.
    """
    x = xq.to(values.dtype).mul_(xscale.to(values.dtype).unsqueeze(1))
    return x if outliers is None else x.index_copy_(1, outliers, values)


def _integer_product(left: Tensor, right: Tensor) -> Tensor:
    # float64 holds the sum of 2**39 products of two int8 exactly.
    return left.double().mm(right.double())
