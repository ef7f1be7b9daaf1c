"""What a kernel takes, as one string, and how arguments become the bytes it reads.

A signature is one letter a parameter, in order: `p` a pointer (a tensor, an address, or None for
null), `i` int32, `u` uint32, `l` int64, `f` float32. Each stands at the next multiple of its own
size, which is how CUDA lays out parameters and C++ a struct of them.
"""

__all__ = ["Argument", "Signature"]

import struct
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from torch import Tensor

from ftrt.errors import UsageError

Argument = Tensor | int | float | None

# letter -> (struct format, what it takes)
_LETTERS = {"p": "Q", "i": "i", "u": "I", "l": "q", "f": "f"}

_NUMBERS = frozenset((int, float, bool))


class Signature:
    """The parameters of one kernel.

    Args:
        letters: one a parameter; blanks are ignored.

    Raises:
        UsageError: another letter.
    """

    def __init__(self, letters: str) -> None:
        self.letters = letters.replace(" ", "")
        unknown = sorted(set(self.letters) - set(_LETTERS))
        if unknown:
            raise UsageError(
                f"Signature: each parameter must be one of {', '.join(_LETTERS)}; got"
                f" {', '.join(unknown)} in {letters!r}"
            )

        self._pointers = tuple(i for i, letter in enumerate(self.letters) if letter == "p")
        self._numbers = tuple(i for i, letter in enumerate(self.letters) if letter != "p")

    def __len__(self) -> int:
        return len(self.letters)

    @cached_property
    def _packer(self) -> struct.Struct:
        layout, offset = "<", 0
        for letter in self.letters:
            size = struct.calcsize(_LETTERS[letter])
            padding = -offset % size
            layout += f"{padding}x{_LETTERS[letter]}" if padding else _LETTERS[letter]
            offset += padding + size
        return struct.Struct(layout)

    @property
    def size_bytes(self) -> int:
        """Bytes of the parameter buffer."""
        return self._packer.size

    def pack(self, arguments: Sequence[Argument]) -> bytes:
        """The parameter buffer.

        Raises:
            UsageError: another number of arguments, or one that its parameter cannot hold.
        """
        values: list[Any] = list(arguments)
        try:
            if len(values) != len(self.letters):
                raise TypeError(f"it has {len(self.letters)} parameters")
            # Every launch comes through here: two short loops take a quarter of what one takes that
            # asks for the letter and then for the type.
            for i in self._pointers:
                value = values[i]
                if isinstance(value, Tensor):
                    values[i] = value.data_ptr()
                elif value is None:
                    values[i] = 0
            for i in self._numbers:
                if type(values[i]) not in _NUMBERS:
                    self._check_number(i, values[i])
            return self._packer.pack(*values)
        except (struct.error, TypeError) as error:
            raise UsageError(
                f"Signature: arguments must fit {self.letters!r}; got {len(arguments)} of them:"
                f" {error}"
            ) from None

    def _check_number(self, index: int, value: object) -> None:
        # struct would take a tensor of one element, and wait for the GPU to read it
        if not isinstance(value, (int, float)):
            raise TypeError(f"{self.letters[index]} takes a number, not {type(value).__name__}")
