"""A frozen float linear layer with a low-rank update in one pass, `ftrt::lora_linear`, and its
gradients, `ftrt::lora_linear_backward`.

Source: LoRA, Hu et al. 2021, https://arxiv.org/abs/2106.09685, equation 3.
"""

__all__ = ["lora_linear"]

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ftrt.ops.autocast import cast_for_autocast
from ftrt.ops.checks import (
    check_bias,
    check_features,
    check_float_weight,
    check_hidden,
    check_saved_input,
    fail,
)
from ftrt.ops.gradients import bias_gradient, refuse_second_derivative
from ftrt.ops.low_rank import (
    Update,
    add_input_gradient,
    add_update,
    gradient_of_a,
    gradient_of_b,
    gradient_of_h,
    project,
)
from ftrt.ops.registration import register, register_autocast, register_autograd

_FORWARD = "ftrt::lora_linear"
_BACKWARD = "ftrt::lora_linear_backward"


def lora_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    scaling: float,
    *,
    dropout: float = 0.0,
    seed: Tensor | None = None,
) -> Tensor:
    """y = x Wᵀ + bias + scaling · (drop(x) aᵀ) bᵀ; differentiable once, in x, bias, a and b.

    Args:
        x: (..., in_features), float32 or bfloat16, any strides and any number of rows, none among
            them. The reference also takes float16 and float64. Under autocast x and weight are cast
            to the autocast dtype.
        weight: (out_features, in_features), same dtype as x, frozen.
        bias: (out_features), any float dtype, or None.
        a: (rank, in_features). b: (out_features, rank). Any float dtype: they are cast to that of
            x, and gradients come back in their own. rank is 1 to 256.
        scaling: alpha / rank.
        dropout: probability of dropping an element of x on its way to a, 0 <= dropout < 1; kept
            ones are multiplied by 1 / (1 - dropout).
        seed: () int64, `draw_seed(x.device)`, where dropout is above 0: the same seed drops the
            same elements.

    Returns:
        (..., out_features), dtype of x; products are accumulated in float32.

    Raises:
        RuntimeError: shapes disagree, dtypes differ, or weight requires grad; the message has them.
    """
    x = cast_for_autocast(x)
    a, b = a.to(x.dtype), b.to(x.dtype)
    y: Tensor = _forward(x, weight, bias, a, b, scaling, dropout, seed)[0]
    return y


def _checked(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    scaling: float,
    dropout: float,
    seed: Tensor | None,
) -> Update:
    check_float_weight(_FORWARD, "x", x, weight)
    fits = x.dim() > 0 and x.shape[-1] == weight.shape[1]
    check_features(_FORWARD, "x", x, "in_features", fits=fits, of=weight)
    check_bias(_FORWARD, bias, weight.shape[0])
    update = Update(a, b, scaling, dropout, seed)
    sizes = {"in_features": weight.shape[1], "out_features": weight.shape[0]}
    update.check(_FORWARD, **sizes, dtype=x.dtype)
    return update


