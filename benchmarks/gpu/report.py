"""The JSON lines of a run as Markdown, for benchmarks/results.

python benchmarks/gpu/report.py runs/gpu [--out benchmarks/results/DATE-gpu-NAME.md]
"""

import sys
from pathlib import Path

# the folder that holds `gpu` and `measuring`
sys.path.append(str(Path(__file__).resolve().parents[1]))

import argparse
import json
from collections.abc import Iterable, Sequence
from typing import Any

from gpu.acceptance import Row, Stages, acceptance, headline, machine_of, ratio_mean, rows_of

FILE = "report.md"
ORDER = ("ceilings", "correctness", "kernels", "linears", "layer", "end_to_end")
PEERS = (
    "PEFT bf16",
    "PEFT default",
    "PEFT bf16 compiled",
    "cuBLAS + addmm",
    "bitsandbytes int8 t6 + PEFT",
    "bitsandbytes int8 t0 + PEFT",
    "torchao int8 + PEFT",
    "dequantize + F.linear",
    "bf16 GEMMs alone",
)


def load(folder: Path) -> Stages:
    """stage -> rows, of every stage that the folder has a file of, also of one cut off."""
    stages = {}
    for name in ORDER:
        file = folder / f"{name}.jsonl"
        if file.exists():
            lines = file.read_text(encoding="utf-8").splitlines()
            # a run that was killed may have left half a line
            stages[name] = [json.loads(line) for line in lines if line.endswith("}")]
    return stages


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table, or a line that says there is nothing."""
    body = ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    if not body:
        return "nothing was measured\n"
    head = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*head, *body]) + "\n"


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _ms(spread: Row | None) -> str:
    if spread is None:
        return "-"
    p10, median, p90 = (1e3 * spread[key] for key in ("p10", "median", "p90"))
    return f"{median:.4g} ({p10:.4g}..{p90:.4g})"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _mebibytes(count: int | None) -> str:
    return f"{count / 2**20:.0f}" if count else "-"


def _head(stages: Stages) -> Iterable[str]:
    found = machine_of(stages)
    gpu = found.get("gpu") or "no GPU (figures show that the script runs, and no more)"
    versions = ", ".join(f"{k} {v}" for k, v in found.get("versions", {}).items())
    yield f"# {found.get('date', 'no date')[:10]}, {gpu}, {versions}\n"
    facts = {k: found[k] for k in ("driver", "cuda", "arch", "multiprocessors") if k in found}
    listed = ", ".join(f"{k} {v}" for k, v in facts.items())
    yield f"`{found.get('command', '?')}` at commit {found.get('commit', '?')}. {listed}\n"
    if found.get("quick"):
        yield "**Toy sizes (`--quick`): nothing here is a measurement.**\n"
    states = [
        (stage, row)
        for stage, rows in stages.items()
        for row in rows
        if row["record"] == "state" and row["where"] == "after"
    ]
    keys = ("sm_mhz", "sm_max_mhz", "watts", "celsius")
    if states:
        yield "Clocks, power and temperature at the end of each stage:\n"
        rows = ([stage, *(row.get(key) for key in keys)] for stage, row in states)
        yield table(["stage", *keys], rows)


def _acceptance(stages: Stages) -> Iterable[str]:
    yield "## Targets of issue 4, acceptance 6 to 10\n"
    lines = acceptance(stages)
    rows = ([x.number, x.claim, x.value, x.target, x.outcome] for x in lines)
    yield table(["no.", "what (ratio above 1: ftrt is faster)", "measured", "target", ""], rows)


def _ceilings(stages: Stages) -> Iterable[str]:
    yield "## Ceilings\n"
    rows = rows_of(stages, "ceilings", "ceiling")
    yield table(["what", "T/s", "unit"], ([r["kind"], r["rate"] / 1e12, r["unit"]] for r in rows))
    for row in rows_of(stages, "ceilings", "int8_over_bf16"):
        note = "" if row["ratio"] >= 1.5 else ": below 1.5, so the targets of w8a8 are out of reach"
        yield f"int8 over bf16: {row['ratio']:.2f}{note}\n"
    rows = rows_of(stages, "ceilings", "product")
    if rows:
        yield "torch's bare products at the 8B linears:\n"
        yield table(
            ["N x K", "M", "what", "ms (p10..p90)", "T op/s", "of the ceiling"],
            (
                [
                    f"{r['out_features']} x {r['in_features']}",
                    r["rows"],
                    r["what"],
                    _ms(r["seconds"]),
                    r["rate"] / 1e12,
                    _percent(r["share"]),
                ]
                for r in rows
            ),
        )


def _correctness(stages: Stages) -> Iterable[str]:
    yield "## Correctness\n"
    for row in rows_of(stages, "correctness", "tests"):
        counts = ", ".join(f"{n} {kind}" for kind, n in row.get("counts", {}).items())
        yield f"- `{' '.join(row['command'][1:])}`: {row['outcome']} {counts}"
    for row in rows_of(stages, "correctness", "sanitizer"):
        what = row["tool"] or row["reason"]
        yield f"- compute-sanitizer, {what}: {row['outcome']}, {row.get('errors', '-')} errors"
    yield ""


def _kernels(stages: Stages) -> Iterable[str]:
    yield "## Kernels\n"
    rows = rows_of(stages, "kernels", "kernel")
    yield table(
        ["N x K", "path", "kernel", "ms (p10..p90)", "share", "of"],
        (
            [
                f"{r['out_features']} x {r['in_features']}",
                r["path"],
                f"`{r['label']}`",
                _ms(r["seconds"]),
                _percent(r["share"]),
                r["limited_by"],
            ]
            for r in rows
        ),
    )
    for row in rows_of(stages, "kernels", "launch"):
        yield f"- a launch by {row['name']} costs the host {row['seconds'] * 1e6:.1f} us"
    for row in rows_of(stages, "kernels", "never_launched"):
        yield f"- never launched at these shapes: {', '.join(row['kernels']) or 'none'}"
    yield ""


def _own_names(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(r["name"] for r in rows if r["name"].startswith("ftrt w8a")))


def _linears(stages: Stages) -> Iterable[str]:
    yield "## Linears with LoRA\n"
    rows = rows_of(stages, "linears", "linear")
    own = _own_names(rows)
    head = headline(stages)
    if head:
        yield "Geometric means over the four 8B linears, M = 8192, r = 16 (peer / ftrt):\n"
        phases = ("forward", "backward", "total")
        yield table(
            ["peer", *(f"{mine}: {'/'.join(phases)}" for mine in own)],
            (
                [
                    peer,
                    *(
                        " / ".join(_cell(ratio_mean(head, peer, mine, p)) for p in phases)
                        for mine in own
                    ),
                ]
                for peer in (*PEERS, *own)
            ),
        )
    yield "Forward + backward of each case; y, dx: relative error against float64:\n"
    yield table(
        [
            "case",
            "variant",
            "ms (p10..p90)",
            *(f"/ {mine}" for mine in own),
            "of ceiling",
            "y",
            "dx",
            "host us",
            "saved MiB",
            "peak MiB",
        ],
        (_linear_row(row, own) for row in rows),
    )


def _linear_row(row: Row, own: list[str]) -> list[object]:
    ratios = [row["ratios"].get(f"{mine} total") for mine in own]
    host = row.get("host_seconds")
    return [
        f"{row['model']} {row['out_features']} x {row['in_features']},"
        f" M {row['rows']}, r {row['rank']}",
        row["name"],
        _ms(row["seconds"]["total"]),
        *(ratio["median"] if ratio else None for ratio in ratios),
        _percent(row["share"]),
        f"{row['errors']['y']:.1e}",
        f"{row['errors']['dx']:.1e}" if "dx" in row["errors"] else None,
        round(host * 1e6) if host else None,
        _mebibytes(row["saved_bytes"]),
        _mebibytes(row["peak_bytes"]),
    ]


def _layer(stages: Stages) -> Iterable[str]:
    yield "## One decoder layer, forward + backward\n"
    rows = rows_of(stages, "layer", "layer")
    own = _own_names(rows)
    yield table(
        ["variant", "ms (p10..p90)", *(f"/ {m}" for m in own), "y", "dx", "saved MiB", "peak MiB"],
        (
            [
                r["name"],
                _ms(r["seconds"]["total"]),
                *(r["ratios"][m]["median"] if m in r["ratios"] else None for m in own),
                f"{r['errors']['y']:.1e}",
                f"{r['errors']['dx']:.1e}",
                _mebibytes(r["saved_bytes"]),
                _mebibytes(r["peak_bytes"]),
            ]
            for r in rows
        ),
    )


def _models(stages: Stages) -> Iterable[str]:
    yield "## Whole models\n"
    compared = {
        (r["model"], r["checkpointing"], r["name"]): r
        for r in rows_of(stages, "end_to_end", "comparison")
    }

    def row(r: Row) -> list[Any]:
        ratio = compared.get((r["model"], r["checkpointing"], r["name"]), {})
        return [
            r["model"],
            "on" if r["checkpointing"] else "off",
            r["name"],
            1e3 * r["seconds"],
            round(r["tokens_per_second"]),
            ratio.get("speed"),
            r["peak_bytes"] / 2**30 if r["peak_bytes"] else None,
            ratio.get("memory"),
            r["loss"],
        ]

    yield table(
        [
            "model",
            "checkpointing",
            "variant",
            "step ms",
            "tokens/s",
            "x PEFT bf16",
            "peak GiB",
            "x PEFT bf16",
            "loss",
        ],
        map(row, rows_of(stages, "end_to_end", "step")),
    )
    for r in rows_of(stages, "end_to_end", "loss_curves"):
        spread = r["seed_deviation"]
        yield (
            f"- {r['name']} minus PEFT bf16, held-out loss: {r['difference']:+.5f}; between seeds"
            f" {'-' if spread is None else f'{spread:.5f}'}, {len(r['seeds'])} seeds"
        )
    yield ""


def _gaps(stages: Stages) -> Iterable[str]:
    yield "## First calls, and what is missing\n"
    firsts = [r for rows in stages.values() for r in rows if r["record"] == "first_call"]
    slow = sorted(firsts, key=lambda r: -r["seconds"])[:12]
    yield "Slowest first calls (compilation, caches), in no figure above:\n"
    yield table(["where", "what", "s"], ([r["where"], r["name"], r["seconds"]] for r in slow))
    kinds = {
        "away": lambda r: f"{r['name']}: {r['reason']}",
        "refused": lambda r: f"{r['where']}: refused, {'; '.join(r['faults'])}",
        "unmeasured": lambda r: f"{r['where']}: the time was over",
        "skipped": lambda r: r["reason"],
        "broken": lambda r: f"broken: {r['reason']}",
    }
    for stage, rows in stages.items():
        for r in rows:
            if r["record"] in kinds:
                yield f"- {stage}: {kinds[r['record']](r)}"
    for stage in ORDER:
        if stage not in stages:
            yield f"- {stage}: not run"
        elif not any(r["record"] == "end" for r in stages[stage]):
            yield f"- {stage}: cut off before its end"
    yield ""


def markdown(stages: Stages) -> str:
    """The whole report."""
    parts = (
        _head,
        _acceptance,
        _ceilings,
        _correctness,
        _kernels,
        _linears,
        _layer,
        _models,
        _gaps,
    )
    return "\n".join(line for part in parts for line in part(stages)).rstrip() + "\n"


def summary(stages: Stages) -> str:
    """The acceptance lines alone, for the end of a run's output."""
    return "\n".join(
        f"{x.outcome:>12}  {x.number:>2}  {x.claim}: {_cell(x.value)} (target {x.target})"
        for x in acceptance(stages)
    )


def write(folder: Path) -> str:
    """Write FOLDER/report.md; returns the summary."""
    stages = load(folder)
    (folder / FILE).write_text(markdown(stages), encoding="utf-8")
    return summary(stages)


def main() -> None:
    """Print the report, or write it."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("folder", type=Path)
    options.add_argument("--out", type=Path)
    chosen = options.parse_args()
    text = markdown(load(chosen.folder))
    if chosen.out is None:
        print(text, end="")
    else:
        chosen.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
