"""Dropout of the low-rank branch, computed from a seed wherever it is needed and never stored.

Each element has a hash of its own, so that any kernel can recompute any part of the mask:

    fmix(h): h ^= h >> 16; h *= 0x85ebca6b; h ^= h >> 13; h *= 0xc2b2ae35; h ^= h >> 16
    row_key  = fmix(fmix(row * 0x9E3779B1 ^ low(seed)) ^ high(seed))
    bits     = fmix(row_key ^ (column * 0x9E3779B1))
    kept     = bits >= floor(dropout * 2^32)

in uint32 arithmetic, where low and high are the halves of the 64-bit seed and row counts the
flattened rows. Kept values are multiplied by 1 / (1 - dropout).

Source: fmix is the finalizer of MurmurHash3, Appleby 2011,
https://github.com/aappleby/smhasher/wiki/MurmurHash3.
"""

__all__ = ["draw_seed", "dropout_mask"]

import math

import torch
from torch import Tensor

_LOW = 0xFFFFFFFF
_GOLDEN = 0x9E3779B1


def draw_seed() -> Tensor:
    """A seed () int64 from torch's global CPU generator, which gradient checkpointing restores."""
    return torch.randint(0, 2**63 - 1, (), dtype=torch.int64)


def dropout_mask(seed: Tensor, rows: int, columns: int, dropout: float) -> Tensor:
    """Which elements of a (rows, columns) operand are kept.

    Args:
        seed: () int64, on the device of the result.
        rows, columns: of the flattened operand.
        dropout: probability of dropping an element, 0 <= dropout < 1.

    Returns:
        (rows, columns) bool, true where kept.
    """
    # int64 holds uint32: a product wraps around modulo 2^64, which leaves its low half right.
    row = torch.arange(rows, dtype=torch.int64, device=seed.device).unsqueeze(1)
    column = torch.arange(columns, dtype=torch.int64, device=seed.device)
    row_key = _mix(_mix((row * _GOLDEN & _LOW) ^ (seed & _LOW)) ^ (seed >> 32 & _LOW))
    return _mix(row_key ^ (column * _GOLDEN & _LOW)) >= math.floor(dropout * 2**32)


def _mix(h: Tensor) -> Tensor:
    h = h ^ (h >> 16)
    h = h * 0x85EBCA6B & _LOW
    h = h ^ (h >> 13)
    h = h * 0xC2B2AE35 & _LOW
    return h ^ (h >> 16)
