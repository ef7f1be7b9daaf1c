"""Geometric means over the linears table, against the targets of issue 3, acceptance 1 to 3."""

from collections.abc import Callable
from typing import Any

from measuring.interleave import geometric_mean
from measuring.records import Records, verdict

Row = dict[str, Any]


def ratio_mean(rows: list[Row], own: str, phase: str) -> tuple[float | None, int]:
    """(geometric mean of the median ratios, rows it is over) of rows / `own`."""
    key = f"{own} {phase}"
    values = [row["ratios"][key].median for row in rows if key in row["ratios"]]
    return (geometric_mean(values) if values else None), len(values)


def _where(records: Records, record: str, test: Callable[[Row], bool]) -> list[Row]:
    return [row for row in records.rows if row["record"] == record and test(row)]


def _means(records: Records) -> None:
    """Acceptance 1 and 2: with LoRA, forward + backward, M at least 512."""
    claims = [
        ("ftrt w8a8", "PEFT bf16", 2.0),
        ("ftrt w8a8", "PEFT fp32", 2.0),
        ("ftrt w8a8", "PEFT default", 2.2),
        ("ftrt w8a8", "PEFT bf16 compiled", 2.0),
        ("ftrt w8a8", "PEFT default compiled", 2.2),
        ("ftrt w8a8", "bitsandbytes int8 t0 + PEFT", 2.5),
        ("ftrt w8a8", "bitsandbytes int8 t6 + PEFT", 2.5),
        ("ftrt w8a8", "torchao int8 + PEFT", 2.5),
        ("ftrt w8a8", "dequantize + F.linear", 1.0),
        ("ftrt w8a16", "PEFT bf16", 1.10),
        ("ftrt w8a16", "PEFT fp32", 1.10),
        ("ftrt w8a16", "dequantize + F.linear", 1.0),
        ("ftrt lora_linear", "PEFT bf16", 1.0),
        ("ftrt lora_linear", "PEFT default", 1.0),
    ]
    for own, peer, target in claims:
        rows = _where(records, "linear", lambda r, p=peer: r["name"] == p and r["rows"] >= 512)
        if not rows:
            continue
        value, count = ratio_mean(rows, own, "total")
        verdict(records, f"{own} vs {peer}, forward + backward", value, target, rows=count)


def _products(records: Records) -> None:
    """The int8 product against its ceiling, W8A16 against `_weight_int8pack_mm`."""
    products = _where(
        records, "floor", lambda r: r["name"] == "ftrt w8a8 GEMM" and r["rows"] >= 512
    )
    shares = [row["share"] for row in products if row["share"]]
    lowest = f"{min(shares):.2f}" if shares else "-"
    claim = "int8 GEMM / int8 ceiling of this run"
    value = geometric_mean(shares) if shares else None
    verdict(records, claim, value, 0.55, lowest=lowest, rows=len(shares))
    for own, peer, target in (
        ("ftrt w8a16 base", "_weight_int8pack_mm", 5.0),
        ("ftrt w8a16 base", "dequantize + F.linear", 1.0),
        ("ftrt w8a8 base", "torch int8 w8a8", 1.0),
        ("ftrt w8a8 GEMM", "_int_mm alone", 1.0),
    ):
        rows = _where(records, "floor", lambda r, p=peer: r["name"] == p and r["rows"] >= 512)
        value, count = ratio_mean(rows, own, "forward")
        verdict(records, f"{own} vs {peer}, forward, M >= 512", value, target, rows=count)


def _decode(records: Records) -> None:
    """Acceptance 2: the share of the memory-read ceiling at M <= 16."""
    rows = _where(records, "floor", lambda r: r["name"] == "ftrt w8a16 base" and r["rows"] <= 16)
    shares = [row["read_share"] for row in rows]
    value = geometric_mean(shares) if shares else None
    lowest = f"{min(shares):.2f}" if shares else "-"
    verdict(records, "w8a16 weight bytes / s over memory read, M <= 16", value, 0.8, lowest=lowest)


def _never_slower(records: Records) -> None:
    """Acceptance 3: the worst row of the table against torch's int8 and dequantize + linear."""
    for record, own, peer, phase in (
        ("linear", "ftrt w8a8", "dequantize + F.linear", "total"),
        ("floor", "ftrt w8a8 base", "torch int8 w8a8", "forward"),
        ("floor", "ftrt w8a16 base", "_weight_int8pack_mm", "forward"),
        ("floor", "ftrt w8a16 base", "dequantize + F.linear", "forward"),
    ):
        key = f"{own} {phase}"
        rows = _where(records, record, lambda r, p=peer, k=key: r["name"] == p and k in r["ratios"])
        if not rows:
            continue
        worst = min(rows, key=lambda row: row["ratios"][key].median)
        place = f"{worst['out_features']}x{worst['in_features']} M {worst['rows']}"
        value = worst["ratios"][key].median
        verdict(records, f"worst row of {own} vs {peer}, {phase}", value, 1.0, at=place)


def _sizes(records: Records) -> None:
    """What the weight and the saved activations take, ftrt int8 over PEFT bf16."""
    by_name: dict[str, dict[tuple[int, ...], Row]] = {}
    for row in _where(records, "linear", lambda r: r["rows"] >= 512):
        key = (row["out_features"], row["in_features"], row["rows"])
        by_name.setdefault(row["name"], {})[key] = row
    own, peer = by_name.get("ftrt w8a8", {}), by_name.get("PEFT bf16", {})
    common = own.keys() & peer.keys()
    for what in ("weight_bytes", "saved_bytes"):
        values = [own[key][what] / peer[key][what] for key in common if peer[key][what]]
        if values:
            mean = geometric_mean(values)
            print(f"{'':>12}  {what}, ftrt w8a8 / PEFT bf16: {mean:.2f}")
            records.write("size", what=what, ratio=mean)


def summarize(records: Records) -> None:
    """Print and record every verdict that the rows allow."""
    print("\ngeometric means of the rows' median ratios (peer / ftrt), and targets of issue 3")
    _means(records)
    _products(records)
    _decode(records)
    _never_slower(records)
    _sizes(records)
    refused = len(records.refused)
    if refused:
        print(f"!!! {refused} refused rows are in none of these")
