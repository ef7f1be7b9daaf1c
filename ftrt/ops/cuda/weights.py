"""Packed int8 weights as the matrices that a library multiplies, in scratch."""

__all__ = ["outlier_weights", "unpack", "unpack_into"]

import torch
from torch import Tensor

from ftrt.kernels.backend import launch
from ftrt.kernels.catalog import unpack_grid, unpack_shared_bytes
from ftrt.ops.cuda.variants import unpack_kernel
from ftrt.ops.packing import DEPTH, PANEL


def unpack_into(
    out: Tensor,
    packed: Tensor,
    scale: Tensor | None,
    *,
    first: int = 0,
    transpose: bool = False,
) -> Tensor:
    """Output features `first` and up of a weight, dequantized in float32, then rounded.

    Args:
        out: (count, in_features), or with transpose (in_features, count); written. Its last
            dimension is side by side.
        packed: (panels, k_groups, 16, 4) int8; a slice of k_groups gives a slice of input features.
        scale: (out_features, groups) float32, contiguous; None leaves the integers.
        first: a multiple of 16.

    Returns:
        out.
    """
    count, in_features = reversed(out.shape) if transpose else out.shape
    launch(
        unpack_kernel(out.dtype, transpose=transpose),
        unpack_grid(count, in_features, transpose=transpose),
        unpack_shared_bytes(),
        packed,
        packed.stride(0) // (PANEL * DEPTH),
        scale,
        1 if scale is None else scale.shape[1],
        in_features,
        first,
        count,
        out,
        out.stride(0),
    )
    return out


def unpack(packed: Tensor, out_features: int, in_features: int, *, transpose: bool) -> Tensor:
    """The int8 weight, (out_features, in_features), or transposed (in_features, out_features)."""
    shape = (in_features, out_features) if transpose else (out_features, in_features)
    return unpack_into(packed.new_empty(shape), packed, None, transpose=transpose)


def outlier_weights(packed: Tensor, scale: Tensor, outliers: Tensor) -> Tensor:
    """Dequantized columns of a weight with one scale per output feature.

    Args:
        outliers: (columns) int64.

    Returns:
        (columns, out_features) float32.
    """
    columns = packed[:, outliers // DEPTH, :, outliers % DEPTH]
    flat = columns.reshape(outliers.shape[0], -1)[:, : scale.shape[0]]
    return flat.to(torch.float32) * scale[:, 0]
