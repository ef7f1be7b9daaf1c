"""A frozen int8 linear layer with a low-rank update in one pass, `ftrt::int8_lora_linear`, and its
gradients, `ftrt::int8_lora_linear_backward`.

Source: LoRA, Hu et al. 2021, https://arxiv.org/abs/2106.09685, equation 3, on the weight format of
LLM.int8, Dettmers et al. 2022, section 2.1, https://arxiv.org/abs/2208.07339.
"""

__all__ = [
    "backward_operands",
    "forward_operands",
    "gradients",
    "int8_lora_linear",
    "quantizes_while_projecting",
    "save_for_gradients",
]

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from ftrt.ops.autocast import cast_for_autocast
from ftrt.ops.checks import (
    check_features,
    check_hidden,
    check_outliers,
    check_quantized,
    check_saved_input,
    check_weight,
)
from ftrt.ops.extension import CUDA_OPS
from ftrt.ops.gradients import bias_gradient, check_frozen_scale, refuse_second_derivative
from ftrt.ops.int8_product import (
    Int8Operands,
    input_gradient,
    linear_rows,
    packed_weight,
    restore_rows,
)
from ftrt.ops.low_rank import (
    Update,
    add_input_gradient,
    add_update,
    gradient_of_a,
    gradient_of_b,
    gradient_of_h,
    project,
)
from ftrt.ops.quantize_per_token import quantized_input
from ftrt.ops.registration import register, register_autocast, register_autograd

_FORWARD = "ftrt::int8_lora_linear"
_BACKWARD = "ftrt::int8_lora_linear_backward"


