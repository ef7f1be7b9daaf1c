"""Int8 weights with a scale per output feature, `ftrt::quantize_per_channel`.

Source: LLM.int8, Dettmers et al. 2022, section 2.1, https://arxiv.org/abs/2208.07339.
"""

__all__ = ["check_matrix", "quantize_per_channel"]

import torch
from torch import Tensor

from ftrt.ops.checks import check_float, describe, fail
from ftrt.ops.quantize_per_token import quantize_rows
from ftrt.ops.registration import register, register_autocast

_OP = "ftrt::quantize_per_channel"


def quantize_per_channel(weight: Tensor) -> tuple[Tensor, Tensor]:
    """qweight = round(weight / scale), halves to even, with scale = max |weight| / 127 of each row.

    Not differentiable.

    Args:
        weight: (out_features, in_features), any float dtype and any strides.

    Returns:
        qweight (out_features, in_features) int8 within -127..127, row-major, and scale
        (out_features, 1) float32: 1 where a row is all zero, and not finite where the row is not.

    Raises:
        RuntimeError: weight is no float matrix with columns.
    """
    result: tuple[Tensor, Tensor] = _quantize(weight.detach())
    return result


def check_matrix(weight: Tensor) -> None:
    """What the op refuses whatever computes it."""
    if weight.dim() != 2 or weight.shape[1] == 0:
        got = describe("weight", weight)
        fail(_OP, "weight must be (out_features, in_features) with in_features at least 1", got)
    check_float(_OP, "weight", weight)


def _reference(weight: Tensor) -> tuple[Tensor, Tensor]:
    check_matrix(weight)
    qweight, scale = quantize_rows(weight)
    return qweight, scale.unsqueeze(1)


def _fake(weight: Tensor) -> tuple[Tensor, Tensor]:
    check_matrix(weight)
    return (
        weight.new_empty(weight.shape, dtype=torch.int8),
        weight.new_empty((weight.shape[0], 1), dtype=torch.float32),
    )


register(
    "quantize_per_channel(Tensor weight) -> (Tensor qweight, Tensor scale)",
    reference=_reference,
    fake=_fake,
)
register_autocast("quantize_per_channel")
_quantize = torch.ops.ftrt.quantize_per_channel.default
