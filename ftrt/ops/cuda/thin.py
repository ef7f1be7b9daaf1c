"""The thin products of a low-rank update in 16-bit floats: into the rank, out of it, over rows.

Where a kernel multiplies the rank part of a row, its operand is padded with zeros to a multiple of
16 columns, behind the outlier columns, padded likewise.
"""

__all__ = [
    "Projection",
    "gradient",
    "outlier_operands",
    "padded",
    "project",
    "right_operand",
    "transposed_factor",
]

from dataclasses import dataclass

import torch
from torch import Tensor

from ftrt.kernels.backend import launch
from ftrt.kernels.catalog import (
    pack_factor_grid,
    quantize_project_cached_features,
    quantize_project_grid,
    quantize_project_shared_bytes,
    thin_gradient_grid,
    thin_gradient_rows_per_split,
    thin_gradient_shared_bytes,
)
from ftrt.ops.cuda.dropping import KEEP_ALL, Dropping
from ftrt.ops.cuda.operands import aligned_rows, device_of, element_of, new_rows
from ftrt.ops.cuda.variants import pack_factor_kernel, project_kernel, thin_gradient_kernel

_MULTIPLE = 16


def padded(columns: int) -> int:
    """Columns that an operand of so many takes."""
    return -(-columns // _MULTIPLE) * _MULTIPLE


@dataclass(frozen=True)
class Projection:
    """What one read of x (rows, features) gives.

    Attributes:
        q: (rows, features) int8, and scale (rows) float32; None where x was not to be quantized.
        hidden: (rows, rank + outliers) float32, [drop(x) aᵀ | x at outliers].
        left: (rows, padded outliers + padded rank), [x at outliers | scaling · drop(x) aᵀ] in the
            dtype of x, padded with zeros.
    """

    q: Tensor | None
    scale: Tensor | None
    hidden: Tensor
    left: Tensor


def project(
    x: Tensor,
    a: Tensor,
    *,
    quantizes: bool,
    scaling: float = 1.0,
    column_scale: Tensor | None = None,
    outliers: Tensor | None = None,
    dropping: Dropping = KEEP_ALL,
) -> Projection:
    """x · column_scale as int8, and x's low-rank branch, in one read of x.

    Args:
        x: (rows, features) float16 or bfloat16, features side by side.
        a: (rank, features), any float dtype and strides; copied if it has another dtype or rows
            that do not start at multiples of 16 bytes.
        quantizes: whether q and scale are wanted.
        scaling: of `left` alone.
        column_scale: (features) float32, of q alone; None for 1.
        outliers: (columns) int64, sorted: 0 in q.
    """
    rows, features = x.shape
    outliers = None if outliers is None else outliers.contiguous()
    rank, count = a.shape[0], 0 if outliers is None else outliers.shape[0]
    q = x.new_empty((rows, features), dtype=torch.int8) if quantizes else None
    scale = x.new_empty((rows,), dtype=torch.float32) if quantizes else None
    hidden = x.new_empty((rows, rank + count), dtype=torch.float32)
    left = x.new_empty((rows, padded(count) + padded(rank)))
    a = aligned_rows(a.to(x.dtype))
    limit = device_of(x).shared_bytes
    cached = quantize_project_cached_features(features, count, limit) if quantizes else 0
    launch(
        project_kernel(x.dtype),
        quantize_project_grid(rows),
        quantize_project_shared_bytes(features, count, cached),
        x,
        x.stride(0),
        column_scale,
        outliers,
        count,
        rows,
        features,
        q,
        features,
        scale,
        a,
        a.stride(0),
        rank,
        *dropping.arguments,
        hidden,
        hidden.stride(0),
        left,
        left.stride(0),
        scaling,
        cached,
    )
    return Projection(q, scale, hidden, left)


def outlier_operands(
    x: Tensor, packed: Tensor, out_features: int, outliers: Tensor
) -> tuple[int, Tensor, Tensor]:
    """Outlier columns alone, for a product without an update.

    Args:
        x: (rows, in_features), float16 or bfloat16.
        outliers: (columns) int64.

    Returns:
        Their padded number, left (rows, of those) and right (out_features, of those), in the dtype
        of x.
    """
    count = outliers.shape[0]
    left = x.new_zeros((x.shape[0], padded(count)))
    left[:, :count] = x.index_select(1, outliers)
    nothing = x.new_empty((out_features, 0))
    right = right_operand(nothing, x.dtype, packed=packed, outliers=outliers)
    return padded(count), left, right


def gradient(
    left: Tensor,
    x: Tensor,
    dtype: torch.dtype,
    *,
    factor: float,
    row_scale: Tensor | None = None,
    dropping: Dropping = KEEP_ALL,
    column_index: Tensor | None = None,
    transpose: bool = False,
) -> Tensor:
    """factor · leftᵀ (row_scale · drop(x)), summed over rows in a fixed order.

    Splits of the rows are summed apart and then together: that costs a few MB beside x, so there is
    no second way with atomic additions for those who need no determinism.

    Args:
        left: (rows, rank) float32, its columns side by side.
        x: (rows, columns), int8, float32 or `dtype`, columns side by side.
        dtype: float16 or bfloat16, in which products are made.
        row_scale: (rows) float32, or None for 1.
        column_index: (columns) int64, for which columns of drop() those of x stand; by default they
            are all.
        transpose: whether the result is (columns, rank).

    Returns:
        (rank, columns) float32.
    """
    (rows, rank), columns = left.shape, x.shape[1]
    rows_per_split = thin_gradient_rows_per_split(rows, columns, device_of(x).multiprocessors)
    grid = thin_gradient_grid(rows, columns, rows_per_split)
    shape = (columns, rank) if transpose else (rank, columns)
    sums = x.new_empty((grid[1], *shape), dtype=torch.float32)
    strides = (1, rank) if transpose else (columns, 1)
    launch(
        thin_gradient_kernel(x.dtype, dtype),
        grid,
        thin_gradient_shared_bytes(rank, element_of(x)),
        left,
        left.stride(0),
        rank,
        x,
        x.stride(0),
        row_scale,
        rows,
        columns,
        factor,
        *dropping.arguments,
        column_index,
        sums,
        *strides,
        sums.stride(0),
        rows_per_split,
    )
    return sums.sum(0) if grid[1] > 1 else sums[0]


def right_operand(
    factor: Tensor,
    dtype: torch.dtype,
    scaling: float = 1.0,
    *,
    packed: Tensor | None = None,
    outliers: Tensor | None = None,
) -> Tensor:
    """[the weight's outlier columns | scaling · factor], each padded with zeros.

    Args:
        factor: (columns, rank), any float dtype and strides.
        dtype: float16 or bfloat16, of the result; it holds the int8 weights as they are.
        packed: the weight, where there are outliers.
        outliers: (columns) int64, sorted, or None.

    Returns:
        (columns, padded outliers + padded rank).
    """
    (columns, rank), count = factor.shape, 0 if outliers is None else outliers.shape[0]
    right = factor.new_empty((columns, padded(count) + padded(rank)), dtype=dtype)
    outliers = None if outliers is None else outliers.contiguous()
    _pack_factor(factor, dtype, scaling, packed, outliers, right, None)
    return right


def transposed_factor(factor: Tensor, dtype: torch.dtype) -> Tensor:
    """A factor (columns, rank) as `project` reads it, (rank, columns) in `dtype`."""
    transposed = new_rows(factor, factor.shape[1], factor.shape[0], dtype)
    _pack_factor(factor, dtype, 1.0, None, None, None, transposed)
    return transposed


def _pack_factor(
    factor: Tensor,
    dtype: torch.dtype,
    scaling: float,
    packed: Tensor | None,
    outliers: Tensor | None,
    right: Tensor | None,
    transposed: Tensor | None,
) -> None:
    launch(
        pack_factor_kernel(factor.dtype, dtype),
        pack_factor_grid(factor.shape[0]),
        0,
        factor,
        factor.stride(0),
        factor.stride(1),
        factor.shape[0],
        factor.shape[1],
        scaling,
        packed,
        0 if packed is None else packed.shape[1],
        outliers,
        0 if outliers is None else outliers.shape[0],
        right,
        0 if right is None else right.stride(0),
        transposed,
        0 if transposed is None else transposed.stride(0),
    )
