"""The quantize ops on CUDA tensors, by `quantize_rows`."""

__all__ = ["quantize_per_channel", "quantize_per_token", "quantize_rows"]

import torch
from torch import Tensor

from ftrt.kernels.backend import launch
from ftrt.kernels.catalog import quantize_rows_grid, quantize_rows_shared_bytes
from ftrt.ops.checks import check_columns
from ftrt.ops.cuda.operands import check_device, check_dtype, element_of, rows_of
from ftrt.ops.cuda.variants import quantize_kernel
from ftrt.ops.quantize_per_channel import check_matrix
from ftrt.ops.quantize_per_token import check_input

_TOKEN = "ftrt::quantize_per_token"
_CHANNEL = "ftrt::quantize_per_channel"


def quantize_per_token(x: Tensor, outliers: Tensor | None) -> tuple[Tensor, Tensor]:
    """As `ftrt::quantize_per_token`."""
    check_dtype(_TOKEN, "x", x)
    check_input(x, outliers)
    check_columns(_TOKEN, outliers, x.shape[-1])
    check_device(_TOKEN, "x", x, outliers=outliers)
    return quantize_rows(rows_of(x), outliers)


def quantize_per_channel(weight: Tensor) -> tuple[Tensor, Tensor]:
    """As `ftrt::quantize_per_channel`."""
    check_dtype(_CHANNEL, "weight", weight)
    check_matrix(weight)
    qweight, scale = quantize_rows(rows_of(weight))
    return qweight, scale.unsqueeze(1)


def quantize_rows(
    x: Tensor, outliers: Tensor | None = None, column_scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """x · column_scale as int8 with one scale a row.

    Args:
        x: (rows, features), features side by side.
        outliers: (columns) int64, sorted: 0 in the result, and not counted for the scale.
        column_scale: (features) float32, or None for 1.

    Returns:
        q (rows, features) int8, contiguous, and scale (rows) float32.
    """
    rows, features = x.shape
    q = x.new_empty((rows, features), dtype=torch.int8)
    scale = x.new_empty((rows,), dtype=torch.float32)
    outliers = None if outliers is None else outliers.contiguous()
    count = 0 if outliers is None else outliers.shape[0]
    launch(
        quantize_kernel(x.dtype),
        quantize_rows_grid(rows, features, element_of(x)),
        quantize_rows_shared_bytes(features, count),
        x,
        x.stride(0),
        None,
        None,
        0.0,
        column_scale,
        outliers,
        count,
        rows,
        features,
        q,
        features,
        scale,
        None,
    )
    return q, scale
