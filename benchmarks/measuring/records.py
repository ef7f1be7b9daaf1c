"""Where figures go: a JSON line each, a line of text each, a loud refusal where a gate fails."""

import argparse
import json
import math
import sys
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from measuring.gates import failures
from measuring.interleave import Spread


def _plain(value: Any) -> Any:
    """A JSON value without NaN or infinity, numbers with five digits."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool | type(None)) else str(value)


class Records:
    """Collects rows, and writes each to the JSON-lines file at once.

    Attributes:
        rows: everything written, in order.
        refused: names of rows whose accuracy gate failed.
    """

    def __init__(self, file: Path | None) -> None:
        self.rows: list[dict[str, Any]] = []
        self.refused: list[str] = []
        self._file = None
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._file = file.open("w", encoding="utf-8")

    def write(self, record: str, /, **values: Any) -> dict[str, Any]:
        """Keep a row of the kind `record`; returns it."""
        row = {"record": record, **values}
        self.rows.append(row)
        if self._file is not None:
            self._file.write(json.dumps(_plain(row), allow_nan=False) + "\n")
            self._file.flush()
        return row

    def gate(self, where: str, kind: str, measured: dict[str, float]) -> bool:
        """Whether the speed of a row counts; if not, say so loudly and record it."""
        faults = failures(kind, measured)
        if faults:
            self.refused.append(where)
            self.write("refused", where=where, gate=kind, faults=faults, measured=measured)
            print(f"!!! REFUSED, no speed is given: {where}: {'; '.join(faults)}", flush=True)
        return not faults

    def away(self, name: str, error: Exception) -> None:
        """Record that a variant does not take part, and why; said once."""
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        if not any(row["record"] == "away" and row["name"] == name for row in self.rows):
            print(f"!!! {name} takes no part: {reason}", flush=True)
            self.write("away", name=name, reason=reason)

    def finish(self) -> int:
        """Say again what was refused; the exit code: 1 if a row of ftrt was, a peer's may be."""
        if self.refused:
            print(f"\n!!! {len(self.refused)} rows were refused by their accuracy gate:")
            for where in self.refused:
                print(f"    {where}")
        if self._file is not None:
            self._file.close()
        return 1 if any("ftrt" in where for where in self.refused) else 0


def milliseconds(seconds: Spread | None) -> str:
    """`median (p10..p90)` in milliseconds."""
    if seconds is None:
        return "-"
    times = seconds.scaled(1e3)
    return f"{times.median:.4g} ({times.p10:.4g}..{times.p90:.4g})"


def times(ratio: Spread | None) -> str:
    """`median (p10..p90)` of a ratio."""
    return "-" if ratio is None else f"{ratio.median:.2f} ({ratio.p10:.2f}..{ratio.p90:.2f})"


def parser(docstring: str) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    options = argparse.ArgumentParser(
        description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--json", type=Path, metavar="FILE", help="JSON lines, one a figure")
    options.add_argument("--quick", action="store_true", help="few cases, half a second each")
    options.add_argument("--smoke", action="store_true", help="tiny sizes: does the script run?")
    return options


def verdict(records: Records, claim: str, value: float | None, target: float, **more: Any) -> None:
    """Print and record one acceptance line: the claim, the value, its target, whether it holds."""
    measured = value is not None and math.isfinite(value)
    outcome = "NOT MEASURED" if not measured else "PASS" if value >= target else "FAIL"
    shown = f"{value:.3g}" if measured else "-"
    extra = "".join(f", {key} {item}" for key, item in more.items())
    print(f"{outcome:>12}  {claim}: {shown} (target {target:g}{extra})", flush=True)
    records.write("verdict", claim=claim, value=value, target=target, outcome=outcome, **more)


def fail(message: str) -> None:
    """End the script with a message and exit code 2."""
    print(message, file=sys.stderr)
    raise SystemExit(2)
