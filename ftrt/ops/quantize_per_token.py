"""Int8 rows with a scale each, `ftrt::quantize_per_token`.

Source: LLM.int8, Dettmers et al. 2022, section 2.1, https://arxiv.org/abs/2208.07339.
"""

__all__ = ["check_input", "quantize_per_token", "quantize_rows", "quantized_input"]

import math

import torch
from torch import Tensor

from ftrt.ops.checks import (
    check_columns,
    check_compute,
    check_float,
    check_outliers,
    describe,
    fail,
)
from ftrt.ops.registration import register, register_autocast

_OP = "ftrt::quantize_per_token"

# -128 is left out, so that a number and its negative are stored alike.
_QMAX = 127


def quantize_per_token(x: Tensor, outliers: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """xq = round(x / xscale), halves to even, with xscale = max |x| / 127 of each row.

    Not differentiable: what it returns stands for x in the products of `int8_linear` and
    `int8_lora_linear`, and several layers with the same x and outliers may share it. Under autocast
    x is cast first, as those cast theirs.

    Args:
        x: (..., in_features), any float dtype and any strides.
        outliers: (columns) int64, sorted, without repeats: these columns are 0 in xq and do not
            count for xscale. None for none.

    Returns:
        xq (rows, in_features) int8 within -127..127 and xscale (rows) float32, with rows the
        product of the leading dimensions of x. xscale is 1 where a row is all zero, and not finite
        where the row is not, with xq 0: whatever is computed from that row is then NaN.

    Raises:
        RuntimeError: x has no dimension or is no float, or outliers is no int64 vector.
    """
    result: tuple[Tensor, Tensor] = _quantize(x.detach(), outliers)
    return result


def quantized_input(
    op: str,
    x: Tensor,
    compute: str,
    outliers: Tensor | None,
    quantized: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """xq, xscale and outliers as the ops take them: all None for w8a16.

    Args:
        op: for messages.
        x: as the product takes it, cast already.
        compute: "w8a16" or "w8a8".
        outliers: of the layer; "w8a16" has no use for them.
        quantized: xq and xscale, or None to compute them.
    """
    if compute == "w8a8":
        xq, xscale = _quantize(x.detach(), outliers) if quantized is None else quantized
        return xq, xscale, outliers
    check_compute(op, compute)
    if quantized is not None:
        fail(op, "quantized must be given with compute 'w8a8' only", f"compute {compute!r}")
    return None, None, None


def quantize_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """What both quantize ops do to a matrix (rows, columns): int8 of the same shape, and float32
    scales (rows)."""
    rows = rows.float()
    scale = rows.abs().amax(1) / _QMAX
    # Also where max / 127 is less than the smallest float32: such a row rounds to 0.
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    levels = (rows / scale.unsqueeze(1)).round_().clamp_(-_QMAX, _QMAX)
    return levels.nan_to_num_(nan=0.0).to(torch.int8).contiguous(), scale


def check_input(x: Tensor, outliers: Tensor | None) -> None:
    """What the op refuses whatever computes it."""
    if x.dim() == 0 or x.shape[-1] == 0:
        fail(_OP, "x must be (..., in_features) with in_features at least 1", describe("x", x))
    check_float(_OP, "x", x)
    check_outliers(_OP, outliers)


def _reference(x: Tensor, outliers: Tensor | None) -> tuple[Tensor, Tensor]:
    check_input(x, outliers)
    check_columns(_OP, outliers, x.shape[-1])
    rows = x.reshape(-1, x.shape[-1])
    if outliers is not None:
        rows = rows.index_fill(1, outliers, 0)
    return quantize_rows(rows)


def _fake(x: Tensor, outliers: Tensor | None) -> tuple[Tensor, Tensor]:
    check_input(x, outliers)
    rows = math.prod(x.shape[:-1])
    return (
        x.new_empty((rows, x.shape[-1]), dtype=torch.int8),
        x.new_empty((rows,), dtype=torch.float32),
    )


register(
    "quantize_per_token(Tensor x, Tensor? outliers) -> (Tensor xq, Tensor xscale)",
    reference=_reference,
    fake=_fake,
)
register_autocast("quantize_per_token", casts=(0,))
_quantize = torch.ops.ftrt.quantize_per_token.default
