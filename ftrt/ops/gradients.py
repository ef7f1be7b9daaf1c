"""What the gradients of several ops share."""

__all__ = ["bias_gradient", "check_frozen_scale", "refuse_second_derivative"]

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from ftrt.ops.checks import fail


def bias_gradient(grad: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum of grad (..., out_features) over its rows, in float32 or wider, then cast to `dtype`."""
    rows = grad.reshape(-1, grad.shape[-1])
    return rows.sum(0, dtype=torch.promote_types(grad.dtype, torch.float32)).to(dtype)


def check_frozen_scale(op: str, scale: Tensor) -> None:
    if scale.requires_grad:
        fail(op, "scale is frozen and must not require grad", "scale.requires_grad=True")


def refuse_second_derivative(op: str) -> Callable[..., NoReturn]:
    """The backward of a backward op that has none."""

    def backward(ctx: Any, *grads: Tensor) -> NoReturn:
        fail(op, "must be differentiated at most once", "a second derivative")

    return backward
