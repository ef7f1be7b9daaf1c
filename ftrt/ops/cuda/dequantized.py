"""w8a16: float products with a weight dequantized into scratch, a chunk at a time.

A chunk is written by one kernel, 3 bytes a weight, and read from the L2 cache by the library's
product. Where it pays (`choice.concatenates`) the low-rank part is in the same product, forward as
[x | h] · [W | scaling · b]ᵀ and backward as [dY | dS] · [W ; a].
"""

__all__ = ["Thin", "input_gradient", "linear"]

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ftrt.ops.cuda.choice import concatenates, weight_chunks
from ftrt.ops.cuda.operands import new_rows
from ftrt.ops.cuda.weights import unpack_into
from ftrt.ops.packing import DEPTH, PANEL


@dataclass(frozen=True)
class Thin:
    """A low-rank part: left (rows, rank) · right (rank, columns), in the dtype of the result."""

    left: Tensor
    right: Tensor


def linear(
    x: Tensor, packed: Tensor, scale: Tensor, bias: Tensor | None, update: Thin | None = None
) -> Tensor:
    """x dequantize(packed, scale)ᵀ + bias + update.

    Args:
        x: (rows, in_features).
        packed, scale: as the ops take them, any number of groups.
        bias: (out_features), rounded to the dtype of x, or None.

    Returns:
        (rows, out_features), dtype of x.
    """
    (rows, in_features), out_features = x.shape, scale.shape[0]
    y = x.new_empty((rows, out_features))
    bias = None if bias is None else bias.to(x.dtype)
    joined = update is not None and concatenates(rows=rows, depth=in_features, columns=out_features)
    left = _beside(x, update.left) if update is not None and joined else x
    chunks = weight_chunks(out_features, left.shape[1] * x.element_size(), unit=PANEL)
    scratch = new_rows(x, max(end - first for first, end in chunks), left.shape[1], x.dtype)
    for first, end in chunks:
        matrix = scratch[: end - first]
        unpack_into(matrix[:, :in_features], packed, scale, first=first)
        if update is not None and joined:
            matrix[:, in_features:] = update.right[:, first:end].t()
        if bias is None:
            torch.mm(left, matrix.t(), out=y[:, first:end])
        else:
            torch.addmm(bias[first:end], left, matrix.t(), out=y[:, first:end])
    if update is not None and not joined:
        y.addmm_(update.left, update.right)
    return y


def input_gradient(
    grad: Tensor, packed: Tensor, scale: Tensor, in_features: int, update: Thin | None = None
) -> Tensor:
    """grad dequantize(packed, scale) + update.

    Chunks are of input features, so that no sum over output features is rounded on the way; of
    weights with scales per group, whole groups.

    Args:
        grad: (rows, out_features).

    Returns:
        (rows, in_features), dtype of grad.
    """
    rows, out_features = grad.shape
    dx = grad.new_empty((rows, in_features))
    joined = update is not None and concatenates(rows=rows, depth=out_features, columns=in_features)
    left = _beside(grad, update.left) if update is not None and joined else grad
    group_size = in_features // scale.shape[1]
    unit = PANEL if scale.shape[1] == 1 else math.lcm(group_size, PANEL)
    chunks = weight_chunks(in_features, left.shape[1] * grad.element_size(), unit=unit)
    scratch = new_rows(grad, left.shape[1], max(end - first for first, end in chunks), grad.dtype)
    for first, end in chunks:
        matrix = scratch[:, : end - first]
        groups = scale[:, first // group_size : -(-end // group_size)].contiguous()
        unpack_into(matrix[:out_features], packed[:, first // DEPTH :], groups)
        if update is not None and joined:
            matrix[out_features:] = update.right[:, first:end]
        torch.mm(left, matrix, out=dx[:, first:end])
    if update is not None and not joined:
        dx.addmm_(update.left, update.right)
    return dx


def _beside(x: Tensor, hidden: Tensor) -> Tensor:
    """[x | hidden], rows at multiples of 16 bytes."""
    both = new_rows(x, x.shape[0], x.shape[1] + hidden.shape[1], x.dtype)
    both[:, : x.shape[1]] = x
    both[:, x.shape[1] :] = hidden
    return both
