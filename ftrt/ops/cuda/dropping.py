"""How kernels are told to drop elements: the seed in device memory and numbers derived from p."""

__all__ = ["KEEP_ALL", "Dropping", "add_dropped"]

import math
from dataclasses import dataclass

from torch import Tensor

from ftrt.kernels.signature import Argument
from ftrt.ops.dropout import dropout_mask
from ftrt.ops.low_rank import Update

# The mask is made by torch's ops, of 4 bytes an element and a few of them at a time.
_MASK_ELEMENTS = 2**24


@dataclass(frozen=True)
class Dropping:
    """Dropout by `ftrt.ops.dropout`'s hash; none by default.

    Attributes:
        dropout: probability.
        seed: () int64 on the device; a CUDA graph reads it anew at each replay.
    """

    dropout: float = 0.0
    seed: Tensor | None = None

    @classmethod
    def of(cls, update: Update) -> "Dropping":
        """As an update has it."""
        return cls(update.dropout, update.seed)

    @property
    def drops(self) -> bool:
        """Whether any element may be dropped."""
        return self.dropout > 0

    @property
    def keep_factor(self) -> float:
        """What kept elements are multiplied by."""
        return 1 / (1 - self.dropout)

    @property
    def arguments(self) -> tuple[Argument, ...]:
        """seed, threshold and keep_factor, as kernels take them one after the other."""
        seed = self.seed if self.drops else None
        return seed, math.floor(self.dropout * 2**32), self.keep_factor


KEEP_ALL = Dropping()


def add_dropped(y: Tensor, left: Tensor, right: Tensor, dropping: Dropping) -> Tensor:
    """y += drop(left · right) in place, some rows at a time, where a library made y.

    Args:
        y: (rows, columns). left: (rows, rank). right: (rank, columns). Of one dtype.
        dropping: with a dropout above 0.
    """
    seed, (rows, columns) = dropping.seed, y.shape
    if seed is None:
        return y.addmm_(left, right)
    most = max(1, _MASK_ELEMENTS // columns)
    for first in range(0, rows, most):
        part = left[first : first + most].mm(right)
        sizes = {"rows": part.shape[0], "columns": columns}
        mask = dropout_mask(seed, **sizes, dropout=dropping.dropout, first_row=first)
        kept = part.masked_fill_(mask.logical_not_(), 0)
        y[first : first + most].add_(kept, alpha=dropping.keep_factor)
    return y
