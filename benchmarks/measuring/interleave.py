"""Interleaved timing: every variant once a round, ratios taken within a round.

Load, clock and temperature of a shared machine change by the second. Variants that are measured
one after another see different machines; variants that take turns see the same one, and the ratio
of two times of one round is the figure to trust. The order rotates by one from round to round, so
that no variant always runs after the same neighbour.
"""

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

# phase -> seconds; a variant times its own phases (forward, backward)
Phases = dict[str, float]
Call = Callable[[int], Phases]

# A variant this many times slower than the fastest takes part in every third round only.
SLOW = 4.0
SLOW_EVERY = 3


@dataclass(frozen=True)
class Spread:
    """Order statistics of some values."""

    p10: float
    median: float
    p90: float
    minimum: float
    count: int

    def scaled(self, factor: float) -> "Spread":
        """All values times a factor > 0."""
        return Spread(
            self.p10 * factor,
            self.median * factor,
            self.p90 * factor,
            self.minimum * factor,
            self.count,
        )


def spread(values: list[float]) -> Spread:
    """10th percentile, median, 90th percentile and minimum of at least one value."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0], values[0], 1)
    cuts = statistics.quantiles(values, n=10, method="inclusive")
    return Spread(cuts[0], statistics.median(values), cuts[8], min(values), len(values))


@dataclass
class Rounds:
    """What was measured: per variant, one entry of seconds by phase per round in which it ran.

    Attributes:
        times: variant -> round -> phase -> seconds.
        warm_up_seconds: variant -> the first call, where compilation and one-off packing happen;
            no other figure contains it.
    """

    times: dict[str, dict[int, Phases]] = field(default_factory=dict)
    warm_up_seconds: dict[str, float] = field(default_factory=dict)

    def seconds(self, variant: str, phase: str) -> Spread | None:
        """Seconds of one phase over the rounds, or None if it was never measured."""
        values = [times[phase] for times in self.times[variant].values() if phase in times]
        return spread(values) if values else None

    def ratio(self, peer: str, own: str, phase: str) -> Spread | None:
        """peer / own of the same round (above 1: own is faster), or None without common rounds."""
        common = [
            times[phase] / self.times[own][index][phase]
            for index, times in self.times[peer].items()
            if phase in times and phase in self.times[own].get(index, {})
        ]
        return spread(common) if common else None


def interleave(
    calls: Mapping[str, Call],
    *,
    seconds: float,
    least: int = 5,
    enough: int | None = None,
    warm_ups: int = 2,
    before: Callable[[], None] | None = None,
    totals: bool = True,
) -> Rounds:
    """Run `calls` in turns for about `seconds`, at least `least` rounds, at most `enough`.

    Args:
        calls: variant -> function of the round's number, which picks its buffers with it and
            returns seconds by phase.
        seconds: when to stop, warm-up excluded.
        least: rounds that run in any case.
        enough: rounds after which it stops before the time is over; None: it does not.
        warm_ups: untimed calls of each variant before the first round, at least 2.
        before: called untimed before each call (cache eviction).
        totals: add the sum of a call's phases as phase "total".
    """
    rounds = Rounds({name: {} for name in calls})
    for name, call in calls.items():
        start = time.perf_counter()
        call(0)
        rounds.warm_up_seconds[name] = time.perf_counter() - start
    usual = {name: sum(call(1).values()) for name, call in calls.items()}
    for name, call in calls.items():
        for index in range(2, warm_ups):
            usual[name] = sum(call(index).values())
    fastest = min(usual.values())
    names = list(calls)
    gc.collect()
    gc.disable()
    try:
        end = time.perf_counter() + seconds
        index = 0
        while index < least or (time.perf_counter() < end and index != enough):
            offset = index % len(names)
            for name in names[offset:] + names[:offset]:
                if usual[name] > SLOW * fastest and index % SLOW_EVERY:
                    continue
                if before is not None:
                    before()
                phases = calls[name](index)
                if totals:
                    phases = {**phases, "total": sum(phases.values())}
                rounds.times[name][index] = phases
            index += 1
    finally:
        gc.enable()
    return rounds


def geometric_mean(values: list[float]) -> float:
    """exp of the mean logarithm; NaN of nothing."""
    return math.exp(statistics.fmean(map(math.log, values))) if values else math.nan
