"""Stage linears: one linear layer with LoRA, forward and backward, ftrt against its peers.

A ratio is peer / ftrt of the same round, so above 1 ftrt is faster. The cases that acceptance asks
for come first: the linears of Llama-3-8B at M = 8192, rank 16, with torch.compile; then fewer and
ragged rows, other ranks, and the linears of the 1B.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from measuring.clock import Clock, clock_of
from measuring.interleave import Phases, Rounds, interleave
from measuring.linear_problem import Exact, Problem, make_problem, random_rows
from measuring.linear_variants import Variant, frozen_storages
from measuring.model_variants import COMPILED, FAILURES
from measuring.records import milliseconds, times

from gpu.ceilings import measure_ceilings
from gpu.machine import cache_bytes
from gpu.shapes import LINEARS
from gpu.stage import Stage
from gpu.variants import makers

ROWS = (8192, 2048, 512, 2047)
RANKS = (8, 64)
PHASES = ("forward", "backward", "total")
WARM_UPS = 25
ENOUGH = 100
SECONDS = 2.0


@dataclass(frozen=True)
class Case:
    """What one table is about."""

    model: str
    out_features: int
    in_features: int
    rows: int
    rank: int = 16
    is_compiled: bool = False

    @property
    def name(self) -> str:
        """As printed."""
        shape = f"{self.out_features}x{self.in_features}"
        return f"{self.model} {shape} M {self.rows} r {self.rank}"

    @property
    def operations(self) -> int:
        """Of the base's forward."""
        return 2 * self.rows * self.out_features * self.in_features


def cases(*, quick: bool) -> list[Case]:
    """The most wanted first."""
    if quick:
        return [Case("tiny", *shape, 24) for shape in LINEARS["tiny"]]
    large, small = LINEARS["8b"], LINEARS["1b"]
    return [
        *(Case("8b", *shape, ROWS[0], is_compiled=True) for shape in large),
        *(Case("8b", *shape, rows) for rows in ROWS[1:] for shape in large),
        *(Case("8b", *shape, ROWS[0], rank) for rank in RANKS for shape in large[::2]),
        *(Case("1b", *shape, rows) for rows in ROWS[:2] for shape in small),
    ]


def build(stage: Stage, problem: Problem, case: Case) -> list[Variant]:
    """All variants; one that cannot be built is away, by name."""
    variants = []
    for name, make in makers(problem, compiled=case.is_compiled).items():
        try:
            variants += list(make())
        except FAILURES as error:
            stage.records.away(name, error)
    return variants


def right(stage: Stage, variants: list[Variant], exact: Exact, where: str) -> dict[str, Any]:
    """variant -> errors, of those that pass their gate. This is each one's first call, with its
    compilation, whose seconds are recorded apart."""
    passed = {}
    for variant in variants:
        begin = time.perf_counter()
        try:
            errors = variant.errors(exact)
            stage.synchronize()
        except FAILURES as error:
            stage.records.away(variant.name, error)
            continue
        seconds = time.perf_counter() - begin
        stage.records.write("first_call", where=where, name=variant.name, seconds=seconds)
        if stage.records.gate(f"{where} {variant.name}", variant.gate, errors):
            passed[variant.name] = errors
    return passed


def peak_bytes(stage: Stage, call: Callable[[int], Phases]) -> int:
    """Most memory that one forward and backward adds to what is there."""
    stage.empty_memory()
    before = stage.allocated_bytes()
    call(0)
    stage.synchronize()
    return stage.peak_bytes() - before


