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


def draw_seed(device: torch.device | str | None = None) -> Tensor:
    """A seed () int64 on `device`, from torch's global generator for it.

    Gradient checkpointing restores that generator, and a CUDA graph that holds the draw gives
    another seed at each replay.

    Args:
        device: of x; by default torch's default device.
    """
    return torch.randint(0, 2**63 - 1, (), dtype=torch.int64, device=device)


def dropout_mask(
    seed: Tensor, rows: int, columns: int, dropout: float, *, first_row: int = 0
) -> Tensor:
    """Which elements of a (rows, columns) operand are kept.

    Args:
        seed: () int64, on the device of the result.
        rows, columns: of the flattened operand.
        dropout: probability of dropping an element, 0 <= dropout < 1.
        first_row: of the flattened operand, where these are not all of its rows.

    Returns:
        (rows, columns) bool, true where kept.
    """
    # int32 holds the bits of uint32: sums and products wrap around alike.
    low, high = ((seed >> shift & 0xFFFFFFFF).to(torch.int32) for shift in (0, 32))
    row_key = _mix(_mix(_multiples(first_row, rows, seed.device).unsqueeze(1) ^ low) ^ high)
    bits = _mix(row_key ^ _multiples(0, columns, seed.device))
    # Signed comparison orders as unsigned once the highest bit is flipped.
    return bits.bitwise_xor_(_signed(1 << 31)) >= math.floor(dropout * 2**32) - (1 << 31)


def _multiples(first: int, count: int, device: torch.device) -> Tensor:
    numbers = torch.arange(first, first + count, dtype=torch.int32, device=device)
    return numbers.mul_(_signed(0x9E3779B1))


def _mix(h: Tensor) -> Tensor:
    """fmix of h, in place."""
    h.bitwise_xor_(_shifted(h, 16)).mul_(_signed(0x85EBCA6B))
    h.bitwise_xor_(_shifted(h, 13)).mul_(_signed(0xC2B2AE35))
    return h.bitwise_xor_(_shifted(h, 16))


def _shifted(h: Tensor, places: int) -> Tensor:
    """h >> places with zeros coming in; torch's shift of int32 repeats the sign."""
    return (h >> places).bitwise_and_((1 << 32 - places) - 1)


def _signed(bits: int) -> int:
    """The int32 with these 32 bits."""
    return bits - (1 << 32) if bits >> 31 else bits
