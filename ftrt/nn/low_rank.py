"""The one door through which a method computes a low-rank update beside a frozen linear layer."""

__all__ = ["lora_forward"]

from torch import Tensor, nn
from torch.nn import functional as F

from ftrt.errors import UsageError
from ftrt.nn.linears import is_linear


def lora_forward(base: nn.Module, x: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """y = base(x) + scaling · (x aᵀ) bᵀ; differentiable in x, a, b and in what `base` trains.

    The update is computed in the dtype of base(x), to which x, a and b are cast where they differ.
    So float32 factors beside a bfloat16 layer, or under autocast, are used in bfloat16 and receive
    float32 gradients, and y has the dtype it would have without the update. Which implementation
    runs depends only on the type of `base`; results agree to rounding.

    Args:
        base: `nn.Linear`, `Int8Linear`, or any module that maps (..., in_features) to
            (..., out_features).
        x: (..., in_features); no rows are fine.
        a: (rank, in_features).
        b: (out_features, rank).
        scaling: alpha / rank.

    Returns:
        (..., out_features), dtype of base(x).

    Raises:
        UsageError: the shapes disagree; the message has them.

    Source: Hu et al. 2021, https://arxiv.org/abs/2106.09685, equation 3.
    """
    _check_factors(x, a, b)
    if is_linear(base):
        if x.shape[-1] != base.in_features or b.shape[0] != base.out_features:
            raise _shape_error(x, a, b, base.out_features)
        rows: Tensor = base(x.reshape(-1, base.in_features))
    else:
        y = base(x)
        if y.shape != (*x.shape[:-1], b.shape[0]):
            raise _shape_error(x, a, b, y.shape[-1])
        rows = y.reshape(-1, b.shape[0])
    dtype = rows.dtype
    hidden = F.linear(x.reshape(-1, x.shape[-1]).to(dtype), a.to(dtype)).to(dtype)
    # beta · rows + alpha · hidden bᵀ: the scaling costs no pass of its own over y.
    update = b.to(dtype).t()
    if is_linear(base) and not _is_hooked(base):
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


def _is_hooked(base: nn.Module) -> bool:
    return bool(base._forward_hooks or base._forward_pre_hooks or base._backward_hooks)
