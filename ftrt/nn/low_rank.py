"""The one door through which a method computes a low-rank update beside a frozen linear layer."""

__all__ = ["lora_forward"]

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as module_hooks

from ftrt.errors import UsageError
from ftrt.nn.linears import is_linear
from ftrt.ops import MAX_RANK, computed_dtype, draw_seed, int8_lora_linear, lora_linear
from ftrt.quantization.int8_linear import Int8Linear

# What every implementation of ftrt::lora_linear takes.
_FUSED_DTYPES = (torch.float32, torch.bfloat16)


def lora_forward(
    base: nn.Module,
    x: Tensor,
    a: Tensor,
    b: Tensor,
    scaling: float,
    *,
    dropout: float = 0.0,
    column_scale: Tensor | None = None,
) -> Tensor:
    """y = base(x) + scaling · (drop(x) aᵀ) bᵀ; differentiable in x, a, b, column_scale and in what
    `base` trains.

    The update is computed in the dtype of base(x), to which x, a and b are cast where they differ.
    So float32 factors beside a bfloat16 layer, or under autocast, are used in bfloat16 and receive
    float32 gradients, and y has the dtype it would have without the update.

    Which implementation runs depends on the base alone, and results agree to rounding:
    `ops.int8_lora_linear` for an `Int8Linear`; `ops.lora_linear` for exactly an `nn.Linear` that is
    frozen and computes in float32 or bfloat16; torch's own ops for any other module, a weight that
    trains, a base with module hooks, which then see base(x), and a rank above 256. The first two
    are differentiable once, and their dropout needs no mask in memory.

    Args:
        base: `nn.Linear`, `Int8Linear`, or any module that maps (..., in_features) to
            (..., out_features).
        x: (..., in_features); no rows are fine.
        a: (rank, in_features).
        b: (out_features, rank).
        scaling: alpha / rank; alpha / √rank for rsLoRA.
        dropout: probability of dropping an element of x on its way to a, as `nn.Dropout` in
            training does; 0 in evaluation. Drawn from torch's global generator for the device of x.
        column_scale: (out_features) or None. With it, y = column_scale · (base(x) - bias + scaling
            · (drop(x) aᵀ) bᵀ) + bias: DoRA's magnitude over norm. bias is `base.bias`, if that is a
            tensor.

    Returns:
        (..., out_features), dtype of base(x).

    Raises:
        UsageError: the shapes disagree, or dropout is not within 0 <= dropout < 1; the message has
            them.

    Source: Hu et al. 2021, https://arxiv.org/abs/2106.09685, equation 3. DoRA: Liu et al. 2024,
    https://arxiv.org/abs/2402.09353, equation 5. rsLoRA: Kalajdzievski 2023,
    https://arxiv.org/abs/2312.03732.
    """
    _check_factors(x, a, b)
    if is_linear(base):
        if x.shape[-1] != base.in_features or b.shape[0] != base.out_features:
            raise _shape_error(x, a, b, base.out_features)
    if not 0 <= dropout < 1:
        raise UsageError(f"lora_forward: dropout must be at least 0 and below 1; got {dropout}")
    bias = getattr(base, "bias", None)
    bias = bias if isinstance(bias, Tensor) else None
    if not _is_fusable(base, x, a):
        y = _unfused(base, x, a, b, scaling, dropout, bias if column_scale is not None else None)
    else:
        seed = draw_seed(x.device) if dropout > 0 else None
        inner = bias if column_scale is None else None
        y = _fused(base, x, a, b, scaling, inner, dropout, seed)
    if column_scale is None:
        return y
    if column_scale.shape != y.shape[-1:]:
        raise UsageError(
            "lora_forward: column_scale must be (out_features); got"
            f" {tuple(column_scale.shape)}, base with out_features {y.shape[-1]}"
        )
    column_scale = column_scale.to(y.dtype)
    return y * column_scale if bias is None else torch.addcmul(bias.to(y.dtype), y, column_scale)


