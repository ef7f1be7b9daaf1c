"""`ftrt::int8_linear` and `ftrt::int8_linear_dx` on CUDA tensors."""

__all__ = ["int8_linear", "int8_linear_dx", "integer_gradient", "integer_linear"]

from typing import Any, cast

import torch
from torch import Tensor

from ftrt.kernels.gemm import BACKWARD, FORWARD
from ftrt.ops.cuda import dequantized
from ftrt.ops.cuda.operands import check_alignment, check_device, check_dtype, is_half, rows_of
from ftrt.ops.cuda.product import Epilogue, Weight, multiply
from ftrt.ops.cuda.quantize import quantize_rows
from ftrt.ops.cuda.thin import outlier_operands
from ftrt.ops.cuda.weights import outlier_weights
from ftrt.ops.int8_linear import check_backward, forward_operands
from ftrt.ops.int8_product import Int8Operands

_FORWARD = "ftrt::int8_linear"
_BACKWARD = "ftrt::int8_linear_dx"


def int8_linear(x: Tensor, *arguments: Any) -> Tensor:
    """As the op."""
    check_dtype(_FORWARD, "x", x)
    operands = forward_operands(x, arguments)
    operands.check_values(_FORWARD, x)
    check_device(_FORWARD, "x", x, **vars(operands))
    check_alignment(_FORWARD, operands.qweight)
    rows = rows_of(x)
    if operands.xq is None:
        y = dequantized.linear(rows, operands.qweight, operands.scale, operands.bias)
    elif is_half(x) and operands.outliers is not None:
        depth, left, right = outlier_operands(
            rows, operands.qweight, operands.scale.shape[0], operands.outliers
        )
        y = integer_linear(rows, operands, left=left, right=right, outlier_depth=depth)
    else:
        y = integer_linear(rows, operands)
    return y.view(*x.shape[:-1], operands.scale.shape[0])


def int8_linear_dx(
    grad: Tensor, qweight: Tensor, scale: Tensor, in_features: int, quantize: bool
) -> Tensor:
    """As the op."""
    check_dtype(_BACKWARD, "grad", grad)
    check_backward(grad, qweight, scale, in_features, quantize)
    check_device(_BACKWARD, "grad", grad, qweight=qweight, scale=scale)
    check_alignment(_BACKWARD, qweight)
    rows = rows_of(grad)
    if quantize:
        dzq, dzscale = quantize_rows(rows, column_scale=scale[:, 0])
        dx = integer_gradient(rows, dzq, qweight, in_features, Epilogue(dzscale))
    else:
        dx = dequantized.input_gradient(rows, qweight, scale, in_features)
    return dx.view(*grad.shape[:-1], in_features)


def integer_linear(x: Tensor, operands: Int8Operands, **thin: Any) -> Tensor:
    """w8a8: xscale · scale · (xq qᵀ), the outlier columns of x, and bias.

    Args:
        x: (rows, in_features), quantized in `operands`.
        thin: left, right, outlier_depth and rank_depth of the `Epilogue`, where x is half and it
            has any: then outliers are among them. In float32 they are multiplied here.

    Returns:
        (rows, out_features), dtype of x.
    """
    scale, bias = operands.scale, operands.bias
    xq, xscale = cast(Tensor, operands.xq), cast(Tensor, operands.xscale)
    weight = Weight(operands.qweight, scale.shape[0], x.shape[1], FORWARD)
    epilogue = Epilogue(
        xscale.contiguous(),
        column_scale=scale[:, 0],
        bias=None if bias is None else bias.to(torch.float32).contiguous(),
        **thin,
    )
    y = multiply(xq, weight, epilogue, x.new_empty((x.shape[0], scale.shape[0])))
    if operands.outliers is not None and not is_half(x):
        columns = outlier_weights(operands.qweight, scale, operands.outliers)
        y.addmm_(x.index_select(1, operands.outliers), columns)
    return y


def integer_gradient(
    grad: Tensor, dzq: Tensor, packed: Tensor, in_features: int, epilogue: Epilogue
) -> Tensor:
    """w8a8: epilogue(dzq q), (rows, in_features) in the dtype of grad (rows, out_features)."""
    weight = Weight(packed, grad.shape[1], in_features, BACKWARD)
    return multiply(dzq, weight, epilogue, grad.new_empty((grad.shape[0], in_features)))