class Table:
    """One case: built, checked, timed, printed, recorded."""

    def __init__(self, stage: Stage, case: Case, ceilings: dict[str, float]) -> None:
        self.stage, self.case, self.ceilings = stage, case, ceilings
        device = stage.device
        self.problem = make_problem(
            case.out_features, case.in_features, rank=case.rank, dtype=torch.bfloat16, device=device
        )
        size = 2 * case.rows * (case.in_features + case.out_features)
        count = max(2, min(8, -(-2 * cache_bytes(device) // size)))
        self.xs = random_rows(count, case.rows, case.in_features, torch.bfloat16, device)
        self.grads = random_rows(count, case.rows, case.out_features, torch.bfloat16, device)
        self.clocks: dict[str, Clock] = {}

    def measure(self) -> None:
        """The whole table."""
        variants = build(self.stage, self.problem, self.case)
        exact = Exact(self.problem, self.xs[0], self.grads[0])
        errors = right(self.stage, variants, exact, self.case.name)
        runs = [variant for variant in variants if variant.name in errors]
        if not runs:
            return
        calls = {}
        for variant in runs:
            self.clocks[variant.name] = clock_of(self.stage.device)
            calls[variant.name] = variant.call(self.xs, self.grads, self.clocks[variant.name])
        quick = self.stage.quick
        rounds = interleave(
            calls,
            seconds=0.0 if quick else SECONDS,
            least=2 if quick else 5,
            enough=ENOUGH,
            warm_ups=2 if quick else WARM_UPS,
        )
        self.stage.sample_state(self.case.name)
        print(f"\n{self.case.name}: forward + backward, ms (p10..p90); x ftrt w8a8")
        own = [name for name in calls if name.startswith("ftrt")]
        for variant in runs:
            memory = {
                "saved_bytes": self._saved_bytes(variant),
                "peak_bytes": peak_bytes(self.stage, calls[variant.name]),
                "weight_bytes": variant.weight_bytes,
            }
            self._row(variant, rounds, own, errors[variant.name], memory)

    def _saved_bytes(self, variant: Variant) -> int | None:
        """None of a compiled variant, which the hooks that count would compile anew."""
        if variant.name.endswith(COMPILED):
            return None
        return variant.saved_bytes(self.xs[0], frozen_storages(self.problem, variant))

    def _row(
        self,
        variant: Variant,
        rounds: Rounds,
        own: list[str],
        errors: dict[str, float],
        memory: dict[str, int | None],
    ) -> None:
        name, case = variant.name, self.case
        seconds = {phase: rounds.seconds(name, phase) for phase in PHASES}
        ratios = {
            f"{mine} {phase}": rounds.ratio(name, mine, phase)
            for mine in own
            if mine != name
            for phase in PHASES
        }
        rate = 2 * case.operations / seconds["total"].median
        top = self.ceilings.get(variant.rate)
        host = self.clocks[name].host_seconds
        self.stage.records.write(
            "linear",
            model=case.model,
            out_features=case.out_features,
            in_features=case.in_features,
            rows=case.rows,
            rank=case.rank,
            name=name,
            seconds=seconds,
            host_seconds=host,
            ratios=ratios,
            errors=errors,
            rate=rate,
            limited_by=variant.rate,
            share=rate / top if top else None,
            **memory,
        )
        versus = " ".join(
            f"x{times(ratios.get(f'{mine} total'))}" for mine in own if mine.startswith("ftrt w8a8")
        )
        notes = " ".join(f"{k} {v:.1e}" for k, v in errors.items() if "cosine" not in k)
        mine = f"{milliseconds(seconds['forward'])} + {milliseconds(seconds['backward'])}"
        print(
            f"  {name:<32}{milliseconds(seconds['total']):>24} = {mine}  {versus}  {notes}"
            f"  saved {(memory['saved_bytes'] or 0) / 2**20:.1f} MiB"
            + (f" host {host * 1e6:.0f} us" if host else ""),
            flush=True,
        )


def measure(stage: Stage) -> None:
    """Every case that the time suffices for."""
    ceilings = measure_ceilings(stage)
    for case in cases(quick=stage.quick):
        if not stage.has_time(case.name):
            continue
        # or the layers of earlier cases count towards the limit after which nothing is compiled
        torch.compiler.reset()
        stage.empty_memory()
        Table(stage, case, ceilings).measure()
    compiled = [
        row
        for row in stage.records.rows
        if row["record"] == "first_call" and row["name"].endswith(COMPILED)
    ]
    if compiled:
        spent = sum(row["seconds"] for row in compiled)
        print(f"\ntorch.compile took {spent:.0f} s in {len(compiled)} cases, in no ratio")
