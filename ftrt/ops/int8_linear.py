"""A linear layer with frozen int8 weights, `ftrt::int8_linear`, and its gradient for x.

Source: LLM.int8's row-wise weight format, Dettmers et al. 2022, section 2.1,
https://arxiv.org/abs/2208.07339.
"""

__all__ = ["dequantize_weight", "int8_linear", "int8_linear_dx"]

from typing import Any

import torch
from torch import Tensor

from ftrt.ops.checks import check_bias, check_features, check_weight, fail

_LIBRARY: Any = torch.library.Library("ftrt", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define("int8_linear(Tensor x, Tensor qweight, Tensor scale, Tensor? bias) -> Tensor")
_LIBRARY.define("int8_linear_dx(Tensor grad, Tensor qweight, Tensor scale) -> Tensor")

_FORWARD = "ftrt::int8_linear"
_BACKWARD = "ftrt::int8_linear_dx"


def int8_linear(x: Tensor, qweight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x dequantize(qweight, scale)ᵀ + bias; differentiable in x and bias, the weight is frozen.

    Args:
        x: (..., in_features), float32 or bfloat16, any strides and any number of rows, none among
            them. The reference also takes float16 and float64. Under autocast x is cast to the
            autocast dtype.
        qweight: (out_features, in_features) int8, row-major.
        scale: (out_features, groups) float32, row-major; groups divides in_features, and weight [n,
            k] is qweight[n, k] · scale[n, k // (in_features / groups)]. Per-channel is groups = 1.
        bias: (out_features), any float dtype, or None.

    Returns:
        (..., out_features), dtype of x; products are accumulated in float32 and rounded once.

    Raises:
        RuntimeError: shapes disagree, or a dtype is not supported; the message has them.
    """
    result: Tensor = torch.ops.ftrt.int8_linear(x, qweight, scale, bias)
    return result


def int8_linear_dx(grad: Tensor, qweight: Tensor, scale: Tensor) -> Tensor:
    """dX = grad dequantize(qweight, scale), what `int8_linear` sends back to x.

    Differentiable in grad.

    Args:
        grad: (..., out_features), dtypes as for x of `int8_linear`.
        qweight: (out_features, in_features). scale: (out_features, groups). As in `int8_linear`.

    Returns:
        (..., in_features), dtype of grad.

    Raises:
        RuntimeError: shapes disagree, or a dtype is not supported; the message has them.
    """
    result: Tensor = torch.ops.ftrt.int8_linear_dx(grad, qweight, scale)
    return result


def dequantize_weight(qweight: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """weight[n, k] = qweight[n, k] · scale[n, k // group_size], in float32 or wider, then cast.

    Args:
        qweight: (out_features, in_features) int8.
        scale: (out_features, groups) float32.
        dtype: of the result.

    Returns:
        (out_features, in_features).
    """
    wide = torch.promote_types(dtype, torch.float32)
    groups = (scale.shape[0], scale.shape[1], qweight.shape[1] // scale.shape[1])
    weight = qweight.to(wide).reshape(groups).mul_(scale.to(wide).unsqueeze(2))
    return weight.reshape(qweight.shape).to(dtype)


def _check_forward(x: Tensor, qweight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
    check_weight(_FORWARD, qweight, scale)
    check_features(_FORWARD, "x", x, "in_features", qweight)
    if bias is not None:
        check_bias(_FORWARD, bias, qweight.shape[0])


def _check_backward(grad: Tensor, qweight: Tensor, scale: Tensor) -> None:
    check_weight(_BACKWARD, qweight, scale)
    check_features(_BACKWARD, "grad", grad, "out_features", qweight)


@torch.library.impl(_LIBRARY, "int8_linear", "CompositeExplicitAutograd")
def _forward_reference(x: Tensor, qweight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    _check_forward(x, qweight, scale, bias)
    weight = dequantize_weight(qweight, scale, x.dtype)
    return torch.nn.functional.linear(x, weight, None if bias is None else bias.to(x.dtype))


@torch.library.impl(_LIBRARY, "int8_linear_dx", "CompositeExplicitAutograd")
def _backward_reference(grad: Tensor, qweight: Tensor, scale: Tensor) -> Tensor:
    _check_backward(grad, qweight, scale)
    return grad.matmul(dequantize_weight(qweight, scale, grad.dtype))


def _forward_fake(x: Tensor, qweight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    _check_forward(x, qweight, scale, bias)
    return x.new_empty((*x.shape[:-1], qweight.shape[0]))


def _backward_fake(grad: Tensor, qweight: Tensor, scale: Tensor) -> Tensor:
    _check_backward(grad, qweight, scale)
    return grad.new_empty((*grad.shape[:-1], qweight.shape[1]))


def _setup_forward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, qweight, scale, bias = inputs
    if scale.requires_grad:
        fail(_FORWARD, "scale is frozen and must not require grad", "scale.requires_grad=True")
    ctx.save_for_backward(qweight, scale)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _forward_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, Tensor | None]:
    qweight, scale = ctx.saved_tensors
    grad_x = int8_linear_dx(grad, qweight, scale) if ctx.needs_input_grad[0] else None
    grad_bias = None
    if ctx.needs_input_grad[3]:
        rows = grad.reshape(-1, grad.shape[-1])
        grad_bias = rows.sum(0, dtype=torch.promote_types(grad.dtype, torch.float32)).to(
            ctx.bias_dtype
        )
    return grad_x, None, None, grad_bias


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, qweight, scale = inputs
    ctx.save_for_backward(qweight, scale)


def _backward_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    qweight, scale = ctx.saved_tensors
    return int8_linear(grad, qweight, scale), None, None


torch.library.register_fake(_FORWARD, _forward_fake, lib=_LIBRARY)
torch.library.register_fake(_BACKWARD, _backward_fake, lib=_LIBRARY)
torch.library.register_autograd(
    _FORWARD, _forward_backward, setup_context=_setup_forward, lib=_LIBRARY
)
torch.library.register_autograd(
    _BACKWARD, _backward_backward, setup_context=_setup_backward, lib=_LIBRARY
)


def _register_autocast(device: str) -> None:
    # Only x is cast: torch.library.register_autocast would round scale and bias to half precision
    # too.
    def cast_x(x: Tensor, qweight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        dtype = torch.get_autocast_dtype(device)
        eligible = x.is_floating_point() and x.dtype != torch.float64
        with torch.autocast(device, enabled=False):
            return int8_linear(x.to(dtype) if eligible else x, qweight, scale, bias)

    _LIBRARY.impl("int8_linear", cast_x, f"Autocast{device.upper()}")


_register_autocast("cpu")
_register_autocast("cuda")
