"""Linear layers of Llama with LoRA on the CPU: ftrt's int8 against the peers, interleaved.

    python benchmarks/cpu/linears.py [--quick] [--minutes 12] [--compile] [--dtype float32]
                                     [--models 1b,8b] [--rows 512,2048,128,16,1] [--json FILE]

Each (shape, M) is measured twice over: with the update, forward and backward, and without it,
forward alone, where `_weight_int8pack_mm`, `_int_mm` and the int8 product itself take part. A ratio
is peer / ftrt of the same round, so above 1 ftrt is faster; median, p10 and p90 are given. Errors
are against float64 and the true weight. At M <= 16 the caches are emptied before every call, since
decoding reads each weight from memory.

At the end stand the geometric means over the whole table that issue 3 asks for. FTRT_CPU_ISA
forces ftrt's instruction set; `forced_isa.py` holds the peers to the same class.
"""

import sys
from pathlib import Path

# the folder that holds `measuring`
sys.path.append(str(Path(__file__).resolve().parents[1]))

import argparse
import time
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import torch
from ceilings import measure_all
from linear_floors import floor_variants
from linear_summary import summarize
from machine import last_level_cache_bytes, start
from measuring.interleave import Rounds, interleave
from measuring.linear_problem import Exact, Problem, make_problem, random_rows
from measuring.linear_variants import (
    Variant,
    bitsandbytes_variants,
    dequantize_variant,
    frozen_storages,
    own_variants,
    peft_variants,
    torchao_variants,
)
from measuring.records import Records, milliseconds, parser, times

# (out_features, in_features) of the distinct linears of a decoder layer
LAYERS = {
    "1b": [(2048, 2048), (512, 2048), (8192, 2048), (2048, 8192)],
    "8b": [(4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336)],
    "smollm2": [(576, 576), (192, 576), (1536, 576), (576, 1536)],
    "minilm": [(384, 384), (1536, 384), (384, 1536)],
    "tiny": [(48, 64)],
}
ROWS = (512, 2048, 128, 16, 1)
DECODE = 16
OWN = ("ftrt w8a8", "ftrt w8a16", "ftrt lora_linear")
OWN_FLOORS = ("ftrt w8a8 base", "ftrt w8a16 base", "ftrt w8a8 GEMM")


def build(records: Records, problem: Problem, options: argparse.Namespace) -> list[Variant]:
    """All variants with an update; one that cannot be built is recorded and named."""
    makers: dict[str, Callable[[], Iterator[Variant]]] = {
        "ftrt": lambda: own_variants(problem),
        "PEFT": lambda: peft_variants(problem, compiled=options.compile),
        "bitsandbytes": lambda: bitsandbytes_variants(problem),
        "torchao": lambda: torchao_variants(problem),
        "dequantize": lambda: dequantize_variant(problem),
    }
    variants = []
    for name, make in makers.items():
        if name in options.without:
            continue
        try:
            variants += list(make())
        except (ImportError, RuntimeError, ValueError, AttributeError, TypeError) as error:
            records.away(name, error)
    return variants


def gated(
    records: Records, variants: list[Variant], exact: Exact, where: str
) -> dict[str, dict[str, float]]:
    """variant -> errors, of those whose results are right; the others are refused or away."""
    passed = {}
    for variant in variants:
        try:
            errors = variant.errors(exact)
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            records.away(variant.name, error)
            continue
        if records.gate(f"{where} {variant.name}", variant.gate, errors):
            passed[variant.name] = errors
    return passed


