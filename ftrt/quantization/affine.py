"""Symmetric int8 quantization in plain torch: weight ≈ qweight · scale, with zero_point 0.

Source: LLM.int8, Dettmers et al. 2022, https://arxiv.org/abs/2208.07339, section 2.1 (absmax).
"""

__all__ = ["QMAX", "choose_qparams", "dequantize", "quantize"]

from collections.abc import Iterator

import torch
from torch import Tensor

from ftrt.errors import ConfigError
from ftrt.ops import dequantize_weight
from ftrt.quantization.granularity import Granularity

# -128 is left out, so that a weight and its negative are stored alike.
QMAX = 127

# Weights in float at a time, so that quantizing a layer costs next to no memory beside its int8.
_CHUNK = 1 << 20


def choose_qparams(
    weight: Tensor, granularity: Granularity, *, where: str = "choose_qparams"
) -> Tensor:
    """scale = max |weight| / 127 over each channel or group; 1 where all weights are zero.

    Args:
        weight: (out_features, in_features), any float dtype.
        granularity: which weights share a scale.
        where: how an error names the layer.

    Returns:
        (out_features, groups) float32.

    Raises:
        ConfigError: the weight is not a float matrix with data, holds a NaN or an infinity, or
            group_size does not divide in_features.
    """
    if weight.dim() != 2 or not weight.is_floating_point() or weight.is_meta:
        raise ConfigError(
            f"{where}: weight must be (out_features, in_features) float, with data; got"
            f" {tuple(weight.shape)} {weight.dtype} on {weight.device}"
        )
    try:
        groups = granularity.groups(weight.shape[1])
    except ConfigError as error:
        raise ConfigError(
            f"{where}: {error}; choose another group_size, or skip the layer"
        ) from None
    out_features, in_features = weight.shape
    absmax = torch.empty(out_features, groups, device=weight.device)
    for part in _chunks(weight):
        rows = weight.detach()[part].reshape(-1, groups, in_features // groups)
        absmax[part] = rows.abs().amax(2).float()
    if not torch.isfinite(absmax).all():
        bad = int((~torch.isfinite(weight)).sum())
        raise ConfigError(
            f"{where}: weight must be finite to be quantized; got {bad} NaN or infinite of"
            f" {weight.numel()}. The checkpoint is damaged, or its training diverged"
        )
    scale = absmax / QMAX
    # Also where max |weight| / 127 is less than the smallest float32: such weights round to 0.
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def quantize(weight: Tensor, scale: Tensor) -> Tensor:
    """qweight = round(weight / scale), halves to even, kept within -127..127.

    Args:
        weight: (out_features, in_features), any float dtype.
        scale: (out_features, groups) float32.

    Returns:
        (out_features, in_features) int8.
    """
    in_features, groups = weight.shape[1], scale.shape[1]
    qweight = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    for part in _chunks(weight):
        rows = weight.detach()[part].float().reshape(-1, groups, in_features // groups)
        levels = (rows / scale[part].unsqueeze(2)).round_().clamp_(-QMAX, QMAX)
        qweight[part] = levels.to(torch.int8).reshape(-1, in_features)
    return qweight


def _chunks(weight: Tensor) -> Iterator[slice]:
    """Rows of `weight`, about `_CHUNK` weights at a time."""
    rows = max(1, _CHUNK // max(1, weight.shape[1]))
    return (slice(start, start + rows) for start in range(0, weight.shape[0], rows))


def dequantize(qweight: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """weight = qweight · scale, computed in float32 or wider, then cast.

    Args:
        qweight: (out_features, in_features) int8.
        scale: (out_features, groups) float32.
        dtype: of the result.

    Returns:
        (out_features, in_features).
    """
    return dequantize_weight(qweight, scale, dtype)
