"""`ftrt::int8_lora_linear` and its gradients on CUDA tensors.

float16 and bfloat16 have the low-rank part inside of the int8 product's epilogue, and each of x and
grad is read once for everything that is thin. float32 has no tensor cores for it: there the update
is torch's own products beside the int8 one.
"""

__all__ = ["int8_lora_linear", "int8_lora_linear_backward", "w8a8_lora_linear"]

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from ftrt.ops import low_rank
from ftrt.ops.cuda import dequantized
from ftrt.ops.cuda.dequantized import Thin
from ftrt.ops.cuda.dropping import Dropping, add_dropped
from ftrt.ops.cuda.int8_linear import integer_gradient, integer_linear
from ftrt.ops.cuda.operands import check_alignment, check_device, check_dtype, is_half, rows_of
from ftrt.ops.cuda.product import Epilogue
from ftrt.ops.cuda.quantize import quantize_per_token, quantize_rows
from ftrt.ops.cuda.thin import gradient, padded, project, right_operand, transposed_factor
from ftrt.ops.int8_lora_linear import backward_operands, forward_operands
from ftrt.ops.int8_product import Int8Operands, restore_rows
from ftrt.ops.low_rank import Update
from ftrt.ops.w8a8_lora_linear import checked_layer

_FORWARD = "ftrt::int8_lora_linear"
_BACKWARD = "ftrt::int8_lora_linear_backward"


