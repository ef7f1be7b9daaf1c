"""The low-rank update scaling · (drop(x) aᵀ) bᵀ and its gradients in torch ops, on rows.

With dS = scaling · grad b, the gradients are drop'(dS a) for x, dSᵀ drop(x) for a and
scaling · gradᵀ h for b, where h = drop(x) aᵀ.

Source: Hu et al. 2021, https://arxiv.org/abs/2106.09685, equation 3.
"""

__all__ = [
    "Update",
    "add_input_gradient",
    "add_update",
    "gradient_of_a",
    "gradient_of_b",
    "gradient_of_h",
    "project",
]

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ftrt.ops.checks import check_dropout, check_factors
from ftrt.ops.dropout import dropout_mask


@dataclass(frozen=True)
class Update:
    """a (rank, in_features), b (out_features, rank), and how they are applied."""

    a: Tensor
    b: Tensor
    scaling: float
    dropout: float
    seed: Tensor | None

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    def check(self, op: str, *, in_features: int, out_features: int, dtype: torch.dtype) -> None:
        """The factors fit a layer of these sizes whose x has `dtype`."""
        sizes = {"in_features": in_features, "out_features": out_features}
        check_factors(op, self.a, self.b, **sizes, dtype=dtype)
        check_dropout(op, self.dropout, self.seed)


def project(x: Tensor, update: Update) -> Tensor:
    """h = drop(x) aᵀ, (rows, rank) float32 or wider."""
    hidden = F.linear(_drop(x, update), update.a.to(x.dtype))
    return _scaled(_wide(hidden), update)


def add_update(y: Tensor, hidden: Tensor, update: Update) -> Tensor:
    """y += scaling · h bᵀ, in place."""
    return y.addmm_(hidden.to(y.dtype), update.b.to(y.dtype).t(), alpha=update.scaling)


def gradient_of_h(grad: Tensor, update: Update) -> Tensor:
    """dS = scaling · grad b, (rows, rank) float32 or wider."""
    return _wide(grad.mm(update.b.to(grad.dtype))) * update.scaling


def add_input_gradient(dx: Tensor, ds: Tensor, update: Update) -> Tensor:
    """dx += drop'(dS a), in place."""
    ds, a = _scaled(ds, update).to(dx.dtype), update.a.to(dx.dtype)
    if update.dropout > 0:
        return dx.add_(_drop(ds.mm(a), update))
    return dx.addmm_(ds, a)


def gradient_of_a(ds: Tensor, x: Tensor, update: Update) -> Tensor:
    """dSᵀ drop(x), dtype of a."""
    ds = _scaled(ds, update).to(x.dtype)
    return ds.t().mm(_drop(x, update)).to(update.a.dtype)


def gradient_of_b(grad: Tensor, hidden: Tensor, update: Update) -> Tensor:
    """scaling · gradᵀ h, dtype of b."""
    return (_wide(grad.t().mm(hidden.to(grad.dtype))) * update.scaling).to(update.b.dtype)


def _drop(x: Tensor, update: Update) -> Tensor:
    """x with the dropped elements 0; the kept ones are scaled on the narrow side of the product."""
    if update.dropout == 0 or update.seed is None:
        return x
    seed = update.seed.to(x.device)
    return x.masked_fill(~dropout_mask(seed, x.shape[0], x.shape[1], update.dropout), 0)


def _scaled(hidden: Tensor, update: Update) -> Tensor:
    """What stands for the kept elements' factor 1 / (1 - dropout)."""
    return hidden if update.dropout == 0 else hidden * (1 / (1 - update.dropout))


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
