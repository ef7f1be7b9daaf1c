"""Which dtype an operand has under autocast."""

__all__ = ["cast_dtype", "cast_for_autocast", "computed_dtype"]

import torch
from torch import Tensor


def cast_dtype(x: Tensor, device: str) -> torch.dtype:
    """The dtype autocast on `device` gives x: its own where it is float64 or no float, as torch's
    linear has it."""
    if x.dtype == torch.float64 or not x.is_floating_point():
        return x.dtype
    return torch.get_autocast_dtype(device)


def computed_dtype(x: Tensor) -> torch.dtype:
    """The dtype a linear layer computes with when it is given x here and now."""
    device = x.device.type
    # torch refuses to say whether there is autocast on a device that computes nothing
    is_enabled = device != "meta" and torch.is_autocast_enabled(device)
    return cast_dtype(x, device) if is_enabled else x.dtype


def cast_for_autocast(x: Tensor) -> Tensor:
    """x in `computed_dtype(x)`; x itself where autocast is off."""
    return x.to(computed_dtype(x))
