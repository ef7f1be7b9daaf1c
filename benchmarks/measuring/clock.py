"""Seconds of the parts of one call: by the host's clock, or by events in a CUDA stream."""

import itertools
import time
from collections.abc import Callable
from typing import Protocol

import torch

from measuring.interleave import Phases

# Cycles a second that a sleeping kernel counts, rounded up: sleeping longer than asked is harmless.
_CYCLES = 2e9
# Calls that measure how long the host takes to enqueue, after a first one that compiles.
_UNPRIMED = 3
_LONGEST_SLEEP = 20e-3


class Clock(Protocol):
    """Times the calls of one variant.

    Attributes:
        host_seconds: the least a call has kept the host busy; None where that is the time itself.
    """

    host_seconds: float | None

    def phases(self, **parts: Callable[[], object]) -> Phases:
        """Run the parts in order; seconds of each by its name."""


class HostClock:
    """`time.perf_counter`, for work that is done when the call returns."""

    host_seconds: float | None = None

    def phases(self, **parts: Callable[[], object]) -> Phases:
        """Run the parts in order; seconds of each by its name."""
        found = {}
        begin = time.perf_counter()
        for name, part in parts.items():
            part()
            end = time.perf_counter()
            found[name], begin = end - begin, end
        return found


class EventClock:
    """CUDA events in the current stream, behind a kernel that sleeps until the host has enqueued
    the whole call.

    So a figure is the device's time as in a long run, where the host is ahead, and not the time of
    launching; how long the host took is kept apart. A call that waits for the device in its middle
    (a host synchronization) is charged for it, since then nothing can run ahead.
    """

    def __init__(self) -> None:
        self.host_seconds: float | None = None
        self._calls = 0
        self._cycles = 0

    def phases(self, **parts: Callable[[], object]) -> Phases:
        """Run the parts in order and wait for them; seconds of each by its name."""
        torch.cuda.synchronize()
        if self._cycles:
            torch.cuda._sleep(self._cycles)
        events = [torch.cuda.Event(enable_timing=True) for _ in range(len(parts) + 1)]
        begin = time.perf_counter()
        events[0].record()
        for part, event in zip(parts.values(), events[1:], strict=True):
            part()
            event.record()
        host = time.perf_counter() - begin
        torch.cuda.synchronize()
        self._learn(host)
        spans = itertools.pairwise(events)
        return dict(zip(parts, (a.elapsed_time(b) / 1e3 for a, b in spans), strict=True))

    def _learn(self, host: float) -> None:
        """Unprimed calls alone tell the host's time: behind a sleep a waiting call would count it,
        and the sleep would grow with itself."""
        self._calls += 1
        if 1 < self._calls <= 1 + _UNPRIMED:
            self.host_seconds = min(host, self.host_seconds or host)
        if self._calls == 1 + _UNPRIMED and self.host_seconds is not None:
            self._cycles = round(min(1.2 * self.host_seconds, _LONGEST_SLEEP) * _CYCLES)


def clock_of(device: torch.device) -> Clock:
    """A new clock for calls whose work is on `device`."""
    return EventClock() if device.type == "cuda" else HostClock()