def int8_lora_linear(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    """As the op."""
    check_dtype(_FORWARD, "x", x)
    operands, update = forward_operands(x, *arguments)
    operands.check_values(_FORWARD, x)
    check_device(_FORWARD, "x", x, **vars(operands), a=update.a, b=update.b, seed=update.seed)
    check_alignment(_FORWARD, operands.qweight)
    rows = rows_of(x)
    if is_half(x):
        y, hidden = _half_forward(rows, operands, update)
    else:
        y, hidden = _wide_forward(rows, operands, update)
    return y.view(*x.shape[:-1], operands.scale.shape[0]), hidden


def _half_forward(x: Tensor, operands: Int8Operands, update: Update) -> tuple[Tensor, Tensor]:
    packed, outliers = operands.qweight, operands.outliers
    if operands.xq is None:
        dropping = Dropping.of(update)
        thin = project(x, update.a, quantizes=False, scaling=update.scaling, dropping=dropping)
        factors = Thin(thin.left[:, : update.rank], update.b.to(x.dtype).t())
        y = dequantized.linear(x, packed, operands.scale, operands.bias, factors)
        return y, thin.hidden
    thin = project(x, update.a, quantizes=False, outliers=outliers, dropping=Dropping.of(update))
    return _integer_forward(x, operands, update, thin.left), thin.hidden


def w8a8_lora_linear(x: Tensor, *layer: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As the op; float16 and bfloat16 in one read of x."""
    check_dtype(_FORWARD, "x", x)
    operands, update = checked_layer(x, *layer)
    if not is_half(x):
        xq, xscale = quantize_per_token(x, operands.outliers)
        return *int8_lora_linear(x, xq, xscale, *layer), xq, xscale
    operands.check_values(_FORWARD, x)
    check_device(_FORWARD, "x", x, **vars(operands), a=update.a, b=update.b, seed=update.seed)
    check_alignment(_FORWARD, operands.qweight)
    rows = rows_of(x)
    thin = project(
        rows,
        update.a,
        quantizes=True,
        outliers=operands.outliers,
        dropping=Dropping.of(update),
    )
    xq, xscale = cast(Tensor, thin.q), cast(Tensor, thin.scale)
    operands = replace(operands, xq=xq, xscale=xscale)
    y = _integer_forward(rows, operands, update, thin.left)
    return y.view(*x.shape[:-1], operands.scale.shape[0]), thin.hidden, xq, xscale


def _integer_forward(x: Tensor, operands: Int8Operands, update: Update, left: Tensor) -> Tensor:
    """w8a8 with an update whose left operand, outlier columns among it, is there."""
    packed, outliers = operands.qweight, operands.outliers
    right = right_operand(update.b, x.dtype, update.scaling, packed=packed, outliers=outliers)
    return integer_linear(
        x,
        operands,
        left=left,
        right=right,
        outlier_depth=0 if outliers is None else padded(outliers.shape[0]),
        rank_depth=padded(update.rank),
    )


def _wide_forward(x: Tensor, operands: Int8Operands, update: Update) -> tuple[Tensor, Tensor]:
    hidden = low_rank.project(x, update)
    if operands.xq is None:
        y = dequantized.linear(x, operands.qweight, operands.scale, operands.bias)
    else:
        y = integer_linear(x, operands)
    y = low_rank.add_update(y, hidden, update)
    if operands.outliers is not None:
        hidden = torch.cat([hidden, x.index_select(1, operands.outliers)], dim=1)
    return y, hidden


def int8_lora_linear_backward(
    grad: Tensor, x: Tensor | None, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """As the op."""
    check_dtype(_BACKWARD, "grad", grad)
    operands, update = backward_operands(grad, x, *arguments)
    hidden, needs = arguments[2], arguments[-3:]
    factors = {"a": update.a, "b": update.b, "seed": update.seed}
    check_device(_BACKWARD, "grad", grad, x=x, h=hidden, **vars(operands), **factors)
    check_alignment(_BACKWARD, operands.qweight)
    saved = None if x is None else rows_of(x)
    run = _half_backward if is_half(grad) else _wide_backward
    hidden = rows_of(hidden.to(torch.float32))
    dx, da, db = run(rows_of(grad), saved, hidden, operands, update, needs)
    shape = (*grad.shape[:-1], update.a.shape[1])
    return (
        grad.new_empty(0) if dx is None else dx.view(shape),
        update.a.new_empty(0) if da is None else da.to(update.a.dtype),
        update.b.new_empty(0) if db is None else db.to(update.b.dtype),
    )


Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def _half_backward(
    grad: Tensor,
    x: Tensor | None,
    hidden: Tensor,
    operands: Int8Operands,
    update: Update,
    needs: tuple[bool, bool, bool],
) -> Gradients:
    need_x, need_a, need_b = needs
    is_integer, dropping = operands.xscale is not None, Dropping.of(update)
    dx = da = db = None
    if need_x or need_a:
        thin = project(
            grad,
            transposed_factor(update.b, grad.dtype),
            quantizes=is_integer and need_x,
            scaling=update.scaling,
            column_scale=operands.scale[:, 0] if is_integer else None,
        )
        if need_x and is_integer:
            epilogue = Epilogue(
                cast(Tensor, thin.scale),
                left=thin.left,
                right=right_operand(update.a.t(), grad.dtype),
                rank_depth=padded(update.rank),
                dropping=dropping,
            )
            q = cast(Tensor, thin.q)
            dx = integer_gradient(grad, q, operands.qweight, update.a.shape[1], epilogue)
        elif need_x:
            dx = _float_gradient(grad, thin.left[:, : update.rank], operands, update)
        if need_a:
            values = hidden[:, update.rank :]
            da = _gradient_of_a(thin.hidden, x, operands, values, grad.dtype, update)
    if need_b:
        h = hidden[:, : update.rank]
        db = gradient(h, grad, grad.dtype, factor=update.scaling, transpose=True)
    return dx, da, db


def _gradient_of_a(
    hidden: Tensor,
    x: Tensor | None,
    operands: Int8Operands,
    values: Tensor,
    dtype: torch.dtype,
    update: Update,
) -> Tensor:
    """dA (rank, in_features) float32, for hidden = grad b, from xq or else from x.

    Args:
        values: (rows, outliers) float32, what x is in the columns that are 0 in xq.
        dtype: of grad, in which products are made.
    """
    factor, dropping = update.scaling, Dropping.of(update)
    if operands.xq is None:
        return gradient(hidden, cast(Tensor, x), dtype, factor=factor, dropping=dropping)
    xscale, outliers = cast(Tensor, operands.xscale).contiguous(), operands.outliers
    da = gradient(hidden, operands.xq, dtype, factor=factor, row_scale=xscale, dropping=dropping)
    if outliers is None:
        return da
    columns = gradient(
        hidden, values, dtype, factor=factor, dropping=dropping, column_index=outliers
    )
    return da.index_copy_(1, outliers, columns)


def _float_gradient(grad: Tensor, ds: Tensor, operands: Int8Operands, update: Update) -> Tensor:
    """w8a16: dX in the dtype of grad, for dS in the same."""
    factors = Thin(ds, update.a.to(grad.dtype))
    joined = None if update.dropout > 0 else factors
    weight = (operands.qweight, operands.scale, update.a.shape[1])
    dx = dequantized.input_gradient(grad, *weight, joined)
    return dx if joined is not None else add_dropped(dx, ds, factors.right, Dropping.of(update))


def _wide_backward(
    grad: Tensor,
    x: Tensor | None,
    hidden: Tensor,
    operands: Int8Operands,
    update: Update,
    needs: tuple[bool, bool, bool],
) -> Gradients:
    need_x, need_a, need_b = needs
    packed, scale, in_features = operands.qweight, operands.scale, update.a.shape[1]
    dx = da = db = None
    ds = low_rank.gradient_of_h(grad, update) if need_x or need_a else grad
    if need_x:
        if operands.xscale is not None:
            dzq, dzscale = quantize_rows(grad, column_scale=scale[:, 0])
            dx = integer_gradient(grad, dzq, packed, in_features, Epilogue(dzscale))
        else:
            dx = dequantized.input_gradient(grad, packed, scale, in_features)
        dx = low_rank.add_input_gradient(dx, ds, update)
    if need_a:
        if operands.xq is not None:
            xscale, values = cast(Tensor, operands.xscale), hidden[:, update.rank :]
            x = restore_rows(operands.xq, xscale, operands.outliers, values)
        da = low_rank.gradient_of_a(ds, cast(Tensor, x), update)
    if need_b:
        db = low_rank.gradient_of_b(grad, hidden[:, : update.rank], update)
    return dx, da, db
