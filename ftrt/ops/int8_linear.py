"""A linear layer with frozen int8 weights, `ftrt::int8_linear`, and its gradient for x.

Source: LLM.int8's row-wise weight format, Dettmers et al. 2022, section 2.1,
https://arxiv.org/abs/2208.07339.
"""

__all__ = ["check_backward", "forward_operands", "int8_linear", "int8_linear_dx"]

from typing import Any

import torch
from torch import Tensor

from ftrt.ops.autocast import cast_for_autocast
from ftrt.ops.checks import (
    check_compute,
    check_features,
    check_int8_depth,
    check_per_channel,
    check_weight,
    fail,
)
from ftrt.ops.gradients import bias_gradient, check_frozen_scale
from ftrt.ops.int8_product import Int8Operands, input_gradient, linear_rows, packed_weight
from ftrt.ops.quantize_per_token import quantized_input
from ftrt.ops.registration import register, register_autocast, register_autograd

_FORWARD = "ftrt::int8_linear"
_BACKWARD = "ftrt::int8_linear_dx"


def int8_linear(
    x: Tensor,
    qweight: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    compute: str = "w8a16",
    outliers: Tensor | None = None,
    quantized: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """y = x dequantize(qweight, scale)ᵀ + bias; differentiable in x and bias, the weight is frozen.

    With compute "w8a8" both sides of the product are int8, forward and backward: x is quantized per
    row, and so is grad · scale. The gradient is that of the product without this rounding.

    Args:
        x: (..., in_features), float32 or bfloat16, any strides and any number of rows, none among
            them. The reference also takes float16 and float64. Under autocast x is cast to the
            autocast dtype.
        qweight: (out_features, in_features) int8, or that packed by `pack_int8`; a matrix is packed
            at each call.
        scale: (out_features, groups) float32, row-major; groups divides in_features, and weight [n,
            k] is qweight[n, k] · scale[n, k // (in_features / groups)]. Per-channel is groups = 1,
            and what "w8a8" needs.
        bias: (out_features), any float dtype, or None.
        compute: "w8a16", float products with dequantized weights, or "w8a8".
        outliers: (columns) int64, sorted, without repeats: columns of x that "w8a8" multiplies in
            float; "w8a16" multiplies all so. None for none.
        quantized: what `quantize_per_token(x, outliers)` returned, for "w8a8" layers that share x
            and outliers; by default it is computed here.

    Returns:
        (..., out_features), dtype of x; products are accumulated in float32, those of "w8a8" in
        int32, and rounded once.

    Raises:
        RuntimeError: shapes disagree, or a dtype is not supported; the message has them.
    """
    x = cast_for_autocast(x)
    qweight = packed_weight(_FORWARD, qweight, x.shape[-1] if x.dim() else 0)
    xq, xscale, outliers = quantized_input(_FORWARD, x, compute, outliers, quantized)
    result: Tensor = _forward(x, xq, xscale, qweight, scale, bias, outliers)
    return result


def int8_linear_dx(
    grad: Tensor,
    qweight: Tensor,
    scale: Tensor,
    *,
    in_features: int | None = None,
    compute: str = "w8a16",
) -> Tensor:
    """dX = grad dequantize(qweight, scale), what `int8_linear` sends back to x.

    Differentiable in grad.

    Args:
        grad: (..., out_features), dtypes as for x of `int8_linear`.
        qweight: (out_features, in_features), or packed. scale: (out_features, groups). As in
            `int8_linear`.
        in_features: of a packed qweight, which is padded to a multiple of 4.
        compute: "w8a16", or "w8a8": grad · scale is quantized per row for an int8 product.

    Returns:
        (..., in_features), dtype of grad.

    Raises:
        RuntimeError: shapes disagree, or a dtype is not supported; the message has them.
    """
    if in_features is None:
        if qweight.dim() != 2:
            fail(_BACKWARD, "in_features must be given with a packed qweight", "None")
        in_features = qweight.shape[1]
    check_compute(_BACKWARD, compute)
    qweight = packed_weight(_BACKWARD, qweight, in_features)
    result: Tensor = _backward(grad, qweight, scale, in_features, compute == "w8a8")
    return result


def forward_operands(x: Tensor, arguments: tuple[Any, ...]) -> Int8Operands:
    """What `ftrt::int8_linear` takes beside x, checked."""
    operands = Int8Operands(*arguments)
    operands.check(_FORWARD, x)
    return operands


def _forward_reference(x: Tensor, *arguments: Any) -> Tensor:
    operands = forward_operands(x, arguments)
    operands.check_values(_FORWARD, x)
    y = linear_rows(x.reshape(-1, x.shape[-1]), operands)
    return y.to(x.dtype).view(*x.shape[:-1], operands.scale.shape[0])


def _forward_fake(x: Tensor, *arguments: Any) -> Tensor:
    operands = forward_operands(x, arguments)
    return x.new_empty((*x.shape[:-1], operands.scale.shape[0]))


def check_backward(
    grad: Tensor, qweight: Tensor, scale: Tensor, in_features: int, quantize: bool
) -> None:
    """What `ftrt::int8_linear_dx` refuses whatever computes it."""
    check_weight(_BACKWARD, qweight, scale, in_features)
    fits = grad.dim() > 0 and grad.shape[-1] == scale.shape[0]
    check_features(_BACKWARD, "grad", grad, "out_features", fits=fits, of=qweight)
    if quantize:
        check_per_channel(_BACKWARD, scale)
        check_int8_depth(_BACKWARD, "out_features", scale.shape[0])


def _backward_reference(
    grad: Tensor, qweight: Tensor, scale: Tensor, in_features: int, quantize: bool
) -> Tensor:
    check_backward(grad, qweight, scale, in_features, quantize)
    rows = grad.reshape(-1, grad.shape[-1])
    dx = input_gradient(rows, qweight, scale, in_features, quantize=quantize)
    return dx.to(grad.dtype).view(*grad.shape[:-1], in_features)


def _backward_fake(
    grad: Tensor, qweight: Tensor, scale: Tensor, in_features: int, quantize: bool
) -> Tensor:
    check_backward(grad, qweight, scale, in_features, quantize)
    return grad.new_empty((*grad.shape[:-1], in_features))


def _setup_forward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, _, xscale, qweight, scale, bias, _ = inputs
    check_frozen_scale(_FORWARD, scale)
    ctx.save_for_backward(qweight, scale)
    ctx.in_features = x.shape[-1]
    ctx.quantize = xscale is not None
    ctx.bias_dtype = None if bias is None else bias.dtype


def _forward_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    qweight, scale = ctx.saved_tensors
    dx = dbias = None
    if ctx.needs_input_grad[0]:
        dx = _backward(grad, qweight, scale, ctx.in_features, ctx.quantize)
    if ctx.needs_input_grad[5]:
        dbias = bias_gradient(grad, ctx.bias_dtype)
    return dx, None, None, None, None, dbias, None


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, qweight, scale, _, quantize = inputs
    ctx.save_for_backward(qweight, scale)
    ctx.compute = "w8a8" if quantize else "w8a16"


def _backward_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    qweight, scale = ctx.saved_tensors
    return int8_linear(grad, qweight, scale, compute=ctx.compute), None, None, None, None


register(
    "int8_linear(Tensor x, Tensor? xq, Tensor? xscale, Tensor qweight, Tensor scale, Tensor? bias,"
    " Tensor? outliers) -> Tensor y",
    reference=_forward_reference,
    fake=_forward_fake,
)
register(
    "int8_linear_dx(Tensor grad, Tensor qweight, Tensor scale, SymInt in_features, bool quantize)"
    " -> Tensor",
    reference=_backward_reference,
    fake=_backward_fake,
)
register_autograd("int8_linear", _forward_backward, _setup_forward)
register_autograd("int8_linear_dx", _backward_backward, _setup_backward)
register_autocast("int8_linear", casts=(0,))
_forward = torch.ops.ftrt.int8_linear.default
_backward = torch.ops.ftrt.int8_linear_dx.default
