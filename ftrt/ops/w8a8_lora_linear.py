"""`ftrt::int8_lora_linear` of an x that it quantizes itself: `ftrt::w8a8_lora_linear`.

A kernel that quantizes x can project it on a in the same read, where an op that is given xq reads x
again. `ops.int8_lora_linear` calls it on devices with such a kernel. Anywhere else it is
`ftrt::quantize_per_token` and then `ftrt::int8_lora_linear`.
"""

__all__ = ["checked_layer"]

import math
from typing import Any

import torch
from torch import Tensor

from ftrt.ops.checks import check_int8_depth, check_per_channel
from ftrt.ops.int8_lora_linear import forward_operands, gradients, save_for_gradients
from ftrt.ops.int8_product import Int8Operands
from ftrt.ops.low_rank import Update
from ftrt.ops.registration import register, register_autocast, register_autograd

# What messages say: the op that people call.
_OP = "ftrt::int8_lora_linear"


def checked_layer(x: Tensor, *layer: Any) -> tuple[Int8Operands, Update]:
    """What the op takes beside x, checked; xq and xscale are None.

    Args:
        layer: qweight to seed, in the order of `ftrt::int8_lora_linear`.
    """
    operands, update = forward_operands(x, None, None, *layer)
    check_per_channel(_OP, operands.scale)
    check_int8_depth(_OP, "in_features", x.shape[-1])
    return operands, update


def _reference(x: Tensor, *layer: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    operands, _ = checked_layer(x, *layer)
    xq, xscale = torch.ops.ftrt.quantize_per_token.default(x, operands.outliers)
    y, hidden = torch.ops.ftrt.int8_lora_linear.default(x, xq, xscale, *layer)
    return y, hidden, xq, xscale


def _fake(x: Tensor, *layer: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    operands, update = checked_layer(x, *layer)
    rows, count = math.prod(x.shape[:-1]), 0
    if operands.outliers is not None:
        count = operands.outliers.shape[0]
    wide = torch.promote_types(x.dtype, torch.float32)
    return (
        x.new_empty((*x.shape[:-1], operands.scale.shape[0])),
        x.new_empty((rows, update.rank + count), dtype=wide),
        x.new_empty((rows, x.shape[-1]), dtype=torch.int8),
        x.new_empty((rows,), dtype=torch.float32),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, *layer = inputs
    _, hidden, xq, xscale = output
    ctx.mark_non_differentiable(hidden, xq, xscale)
    save_for_gradients(ctx, x, xq, xscale, hidden, layer)


def _backward(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 10
    need_x, need_bias, need_a, need_b = (ctx.needs_input_grad[i] for i in (0, 3, 4, 5))
    dx, dbias, da, db = gradients(ctx, grad, (need_x, need_bias, need_a, need_b))
    return dx, None, None, dbias, da, db, None, None, None, None


register(
    "w8a8_lora_linear(Tensor x, Tensor qweight, Tensor scale, Tensor? bias, Tensor a, Tensor b,"
    " float scaling, Tensor? outliers, float dropout, Tensor? seed)"
    " -> (Tensor y, Tensor h, Tensor xq, Tensor xscale)",
    reference=_reference,
    fake=_fake,
)
register_autograd("w8a8_lora_linear", _backward, _setup)
register_autocast("w8a8_lora_linear", casts=(0, 4, 5))
