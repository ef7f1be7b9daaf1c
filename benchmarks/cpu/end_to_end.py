"""LoRA fine-tuning steps of whole models on the CPU: ftrt against the peers, interleaved.

    python benchmarks/cpu/end_to_end.py [smollm2] [minilm] [--quick] [--minutes 12] [--no-compile]
                                        [--no-memory] [--weights auto|asset|random] [--json FILE]

A step is forward, backward, clipping and AdamW, rank 16 on all linear layers, bfloat16 activations:
SmolLM2-135M with 4 x 256 tokens, MiniLM with 32 x 64. Every variant takes one step a round, and a
ratio is peer / ftrt of the same round. The first call, with compilation in it, is printed apart.
Peak memory is taken above the bare interpreter, each variant in a process of its own.

A variant whose loss after the same steps on the same batches departs from PEFT bf16's by more than
2 % trains something else: its speed is refused.
"""

import sys
from pathlib import Path

# the folder that holds `measuring`
sys.path.append(str(Path(__file__).resolve().parents[1]))

import argparse
import gc
import json
import subprocess
import time
from typing import Any

import torch
from machine import start
from measuring.interleave import Rounds, interleave
from measuring.model_variants import COMPILABLE, COMPILED, FAILURES, OWN, PEERS, build
from measuring.records import Records, milliseconds, parser, times, verdict
from measuring.training_step import TrainingStep
from workloads import Workload, make_workload

REFERENCE = "PEFT bf16"
# a slow first call (compilation) may use up at most this share of the time allowed
COMPILE_SHARE = 0.5
TARGETS = (
    ("PEFT bf16 compiled", 1.5),
    ("PEFT bf16", 2.5),
    ("bitsandbytes int8 + PEFT", 4.0),
    ("PEFT default", 1.0),
    ("torchao int8 + PEFT", 1.0),
)
MEMORY_TARGET = 0.6


def chosen_names(options: argparse.Namespace) -> list[str]:
    """The variants to run, PEFT bf16 first."""
    names = [*PEERS, *OWN]
    if not options.no_compile:
        names += [name + COMPILED for name in COMPILABLE]
    if options.only:
        wanted = [name.strip() for name in options.only.split(",")]
        names = [REFERENCE, *(name for name in wanted if name != REFERENCE)]
    return names


def prepare(
    records: Records, workload: Workload, names: list[str], end: float
) -> dict[str, TrainingStep]:
    """Build every variant and run its first step; what fails or comes too late is away."""
    calibration = workload.batches[-1:] if workload.weights == "asset" else None
    steps = {}
    for name in names:
        if time.monotonic() > end:
            records.away(f"{workload.name} {name}", TimeoutError("no time is left to build it"))
            continue
        try:
            variant = build(
                name, lambda: workload.make(torch.bfloat16), workload.targets, calibration
            )
            steps[name] = TrainingStep(variant, workload.batches)
            begin = time.perf_counter()
            steps[name](0)
        except FAILURES as error:
            steps.pop(name, None)
            records.away(f"{workload.name} {name}", error)
            continue
        first = time.perf_counter() - begin
        print(f"  {name}: first step {first:.1f} s {variant.notes or ''}", flush=True)
        records.write("first_step", workload=workload.name, name=name, seconds=first)
        gc.collect()
    return steps


def right(records: Records, workload: Workload, steps: dict[str, TrainingStep]) -> set[str]:
    """The variants whose loss is that of PEFT bf16 after the same steps."""
    passed = set()
    for name, step in steps.items():
        count = min(len(step.losses), len(steps[REFERENCE].losses))
        loss, reference = step.losses[count - 1], steps[REFERENCE].losses[count - 1]
        difference = abs(loss - reference) / abs(reference)
        values = {"loss": difference}
        if records.gate(f"{workload.name} {name} after {count} steps", "training", values):
            passed.add(name)
        records.write(
            "loss", workload=workload.name, name=name, steps=count, loss=loss, reference=reference
        )
    return passed


