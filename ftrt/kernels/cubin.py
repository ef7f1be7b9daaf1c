"""What a compiled kernel uses, read from its cubin: registers, shared and local memory.

A cubin is a 64-bit ELF file. Its section `.nv.info` holds one attribute after another: a format
byte, an attribute byte and 16 bits, which are the value itself or, in format 4, the length of what
follows. The attributes read here hold a symbol's index and a number.
"""

__all__ = ["SHARED_LIMIT_BYTES", "Resources", "read_resources"]

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from ftrt.errors import UsageError

KIB = 2**10

# Most shared memory of one block, static and dynamic together, by architecture: CUDA C++
# Programming Guide, table "Technical Specifications per Compute Capability".
SHARED_LIMIT_BYTES: Mapping[str, int] = MappingProxyType(
    {
        "80": 163 * KIB,
        "86": 99 * KIB,
        "89": 99 * KIB,
        "90a": 227 * KIB,
        "100": 227 * KIB,
        "120": 99 * KIB,
    }
)

# From sm_90 on the system keeps this much of each block's shared memory, and a cubin counts it
# among the static one; the limits above leave it out.
_RESERVED_BYTES = KIB

_SYMBOL_BYTES = 24
_WITH_PAYLOAD = 4
_FRAME_SIZE, _MIN_STACK_SIZE, _REGISTERS = 0x11, 0x12, 0x2F


@dataclass(frozen=True)
class Resources:
    """What one kernel takes.

    Attributes:
        registers: of a thread.
        shared_bytes: static shared memory of a block.
        local_bytes: of a thread; it is where registers are spilled to, so kernels have none.
    """

    registers: int
    shared_bytes: int
    local_bytes: int


class _Section(NamedTuple):
    name: str
    offset: int
    size: int
    names: int  # where the names of a symbol table's symbols start


def read_resources(cubin: bytes, name: str) -> Resources:
    """What the kernel `name` takes.

    Raises:
        UsageError: the file is no cubin, or has no such kernel.
    """
    try:
        sections = {section.name: section for section in _sections(cubin)}
        symbol = _symbol(cubin, sections, name)
        numbers = dict(_numbers(cubin, sections[".nv.info"], symbol))
        registers = numbers[_REGISTERS]
    except (struct.error, ValueError, IndexError, KeyError):
        raise UsageError(
            f"cubin: must be a 64-bit ELF file of NVIDIA's with a kernel {name!r}; got"
            f" {len(cubin)} bytes without one"
        ) from None
    shared = sections.get(f".nv.shared.{name}")
    reserved = _RESERVED_BYTES if ".nv.shared.reserved.0" in sections else 0
    return Resources(
        registers=registers,
        shared_bytes=max(0, shared.size - reserved) if shared else 0,
        local_bytes=max(numbers.get(_FRAME_SIZE, 0), numbers.get(_MIN_STACK_SIZE, 0)),
    )


def _sections(cubin: bytes) -> Iterator[_Section]:
    if cubin[:5] != b"\x7fELF\x02":
        raise ValueError("not a 64-bit ELF file")
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    headers = [struct.unpack_from("<IIQQQQI", cubin, table + size * i) for i in range(count)]
    for name, _, _, _, offset, length, link in headers:
        yield _Section(_text(cubin, headers[names][4] + name), offset, length, headers[link][4])


def _text(cubin: bytes, start: int) -> str:
    return cubin[start : cubin.index(b"\0", start)].decode()


def _symbol(cubin: bytes, sections: Mapping[str, _Section], name: str) -> int:
    table = sections[".symtab"]
    for index in range(table.size // _SYMBOL_BYTES):
        (start,) = struct.unpack_from("<I", cubin, table.offset + _SYMBOL_BYTES * index)
        if _text(cubin, table.names + start) == name:
            return index
    raise KeyError(name)


def _numbers(cubin: bytes, info: _Section, symbol: int) -> Iterator[tuple[int, int]]:
    """(attribute, number) of each attribute of the symbol."""
    position, end = info.offset, info.offset + info.size
    while position < end:
        layout, attribute, value = struct.unpack_from("<BBH", cubin, position)
        position += 4
        if layout != _WITH_PAYLOAD:
            continue
        if value == 8:
            owner, number = struct.unpack_from("<II", cubin, position)
            if owner == symbol:
                yield attribute, number
        position += value