def buffers(rows: int, problem: Problem) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Inputs and gradients, so many that they do not stay in the caches between rounds."""
    size = 2 * rows * (problem.in_features + problem.out_features)
    count = max(2, min(8, -(-2 * last_level_cache_bytes() // size)))
    return (
        random_rows(count, rows, problem.in_features, problem.dtype),
        random_rows(count, rows, problem.out_features, problem.dtype),
    )


def evictor() -> Callable[[], None]:
    """A function that reads twice the last cache's size, so that nothing else is left in it."""
    filler = torch.ones(last_level_cache_bytes() // 2, dtype=torch.int32)
    return lambda: filler.max() and None


class Table:
    """One (shape, M): measures, prints and records."""

    def __init__(self, records: Records, problem: Problem, rows: int, model: str) -> None:
        self.records, self.problem, self.rows, self.model = records, problem, rows, model
        shape = f"{problem.out_features}x{problem.in_features}"
        self.where = f"{model} {shape} M {rows}"
        self.operations = 2 * rows * problem.out_features * problem.in_features
        self.xs, self.grads = buffers(rows, problem)
        self.before = evictor() if rows <= DECODE else None

    def with_update(
        self, variants: list[Variant], ceilings: dict[str, float], seconds: float, least: int
    ) -> None:
        """Forward and backward of all variants, ratios to each of ftrt's."""
        errors = gated(
            self.records, variants, Exact(self.problem, self.xs[0], self.grads[0]), self.where
        )
        runs = [variant for variant in variants if variant.name in errors]
        if not runs:
            return
        calls = {v.name: v.call(self.xs, self.grads) for v in runs}
        rounds = interleave(calls, seconds=seconds, least=least, before=self.before)
        print(f"\n{self.where}: forward + backward with LoRA, ms; ratio peer / ftrt")
        for variant in runs:
            saved = variant.saved_bytes(self.xs[0], frozen_storages(self.problem, variant))
            self._row("linear", variant, rounds, OWN, "total", ceilings, errors, saved_bytes=saved)

    def without_update(self, ceilings: dict[str, float], seconds: float, least: int) -> None:
        """Forward of the bare products."""
        variants = list(floor_variants(self.problem, self.xs))
        errors = gated(
            self.records, variants, Exact(self.problem, self.xs[0], self.grads[0]), self.where
        )
        runs = [variant for variant in variants if variant.name in errors]
        calls = {variant.name: variant.forward_call(self.xs) for variant in runs}
        if not calls:
            return
        rounds = interleave(calls, seconds=seconds, least=least, before=self.before)
        print(f"{self.where}: forward without LoRA")
        for variant in runs:
            self._row("floor", variant, rounds, OWN_FLOORS, "forward", ceilings, errors)

    def _row(
        self,
        record: str,
        variant: Variant,
        rounds: Rounds,
        own: tuple[str, ...],
        phase: str,
        ceilings: dict[str, float],
        errors: dict[str, dict[str, float]],
        **more: Any,
    ) -> None:
        name = variant.name
        phases = {p: rounds.seconds(name, p) for p in ("forward", "backward", "total")}
        taken = phases[phase]
        ratios = {
            f"{mine} {p}": rounds.ratio(name, mine, p)
            for mine in own
            if mine in rounds.times and mine != name
            for p in ("forward", "backward", "total")
        }
        rate = self.operations * (2 if phase == "total" else 1) / taken.median
        top = ceilings.get(variant.rate)
        read = variant.weight_bytes / taken.median
        self.records.write(
            record,
            model=self.model,
            out_features=self.problem.out_features,
            in_features=self.problem.in_features,
            rows=self.rows,
            name=name,
            seconds=phases,
            warm_up_seconds=rounds.warm_up_seconds[name],
            ratios={key: value for key, value in ratios.items() if value is not None},
            errors=errors[name],
            rate=rate,
            share=rate / top if top else None,
            read_share=read / ceilings["read"],
            weight_bytes=variant.weight_bytes,
            **more,
        )
        versus = ratios.get(f"{own[0]} {phase}")
        share = f"{rate / top:4.0%}" if top else "   -"
        notes = " ".join(f"{k} {v:.1e}" for k, v in errors[name].items() if "cosine" not in k)
        kept = f" saved {more['saved_bytes'] / 2**20:.2f} MiB" if more else ""
        print(
            f"  {name:<28}{milliseconds(taken):>30}  x{times(versus):<20}"
            f"{rate / 1e9:7.0f} G {share} of {variant.rate}; {notes}{kept}"
            f" (first call {rounds.warm_up_seconds[name] * 1e3:.0f} ms)",
            flush=True,
        )


def options_of() -> argparse.Namespace:
    """The command line."""
    options = parser(__doc__)
    options.add_argument("--minutes", type=float, default=12.0, help="stop measuring after")
    options.add_argument("--seconds", type=float, default=2.0, help="a row, at the least rounds")
    options.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    options.add_argument("--models", default="1b,8b")
    options.add_argument("--rows", default=",".join(map(str, ROWS)))
    options.add_argument("--rank", type=int, default=16)
    options.add_argument("--compile", action="store_true", help="torch.compile PEFT as well")
    options.add_argument(
        "--without", default="", help="leave out: PEFT, bitsandbytes, torchao, dequantize"
    )
    chosen = options.parse_args()
    chosen.without = chosen.without.split(",")
    chosen.least = 5
    if chosen.quick:
        chosen.models, chosen.rows, chosen.seconds, chosen.least = "1b", "512", 0.5, 3
    if chosen.smoke:
        chosen.models, chosen.rows, chosen.seconds, chosen.least = "tiny", "24,1", 0.0, 2
    return chosen


def main() -> int:
    """Measure the table, then the means over it."""
    options = options_of()
    records = Records(options.json)
    start(records, options.threads)
    ceilings = measure_all(options.threads, 0.1 if options.smoke else 0.6)
    for kind, rate in ceilings.items():
        records.write("ceiling", kind=kind, rate=rate)
    print("ceilings: " + ", ".join(f"{k} {v / 1e9:.0f} G/s" for k, v in ceilings.items()))
    end = time.monotonic() + 60 * options.minutes
    shapes = list(chain(*([(m, *s) for s in LAYERS[m]] for m in options.models.split(","))))
    for model, out_features, in_features in shapes:
        dtype = getattr(torch, options.dtype)
        problem = make_problem(out_features, in_features, rank=options.rank, dtype=dtype)
        variants = build(records, problem, options)
        for rows in map(int, options.rows.split(",")):
            table = Table(records, problem, rows, model)
            if time.monotonic() > end:
                print(f"!!! not measured, {options.minutes:g} minutes are over: {table.where}")
                records.write("unmeasured", where=table.where)
                continue
            table.with_update(variants, ceilings, options.seconds, options.least)
            table.without_update(ceilings, options.seconds / 2, options.least)
    summarize(records)
    return records.finish()


if __name__ == "__main__":
    raise SystemExit(main())