def _fused(
    base: nn.Module,
    x: Tensor,
    a: Tensor,
    b: Tensor,
    scaling: float,
    bias: Tensor | None,
    dropout: float,
    seed: Tensor | None,
) -> Tensor:
    if isinstance(base, Int8Linear):
        return int8_lora_linear(
            x,
            base.packed,
            base.scale,
            bias,
            a,
            b,
            scaling,
            compute=base.compute,
            outliers=base.outliers,
            dropout=dropout,
            seed=seed,
            quantized=base.quantized_input(x),
        )
    weight = cast(Tensor, base.weight)
    return lora_linear(x, weight, bias, a, b, scaling, dropout=dropout, seed=seed)


def _unfused(
    base: nn.Module,
    x: Tensor,
    a: Tensor,
    b: Tensor,
    scaling: float,
    dropout: float,
    without: Tensor | None,
) -> Tensor:
    """base(x) - without + scaling · (drop(x) aᵀ) bᵀ in torch's own ops."""
    is_known = is_linear(base)
    if is_known:
        rows: Tensor = base(x.reshape(-1, x.shape[-1]))
    else:
        y = base(x)
        if y.shape != (*x.shape[:-1], b.shape[0]):
            raise _shape_error(x, a, b, y.shape[-1])
        rows = y.reshape(-1, b.shape[0])
    dtype = rows.dtype
    if without is not None:
        rows = rows - without.to(dtype)
    dropped = F.dropout(x, dropout) if dropout > 0 else x
    hidden = F.linear(dropped.reshape(-1, x.shape[-1]).to(dtype), a.to(dtype)).to(dtype)
    # beta · rows + alpha · hidden bᵀ: the scaling costs no pass of its own over y.
    update = b.to(dtype).t()
    if is_known and not _is_hooked(base):
        # Nobody else holds base(x), and no linear layer's backward reads it: y takes its memory.
        rows = rows.addmm_(hidden, update, alpha=scaling)
    else:
        rows = rows.addmm(hidden, update, alpha=scaling)
    return rows.view(*x.shape[:-1], b.shape[0])


def _check_factors(x: Tensor, a: Tensor, b: Tensor) -> None:
    if x.dim() == 0 or a.dim() != 2 or b.dim() != 2:
        raise _shape_error(x, a, b, None)
    if a.shape[1] != x.shape[-1] or a.shape[0] != b.shape[1]:
        raise _shape_error(x, a, b, None)


def _shape_error(x: Tensor, a: Tensor, b: Tensor, out_features: int | None) -> UsageError:
    shapes = f"x {tuple(x.shape)}, a {tuple(a.shape)}, b {tuple(b.shape)}"
    if out_features is not None:
        shapes += f", base with out_features {out_features}"
    return UsageError(
        "lora_forward: x must be (..., in_features), a (rank, in_features) and b (out_features,"
        f" rank); got {shapes}"
    )


def _is_fusable(base: nn.Module, x: Tensor, a: Tensor) -> bool:
    """Whether one op may stand for base and update."""
    if not is_linear(base) or not 1 <= a.shape[0] <= MAX_RANK or _is_hooked(base):
        return False
    if isinstance(base, Int8Linear):
        return True
    weight = base.weight
    # A subclass of Parameter may be a weight that is quantized or sharded in a way of its own.
    is_plain = type(weight) in (nn.Parameter, Tensor)
    return is_plain and not weight.requires_grad and computed_dtype(x) in _FUSED_DTYPES


def _is_hooked(base: nn.Module) -> bool:
    """Whether calling `base` does more than its class's forward."""
    return bool(
        base._forward_hooks
        or base._forward_pre_hooks
        or base._backward_hooks
        or base._backward_pre_hooks
        or "forward" in base.__dict__
        or module_hooks._has_any_global_hook()  # type: ignore[no-untyped-call]
    )
