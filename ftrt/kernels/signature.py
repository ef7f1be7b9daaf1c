"""What a kernel takes, as one string, and how arguments become the bytes it reads.

A signature is one letter a parameter, in order: `p` a pointer (a tensor, an address, or None for
null), `i` int32, `u` uint32, `l` int64, `f` float32. Each stands at the next multiple of its own
size, which is how CUDA lays out parameters and C++ a struct of them.
"""

__all__ = ["Argument", "Signature"]

import struct
from collections.abc import Sequence
from functools import cached_property

from torch import Tensor

from ftrt.errors import UsageError

Argument = Tensor | int | float | None

# letter -> (struct format, what it takes)
_LETTERS = {"p": "Q", "i": "i", "u": "I", "l": "q", "f": "f"}


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
        try:
            pairs = zip(self.letters, arguments, strict=True)
            return self._packer.pack(*(_value(letter, argument) for letter, argument in pairs))
        except (struct.error, ValueError, TypeError) as error:
            raise UsageError(
                f"Signature: arguments must fit {self.letters!r}; got {len(arguments)} of them:"
                f" {error}"
            ) from None


def _value(letter: str, argument: Argument) -> int | float:
    if letter != "p":
        if argument is None or isinstance(argument, Tensor):
            raise TypeError(f"{letter} takes a number, not {type(argument).__name__}")
        return argument
    if isinstance(argument, Tensor):
        return argument.data_ptr()
    return 0 if argument is None else int(argument)
