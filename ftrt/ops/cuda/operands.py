"""What every CUDA op does to its operands: devices, dtypes, rows that kernels can read, macros."""

__all__ = [
    "aligned_rows",
    "check_alignment",
    "check_device",
    "check_dtype",
    "device_of",
    "element_of",
    "is_half",
    "new_rows",
    "rows_of",
]

from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ftrt.kernels.backend import Backend, current_backend
from ftrt.kernels.catalog import ELEMENT_NAMES
from ftrt.ops.checks import describe, fail
from ftrt.ops.cuda.choice import Device

# What copies and vector loads of the kernels take at once.
_ALIGNMENT_BYTES = 16

_FACTS: WeakKeyDictionary[Backend, dict[torch.device, Device]] = WeakKeyDictionary()


def device_of(x: Tensor) -> Device:
    """What choices depend on, of the device that holds x.

    Raises:
        UnsupportedError: kernels cannot run here; the message says what is missing.
    """
    backend = current_backend()
    known = _FACTS.setdefault(backend, {})
    if x.device not in known:
        known[x.device] = Device(
            arch=backend.arch(x.device),
            multiprocessors=backend.multiprocessors(x.device),
            shared_bytes=backend.shared_limit(x.device),
        )
    return known[x.device]


def check_device(op: str, name: str, x: Tensor, /, **operands: Tensor | None) -> None:
    """Every operand that is given is on the device of x.

    Args:
        op: for the message.
        name: of x.
        operands: by their names.
    """
    for other, operand in operands.items():
        if operand is not None and operand.device != x.device:
            got = f"{name} on {x.device}, {other} on {operand.device}"
            fail(op, f"all operands must be on the device of {name}", got)


def check_alignment(op: str, qweight: Tensor) -> None:
    """A packed weight starts where copies of 16 bytes can read it, as new tensors do."""
    if qweight.data_ptr() % _ALIGNMENT_BYTES != 0:
        rule = "qweight must start at a multiple of 16 bytes in memory; clone it"
        fail(op, rule, f"{describe('qweight', qweight)}, address {qweight.data_ptr():#x}")


def check_dtype(op: str, name: str, x: Tensor) -> None:
    """The kernels take the dtype of x."""
    if x.dtype not in ELEMENT_NAMES or not x.is_floating_point():
        rule = "the CUDA kernel takes float32, float16 or bfloat16"
        hint = f". Cast {name}, or load the model in one of them"
        fail(op, rule, describe(name, x) + hint)


def element_of(x: Tensor) -> str:
    """The dtype of x as kernels are compiled for it: "float32", "float16", "bfloat16", "int8"."""
    return ELEMENT_NAMES[x.dtype]


def is_half(x: Tensor) -> bool:
    """Whether tensor cores multiply the low-rank part in the dtype of x."""
    return x.dtype in (torch.float16, torch.bfloat16)


def rows_of(x: Tensor) -> Tensor:
    """x as (rows, features) whose features are side by side; a copy where it has other strides."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()


def new_rows(like: Tensor, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """(rows, columns), not initialized, each row at a multiple of 16 bytes."""
    unit = _ALIGNMENT_BYTES // dtype.itemsize
    pitch = -(-columns // unit) * unit
    return like.new_empty((rows, pitch), dtype=dtype)[:, :columns]


def aligned_rows(x: Tensor) -> Tensor:
    """A matrix with its rows at multiples of 16 bytes: itself where it has them."""
    starts = x.data_ptr() | x.stride(0) * x.element_size()
    if starts % _ALIGNMENT_BYTES == 0 and x.stride(1) == 1:
        return x
    return new_rows(x, x.shape[0], x.shape[1], x.dtype).copy_(x)
