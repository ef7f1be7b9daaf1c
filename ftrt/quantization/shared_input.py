"""One quantized x for the int8 layers that are given the very same x: query, key and value, or gate
and up.
"""

__all__ = ["SharedInput"]

import threading
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ftrt.ops import quantize_per_token

Quantized = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class _Entry:
    """What was made of one x, and how x is known again."""

    x: "weakref.ref[Tensor]"
    key: tuple[Any, ...]
    quantized: Quantized


class SharedInput:
    """The last x that the layers of one parent quantized, and what became of it.

    An x is known by identity, not by value: the same tensor object at the same version (torch
    counts writes in place, except those through `.data` and those of a CUDA graph's replay),
    computed with in the same dtype, with the same outlier columns. Each thread has its own. x is
    held weakly, and the quantized rows go with x or at the next x, whichever is first. Under
    `torch.compile` it does nothing: there the compiler drops the repeated computation. Nor does it
    while a CUDA graph is captured: what was made of the graph's input before is no part of the
    graph.
    """

    def __init__(self) -> None:
        # thread -> entry; single operations on a dict are atomic
        self._entries: dict[int, _Entry] = {}

    def quantize(self, x: Tensor, outliers: Tensor | None, columns: tuple[int, ...]) -> Quantized:
        """`quantize_per_token(x, outliers)`, or what an earlier layer got for the same x.

        Args:
            x: (..., in_features).
            outliers: (columns) int64, or None.
            columns: the same as numbers, which are compared without reading the tensor.
        """
        # An inference tensor has no version, so a write to it could not be seen.
        if torch.compiler.is_compiling() or x.is_inference() or _is_captured(x):
            return quantize_per_token(x, outliers)
        thread, key = threading.get_ident(), _key(x, columns)
        entry = self._entries.get(thread)
        if entry is not None and entry.x() is x and entry.key == key:
            return entry.quantized
        self._entries.pop(thread, None)
        quantized = quantize_per_token(x, outliers)
        self._entries[thread] = _Entry(weakref.ref(x, self._forgetter()), key, quantized)
        return quantized

    def _forgetter(self) -> Any:
        """Drops the entry of an x that is gone, whichever thread let it go."""
        entries = self._entries

        def forget(reference: "weakref.ref[Tensor]") -> None:
            for thread, entry in list(entries.items()):
                if entry.x is reference:
                    entries.pop(thread, None)

        return forget

    def __reduce__(self) -> tuple[type["SharedInput"], tuple[()]]:
        # Layers that share go on sharing in a copy or a pickle, which starts empty.
        return SharedInput, ()


def _is_captured(x: Tensor) -> bool:
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def _key(x: Tensor, columns: tuple[int, ...]) -> tuple[Any, ...]:
    device = x.device.type
    autocast = torch.is_autocast_enabled(device)
    return (
        x._version,
        x.dtype,
        torch.get_autocast_dtype(device) if autocast else None,
        # An xq that was made in inference mode cannot be saved for a backward pass outside it.
        torch.is_inference_mode_enabled(),
        columns,
    )