def peak(options: argparse.Namespace, workload: Workload, name: str) -> dict[str, Any]:
    """What `peak_memory.py` says of a variant."""
    script = str(Path(__file__).with_name("peak_memory.py"))
    command = [sys.executable, script, workload.name, name, "--weights", workload.weights]
    command += ["--threads", str(options.threads), *(["--tiny"] if options.smoke else [])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise RuntimeError(f"peak_memory: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def memory(
    records: Records, options: argparse.Namespace, workload: Workload, names: list[str]
) -> None:
    """Peak memory of each variant, and the acceptance line."""
    print(f"\n{workload.name}: peak memory above the bare interpreter")
    above: dict[str, int] = {}
    for name in names:
        try:
            marks = peak(options, workload, name)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            records.away(f"memory of {workload.name} {name}", RuntimeError(str(error)))
            continue
        above[name] = marks["above_bytes"]
        records.write("memory", workload=workload.name, name=name, **marks)
        share = above[name] / above[REFERENCE] if REFERENCE in above else float("nan")
        print(
            f"  {name:<28}{above[name] / 2**20:8.0f} MiB  x{share:.2f} of {REFERENCE}", flush=True
        )
    if REFERENCE in above and "ftrt w8a8" in above:
        ratio = above[REFERENCE] / above["ftrt w8a8"]
        claim = f"{workload.name}: peak memory, PEFT bf16 / ftrt w8a8"
        verdict(records, claim, ratio, 1 / MEMORY_TARGET)


def report(
    records: Records, workload: Workload, rounds: Rounds, steps: dict[str, TrainingStep]
) -> None:
    """The table and the acceptance lines of speed."""
    passed = right(records, workload, steps)
    print(f"\n{workload.name}, {workload.weights} weights: a step, ms; tokens/s; x ftrt w8a8")
    for name in steps:
        if name not in passed:
            continue
        seconds = rounds.seconds(name, "total")
        own = {mine: rounds.ratio(name, mine, "total") for mine in passed if mine != name}
        own = {mine: ratio for mine, ratio in own.items() if mine.startswith("ftrt") and ratio}
        parts = {p: rounds.seconds(name, p) for p in ("forward", "backward", "optimizer")}
        rate = workload.tokens / seconds.median
        records.write(
            "step",
            workload=workload.name,
            name=name,
            seconds={"total": seconds, **parts},
            tokens_per_second=rate,
            ratios=own,
            notes=steps[name].variant.notes,
        )
        shares = " ".join(f"{p[0]} {part.median * 1e3:.0f}" for p, part in parts.items())
        print(
            f"  {name:<28}{milliseconds(seconds):>30}{rate:9.0f} tok/s"
            f"  x{times(own.get('ftrt w8a8')):<20} {shares}"
        )
    mine = [name for name in ("ftrt w8a8", "ftrt w8a8 compiled") if name in passed]
    for own_name in mine:
        for peer, target in TARGETS:
            ratio = rounds.ratio(peer, own_name, "total") if peer in passed else None
            value = ratio.median if ratio else None
            claim = f"{workload.name}: tokens/s of {own_name} vs {peer}"
            verdict(records, claim, value, target)


def main() -> int:
    """Each workload in turn, sharing the minutes."""
    options = parser(__doc__)
    options.add_argument("workloads", nargs="*", metavar="WORKLOAD", help="smollm2, minilm")
    options.add_argument("--minutes", type=float, default=12.0)
    options.add_argument("--weights", choices=["auto", "asset", "random"], default="auto")
    options.add_argument("--only", default="", help="names of variants, separated by commas")
    options.add_argument("--no-compile", action="store_true")
    options.add_argument("--no-memory", action="store_true")
    options = options.parse_args()
    names = options.workloads or ["smollm2", "minilm"]
    records = Records(options.json)
    start(records, options.threads)
    for place, workload_name in enumerate(names):
        seconds = 60 * options.minutes / len(names)
        end = time.monotonic() + seconds
        workload = make_workload(workload_name, options.weights, is_tiny=options.smoke)
        records.write("workload", name=workload.name, weights=workload.weights)
        print(f"\n{workload.name} ({place + 1} of {len(names)}), {workload.weights} weights")
        variants = chosen_names(options)
        steps = prepare(records, workload, variants, end - (1 - COMPILE_SHARE) * seconds)
        if REFERENCE not in steps:
            print(f"!!! {workload.name}: {REFERENCE} is the reference and could not run")
            records.refused.append(f"{workload.name}: ftrt has no reference to be compared with")
            continue
        left = max(0.0, end - time.monotonic()) * (1.0 if options.no_memory else 0.6)
        least, left = (2, 0.0) if options.quick or options.smoke else (5, left)
        report(records, workload, interleave(steps, seconds=left, least=least), steps)
        built = list(steps)
        del steps
        gc.collect()
        if not options.no_memory:
            memory(records, options, workload, built)
    return records.finish()


if __name__ == "__main__":
    raise SystemExit(main())