def _forward_reference(x: Tensor, weight: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    update, bias = _checked(x, weight, *arguments), arguments[0]
    rows = x.reshape(-1, x.shape[-1])
    hidden = project(rows, update)
    y = F.linear(rows, weight, None if bias is None else bias.to(x.dtype))
    return add_update(y, hidden, update).view(*x.shape[:-1], weight.shape[0]), hidden


def _forward_fake(x: Tensor, weight: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    update = _checked(x, weight, *arguments)
    wide = torch.promote_types(x.dtype, torch.float32)
    hidden = x.new_empty((math.prod(x.shape[:-1]), update.rank), dtype=wide)
    return x.new_empty((*x.shape[:-1], weight.shape[0])), hidden


def _checked_backward(
    grad: Tensor,
    x: Tensor,
    h: Tensor,
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    scaling: float,
    dropout: float,
    seed: Tensor | None,
    need_x: bool,
    need_a: bool,
    need_b: bool,
) -> Update:
    check_float_weight(_BACKWARD, "grad", grad, weight)
    fits = grad.dim() > 0 and grad.shape[-1] == weight.shape[0]
    check_features(_BACKWARD, "grad", grad, "out_features", fits=fits, of=weight)
    update = Update(a, b, scaling, dropout, seed)
    sizes = {"in_features": weight.shape[1], "out_features": weight.shape[0]}
    update.check(_BACKWARD, **sizes, dtype=grad.dtype)
    check_hidden(_BACKWARD, h, rows=math.prod(grad.shape[:-1]), columns=update.rank)
    check_saved_input(_BACKWARD, x, grad, weight.shape[1])
    return update


def _backward_reference(
    grad: Tensor, x: Tensor, h: Tensor, weight: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    update = _checked_backward(grad, x, h, weight, *arguments)
    need_x, need_a, need_b = arguments[-3:]
    dx, da, db = (grad.new_empty(0, dtype=t.dtype) for t in (grad, update.a, update.b))
    rows = grad.reshape(-1, grad.shape[-1])
    ds = gradient_of_h(rows, update) if need_x or need_a else rows
    if need_x:
        dx = add_input_gradient(rows.mm(weight), ds, update)
        dx = dx.view(*grad.shape[:-1], weight.shape[1])
    if need_a:
        da = gradient_of_a(ds, x.reshape(-1, x.shape[-1]), update)
    if need_b:
        db = gradient_of_b(rows, h, update)
    return dx, da, db


def _backward_fake(
    grad: Tensor, x: Tensor, h: Tensor, weight: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    update = _checked_backward(grad, x, h, weight, *arguments)
    need_x, need_a, need_b = arguments[-3:]
    return (
        grad.new_empty((*grad.shape[:-1], weight.shape[1]) if need_x else (0,)),
        update.a.new_empty(update.a.shape if need_a else (0,)),
        update.b.new_empty(update.b.shape if need_b else (0,)),
    )


def _setup_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, bias, a, b, scaling, dropout, seed = inputs
    if weight.requires_grad:
        rule = (
            "weight is frozen and must not require grad; ftrt.nn.lora_forward takes torch's own"
            " ops for a layer whose weight trains"
        )
        fail(_FORWARD, rule, "weight.requires_grad=True")
    hidden = output[1]
    ctx.mark_non_differentiable(hidden)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, hidden, weight, a, b, seed)
    ctx.scaling, ctx.dropout = scaling, dropout
    ctx.bias_dtype = None if bias is None else bias.dtype


def _forward_backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 8
    x, hidden, weight, a, b, seed = ctx.saved_tensors
    need_x, need_bias, need_a, need_b = (ctx.needs_input_grad[i] for i in (0, 2, 3, 4))
    dx = da = db = dbias = None
    if need_x or need_a or need_b:
        dx, da, db = _backward(
            grad,
            x,
            hidden,
            weight,
            a,
            b,
            ctx.scaling,
            ctx.dropout,
            seed,
            need_x,
            need_a,
            need_b,
        )
    if need_bias:
        dbias = bias_gradient(grad, ctx.bias_dtype)
    dx, da, db = dx if need_x else None, da if need_a else None, db if need_b else None
    return dx, None, dbias, da, db, None, None, None


register(
    "lora_linear(Tensor x, Tensor weight, Tensor? bias, Tensor a, Tensor b, float scaling,"
    " float dropout, Tensor? seed) -> (Tensor y, Tensor h)",
    reference=_forward_reference,
    fake=_forward_fake,
)
register(
    "lora_linear_backward(Tensor grad, Tensor x, Tensor h, Tensor weight, Tensor a, Tensor b,"
    " float scaling, float dropout, Tensor? seed, bool need_x, bool need_a, bool need_b)"
    " -> (Tensor dx, Tensor da, Tensor db)",
    reference=_backward_reference,
    fake=_backward_fake,
)
register_autograd("lora_linear", _forward_backward, _setup_forward)
register_autograd("lora_linear_backward", refuse_second_derivative(_BACKWARD))
register_autocast("lora_linear", casts=(0, 1, 3, 4))
register_autocast("lora_linear_backward")
_forward = torch.ops.ftrt.lora_linear.default
_backward = torch.ops.ftrt.lora_linear_backward.default