def int8_lora_linear(
    x: Tensor,
    qweight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    scaling: float,
    *,
    compute: str = "w8a16",
    outliers: Tensor | None = None,
    dropout: float = 0.0,
    seed: Tensor | None = None,
    quantized: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """y = x dequantize(qweight, scale)ᵀ + bias + scaling · (drop(x) aᵀ) bᵀ; differentiable once, in
    x, bias, a and b.

    "w8a16" keeps x for backward, if a trains; "w8a8" keeps its int8 form and one float per row
    instead, and the gradient of a is that of the rounded x. Both keep drop(x) aᵀ. No dropout mask
    is kept.

    Args:
        x, qweight, scale, bias, compute, outliers, quantized: as `int8_linear`.
        a: (rank, in_features). b: (out_features, rank). Any float dtype: they are cast to that of
            x, and gradients come back in their own. rank is 1 to 256.
        scaling: alpha / rank.
        dropout: probability of dropping an element of x on its way to a, 0 <= dropout < 1; kept
            ones are multiplied by 1 / (1 - dropout).
        seed: () int64, `draw_seed(x.device)`, where dropout is above 0: the same seed drops the
            same elements.

    Returns:
        (..., out_features), dtype of x; accumulated in float32 and rounded once.

    Raises:
        RuntimeError: shapes disagree, or a dtype is not supported; the message has them.
    """
    x = cast_for_autocast(x)
    dtype = x.dtype
    qweight = packed_weight(_FORWARD, qweight, x.shape[-1] if x.dim() else 0)
    layer = (qweight, scale, bias, a.to(dtype), b.to(dtype), scaling)
    y: Tensor
    if compute == "w8a8" and quantized is None and quantizes_while_projecting(x):
        y = torch.ops.ftrt.w8a8_lora_linear.default(x, *layer, outliers, dropout, seed)[0]
        return y
    xq, xscale, outliers = quantized_input(_FORWARD, x, compute, outliers, quantized)
    y = _forward(x, xq, xscale, *layer, outliers, dropout, seed)[0]
    return y


def quantizes_while_projecting(x: Tensor) -> bool:
    """Whether one kernel does both on the device of x, so that x need not be quantized before."""
    return x.is_cuda and CUDA_OPS == "kernels" and x.dtype in (torch.float16, torch.bfloat16)


def forward_operands(
    x: Tensor,
    xq: Tensor | None,
    xscale: Tensor | None,
    qweight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    scaling: float,
    outliers: Tensor | None,
    dropout: float,
    seed: Tensor | None,
) -> tuple[Int8Operands, Update]:
    """What `ftrt::int8_lora_linear` takes, checked."""
    operands = Int8Operands(xq, xscale, qweight, scale, bias, outliers)
    operands.check(_FORWARD, x)
    update = Update(a, b, scaling, dropout, seed)
    sizes = {"in_features": x.shape[-1], "out_features": scale.shape[0]}
    update.check(_FORWARD, **sizes, dtype=x.dtype)
    return operands, update


def _forward_reference(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    operands, update = forward_operands(x, *arguments)
    operands.check_values(_FORWARD, x)
    rows = x.reshape(-1, x.shape[-1])
    hidden = project(rows, update)
    y = add_update(linear_rows(rows, operands), hidden, update)
    if operands.outliers is not None:
        kept = rows.index_select(1, operands.outliers)
        hidden = torch.cat([hidden, kept.to(hidden.dtype)], dim=1)
    return y.to(x.dtype).view(*x.shape[:-1], operands.scale.shape[0]), hidden


def _forward_fake(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    operands, update = forward_operands(x, *arguments)
    columns = update.rank + (0 if operands.outliers is None else operands.outliers.shape[0])
    hidden = x.new_empty(
        (math.prod(x.shape[:-1]), columns), dtype=torch.promote_types(x.dtype, torch.float32)
    )
    return x.new_empty((*x.shape[:-1], operands.scale.shape[0])), hidden


def _check_backward(
    grad: Tensor,
    x: Tensor | None,
    operands: Int8Operands,
    hidden: Tensor,
    update: Update,
    *,
    need_a: bool,
) -> None:
    qweight, scale, outliers = operands.qweight, operands.scale, operands.outliers
    in_features = update.a.shape[-1]
    check_weight(_BACKWARD, qweight, scale, in_features)
    fits = grad.dim() > 0 and grad.shape[-1] == scale.shape[0]
    check_features(_BACKWARD, "grad", grad, "out_features", fits=fits, of=qweight)
    sizes = {"in_features": in_features, "out_features": scale.shape[0]}
    update.check(_BACKWARD, **sizes, dtype=grad.dtype)
    check_outliers(_BACKWARD, outliers)
    rows = math.prod(grad.shape[:-1])
    columns = update.rank + (0 if outliers is None else outliers.shape[0])
    check_hidden(_BACKWARD, hidden, rows=rows, columns=columns)
    check_quantized(
        _BACKWARD, operands.xq, operands.xscale, scale, rows=rows, in_features=in_features
    )
    if need_a and operands.xq is None:
        check_saved_input(_BACKWARD, x, grad, in_features)


def backward_operands(
    grad: Tensor,
    x: Tensor | None,
    xq: Tensor | None,
    xscale: Tensor | None,
    h: Tensor,
    qweight: Tensor,
    scale: Tensor,
    a: Tensor,
    b: Tensor,
    scaling: float,
    outliers: Tensor | None,
    dropout: float,
    seed: Tensor | None,
    need_x: bool,
    need_a: bool,
    need_b: bool,
) -> tuple[Int8Operands, Update]:
    """What `ftrt::int8_lora_linear_backward` takes, checked."""
    operands = Int8Operands(xq, xscale, qweight, scale, None, outliers)
    update = Update(a, b, scaling, dropout, seed)
    _check_backward(grad, x, operands, h, update, need_a=need_a)
    return operands, update


def _backward_reference(
    grad: Tensor, x: Tensor | None, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    operands, update = backward_operands(grad, x, *arguments)
    hidden, (need_x, need_a, need_b) = arguments[2], arguments[-3:]
    dx, da, db = (grad.new_empty(0, dtype=t.dtype) for t in (grad, update.a, update.b))
    rows, in_features = grad.reshape(-1, grad.shape[-1]), update.a.shape[1]
    ds = gradient_of_h(rows, update) if need_x or need_a else rows
    if need_x:
        quantize = operands.xscale is not None
        dx = input_gradient(rows, operands.qweight, operands.scale, in_features, quantize=quantize)
        dx = add_input_gradient(dx, ds, update).to(grad.dtype)
        dx = dx.view(*grad.shape[:-1], in_features)
    if need_a:
        da = gradient_of_a(ds, _input_rows(x, operands, hidden[:, update.rank :]), update)
    if need_b:
        db = gradient_of_b(rows, hidden[:, : update.rank], update)
    return dx, da, db


def _input_rows(x: Tensor | None, operands: Int8Operands, values: Tensor) -> Tensor:
    if operands.xq is not None and operands.xscale is not None:
        xq, xscale = operands.xq, operands.xscale
        return restore_rows(xq, xscale, operands.outliers, values)
    saved = cast(Tensor, x)
    return saved.reshape(-1, saved.shape[-1])


def _backward_fake(
    grad: Tensor, x: Tensor | None, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    _, update = backward_operands(grad, x, *arguments)
    need_x, need_a, need_b = arguments[-3:]
    dx_shape = (*grad.shape[:-1], update.a.shape[1])
    return (
        grad.new_empty(dx_shape if need_x else (0,)),
        update.a.new_empty(update.a.shape if need_a else (0,)),
        update.b.new_empty(update.b.shape if need_b else (0,)),
    )


def _setup_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, xq, xscale, *layer = inputs
    ctx.mark_non_differentiable(output[1])
    save_for_gradients(ctx, x, xq, xscale, output[1], layer)


def save_for_gradients(
    ctx: Any,
    x: Tensor,
    xq: Tensor | None,
    xscale: Tensor | None,
    hidden: Tensor,
    layer: Sequence[Any],
) -> None:
    """Keep in `ctx` what `gradients` needs.

    Args:
        layer: qweight to seed, in the order of `ftrt::int8_lora_linear`.
    """
    qweight, scale, bias, a, b, scaling, outliers, dropout, seed = layer
    check_frozen_scale(_FORWARD, scale)
    ctx.set_materialize_grads(False)
    # x is needed for the gradient of a alone, and w8a8 has it as xq.
    x_of_a = x if a.requires_grad and xq is None else None
    xq = xq if a.requires_grad else None
    ctx.save_for_backward(x_of_a, xq, xscale, hidden, qweight, scale, a, b, outliers, seed)
    ctx.scaling, ctx.dropout = scaling, dropout
    ctx.bias_dtype = None if bias is None else bias.dtype


def gradients(
    ctx: Any, grad: Tensor, needs: tuple[bool, bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Of x, bias, a and b, None where they are not needed."""
    x, xq, xscale, hidden, qweight, scale, a, b, outliers, seed = ctx.saved_tensors
    need_x, need_bias, need_a, need_b = needs
    dx = da = db = dbias = None
    if need_x or need_a or need_b:
        first = (grad, x, xq, xscale, hidden, qweight, scale, a, b, ctx.scaling, outliers)
        dx, da, db = _backward(*first, ctx.dropout, seed, need_x, need_a, need_b)
    if need_bias:
        dbias = bias_gradient(grad, ctx.bias_dtype)
    return dx if need_x else None, dbias, da if need_a else None, db if need_b else None


def _forward_backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 12
    need_x, need_bias, need_a, need_b = (ctx.needs_input_grad[i] for i in (0, 5, 6, 7))
    dx, dbias, da, db = gradients(ctx, grad, (need_x, need_bias, need_a, need_b))
    return dx, None, None, None, None, dbias, da, db, None, None, None, None


register(
    "int8_lora_linear(Tensor x, Tensor? xq, Tensor? xscale, Tensor qweight, Tensor scale, Tensor?"
    " bias, Tensor a, Tensor b, float scaling, Tensor? outliers, float dropout, Tensor? seed)"
    " -> (Tensor y, Tensor h)",
    reference=_forward_reference,
    fake=_forward_fake,
)
register(
    "int8_lora_linear_backward(Tensor grad, Tensor? x, Tensor? xq, Tensor? xscale, Tensor h, Tensor"
    " qweight, Tensor scale, Tensor a, Tensor b, float scaling, Tensor? outliers, float dropout,"
    " Tensor? seed, bool need_x, bool need_a, bool need_b) -> (Tensor dx, Tensor da, Tensor db)",
    reference=_backward_reference,
    fake=_backward_fake,
)
register_autograd("int8_lora_linear", _forward_backward, _setup_forward)
register_autograd("int8_lora_linear_backward", refuse_second_derivative(_BACKWARD))
register_autocast("int8_lora_linear", casts=(0, 6, 7))
register_autocast("int8_lora_linear_backward")
_forward = torch.ops.ftrt.int8_lora_linear.default
_backward = torch.ops.ftrt.int8_lora_linear_backward.default
