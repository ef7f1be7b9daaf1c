"""The targets of issue 4, acceptance 6 to 10, beside what was measured."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from measuring.interleave import geometric_mean

Row = dict[str, Any]
Stages = dict[str, list[Row]]

MET, MISSED, NOT_MEASURED = "met", "missed", "not measured"
W8A8 = "ftrt w8a8"
# int8_product of a machine -> the forced variant that ftrt chooses there by itself
_CHOSEN = {"w8a8_gemm": f"{W8A8} own", "library": f"{W8A8} library"}
# where the own kernel's instructions have the int8 rate of the chip
_PORTABLE = ("sm_80", "sm_86", "sm_87", "sm_89", "sm_120", "sm_121")


@dataclass(frozen=True)
class Line:
    """One target.

    Attributes:
        number: of the acceptance.
        claim: what is compared, and over how much.
        value: measured, or None.
        target: as text, with the limit in brackets where there is one.
        outcome: `MET`, `MISSED` or `NOT_MEASURED`.
    """

    number: int
    claim: str
    value: float | str | None
    target: str
    outcome: str


def rows_of(stages: Stages, stage: str, record: str) -> list[Row]:
    """Rows of one kind; none where the stage was not run."""
    return [row for row in stages.get(stage, []) if row["record"] == record]


def machine_of(stages: Stages) -> Row:
    """What the figures were measured on; of the first stage that says."""
    for rows in stages.values():
        for row in rows:
            if row["record"] == "machine":
                return row
    return {}


def headline(stages: Stages) -> list[Row]:
    """Rows of the linears that acceptance is about: 8B, M = 8192, rank 16."""
    return [
        row
        for row in rows_of(stages, "linears", "linear")
        if (row["model"], row["rows"], row["rank"]) == ("8b", 8192, 16)
    ]


def ratio_mean(rows: Iterable[Row], peer: str, own: str, phase: str = "total") -> float | None:
    """Geometric mean of the median ratios peer / own, or None if one of the four linears is
    missing: a mean over what happens to be there is another figure."""
    key = f"{own} {phase}"
    found = {
        (row["out_features"], row["in_features"]): row["ratios"][key]["median"]
        for row in rows
        if row["name"] == peer and row["ratios"].get(key)
    }
    return geometric_mean(list(found.values())) if len(found) == 4 else None


def outcome(value: float | None, holds: Callable[[float], bool]) -> str:
    """By value; NaN and None are not measured."""
    if value is None or not math.isfinite(value):
        return NOT_MEASURED
    return MET if holds(value) else MISSED


def at_least(number: int, claim: str, value: float | None, least: float, limit: str = "") -> Line:
    """A line whose value has a lower bound."""
    target = f">= {least:g}{limit}"
    return Line(number, claim, value, target, outcome(value, lambda v: v >= least))


def at_most(number: int, claim: str, value: float | None, most: float) -> Line:
    """A line whose value has an upper bound."""
    return Line(number, claim, value, f"<= {most:g}", outcome(value, lambda v: v <= most))


def _correctness(stages: Stages) -> Iterable[Line]:
    tests = [row for row in rows_of(stages, "correctness", "tests") if row.get("on_cuda")]
    passed = tests[-1]["counts"].get("passed") if tests and tests[-1].get("counts") else None
    outcomes = {"passed": MET, "failed": MISSED}
    state = outcomes.get(tests[-1]["outcome"], NOT_MEASURED) if tests else NOT_MEASURED
    yield Line(6, "tests of ops and kernels on CUDA", passed, "all pass", state)
    by_tool = {row["tool"]: row for row in rows_of(stages, "correctness", "sanitizer")}
    for tool in ("memcheck", "racecheck"):
        errors = by_tool.get(tool, {}).get("errors")
        is_right = by_tool.get(tool, {}).get("outcome") == "passed"
        state = NOT_MEASURED if errors is None else MET if is_right else MISSED
        yield Line(6, f"compute-sanitizer {tool}", errors, "0 errors", state)


def _linears(stages: Stages) -> Iterable[Line]:
    rows, machine = headline(stages), machine_of(stages)
    where = "8B linears, M 8192, r 16, forward + backward"
    library, own = f"{W8A8} library", f"{W8A8} own"
    value = ratio_mean(rows, "PEFT bf16", library)
    yield at_least(7, f"w8a8 library / PEFT bf16, {where}", value, 1.4, " [1.67]")
    value = ratio_mean(rows, library, own)
    claim = f"own GEMM / library, {where}"
    if machine.get("arch") in _PORTABLE:
        yield at_least(7, claim, value, 1.0)
    else:
        target = "asked of sm_80, 86, 89, 120 alone"
        yield Line(7, claim, value, target, NOT_MEASURED)
    kernels = rows_of(stages, "kernels", "kernel")
    shares = [r["share"] for r in kernels if r["kernel"].startswith("quantize") and r["share"]]
    value = geometric_mean(shares) if shares else None
    yield at_least(7, "prologues, share of copy bandwidth", value, 0.85)
    chosen = _CHOSEN.get(machine.get("int8_product", ""), W8A8)
    for threshold in (6, 0):
        peer = f"bitsandbytes int8 t{threshold} + PEFT"
        value = ratio_mean(rows, peer, chosen)
        yield at_least(8, f"{chosen} / {peer}, {where}", value, 1.5)


def _models(stages: Stages) -> Iterable[Line]:
    found = {
        (row["model"], row["checkpointing"]): row
        for row in rows_of(stages, "end_to_end", "comparison")
        if row["name"] == W8A8
    }
    for model in ("8b", "1b"):
        for checkpointing in (True, False):
            row = found.get((model, checkpointing), {})
            where = f"{model}, checkpointing {'on' if checkpointing else 'off'}"
            claim = f"tokens/s, w8a8 / PEFT bf16, {where}"
            limit = "" if checkpointing else " [1.66]"
            yield at_least(9, claim, row.get("speed"), 1.25, limit)
            claim = f"peak memory, w8a8 / PEFT bf16, {where}"
            yield at_most(9, claim, row.get("memory"), 0.65)


def _accuracy(stages: Stages) -> Iterable[Line]:
    by_name = {row["name"]: row for row in rows_of(stages, "end_to_end", "loss_curves")}
    for name in ("ftrt w8a8", "ftrt w8a16"):
        row = by_name.get(name, {})
        spread = row.get("seed_deviation")
        holds = row.get("holds")
        state = NOT_MEASURED if holds is None else MET if holds else MISSED
        target = "< spread between seeds" + ("" if spread is None else f", {spread:.4g}")
        claim = f"loss after 100 steps, {name} minus PEFT bf16"
        yield Line(10, claim, row.get("difference"), target, state)
    measured = [stages[name] for name in ("linears", "layer", "end_to_end") if name in stages]
    refused = [
        row
        for rows in measured
        for row in rows
        if row["record"] == "refused" and "ftrt" in row["where"]
    ]
    checked = any(r["record"] in ("linear", "layer", "step") for rows in measured for r in rows)
    state = MISSED if refused else MET if checked else NOT_MEASURED
    value = len(refused) if checked or refused else None
    yield Line(10, "figures of ftrt refused by an accuracy gate", value, "0", state)


def acceptance(stages: Stages) -> list[Line]:
    """Every target. Of a run without a GPU nothing is measured, whatever its rows say."""
    lines = [line for part in (_correctness, _linears, _models, _accuracy) for line in part(stages)]
    if machine_of(stages).get("gpu"):
        return lines
    return [Line(x.number, x.claim, None, x.target, NOT_MEASURED) for x in lines]
