"""What this machine can do at most: memory read, multiply rates, and how near torch's GEMMs come.

    python benchmarks/cpu/ceilings.py [--quick] [--threads 2] [--json FILE]

The instruction ceilings are register-resident loops of the chosen instruction set (AMX int8 and
bf16, `vpdpbusd`, `vdpbf16ps`, `vpmaddwd`, FMA), which `ftrt._C.measure_ceiling` runs. No kernel can
be faster; a share of them says how much room is left. On a shared machine each is the best of
several short runs, because every disturbance makes a ceiling lower and none makes it higher.
"""

import sys
from pathlib import Path

# the folder that holds `measuring`
sys.path.append(str(Path(__file__).resolve().parents[1]))

import time
from collections.abc import Callable

import torch
from machine import start
from measuring.records import Records, parser
from torch.nn import functional as F

from ftrt.ops.extension import EXTENSION

# kind -> (what it is, unit)
KINDS = {
    "int8": ("int8 multiply-add, register-resident", "op/s"),
    "bf16": ("bf16 multiply-add, register-resident", "op/s"),
    "fp32": ("fp32 multiply-add, register-resident", "op/s"),
    "read": ("memory read", "byte/s"),
}
QUICK_SECONDS = 0.2
# (M, N, K) of the GEMM rates
GEMMS = [(512, 2048, 2048), (2048, 2048, 2048), (512, 4096, 4096)]


def instruction_ceiling(kind: str, threads: int, seconds: float) -> float | None:
    """Best of three runs, operations (or bytes) a second; None where the extension cannot say."""
    measure = getattr(EXTENSION.module, "measure_ceiling", None)
    if measure is None:
        return None
    try:
        return max(float(measure(kind, threads, seconds / 3)) for _ in range(3))
    except ValueError:
        return None


def read_bandwidth(threads: int, seconds: float, megabytes: int = 256) -> float:
    """Bytes a second of torch's own maximum over int32, for machines without the extension."""
    kept = torch.get_num_threads()
    torch.set_num_threads(threads)
    values = torch.randint(0, 1 << 30, (megabytes << 18,), dtype=torch.int32)
    best = best_seconds(lambda: values.max(), seconds)
    torch.set_num_threads(kept)
    return values.nbytes / best


def best_seconds(function: Callable[[], object], seconds: float) -> float:
    """The fastest call within `seconds`, of at least three."""
    function()
    best, count, end = float("inf"), 0, time.perf_counter() + seconds
    while count < 3 or time.perf_counter() < end:
        begin = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - begin)
        count += 1
    return best


def measure_all(threads: int, seconds: float) -> dict[str, float]:
    """kind -> rate at `threads`, and `read_1` for one thread; kinds nobody can measure are away."""
    found = {}
    megabytes = 256 if seconds > QUICK_SECONDS else 64
    for kind in KINDS:
        value = instruction_ceiling(kind, threads, seconds)
        if value is not None:
            found[kind] = value
    single = instruction_ceiling("read", 1, seconds)
    found["read"] = found.get("read") or read_bandwidth(threads, seconds, megabytes)
    found["read_1"] = single or read_bandwidth(1, seconds, megabytes)
    return found


def gemm_rates(shape: tuple[int, int, int], seconds: float) -> dict[str, float]:
    """Operations a second of torch's GEMMs: oneDNN bf16 forward and dX, fp32, `_int_mm`."""
    m, n, k = shape
    x, weight, grad = torch.randn(m, k), torch.randn(n, k), torch.randn(m, n)
    x16, weight16, grad16 = x.bfloat16(), weight.bfloat16(), grad.bfloat16()
    xq = torch.randint(-127, 128, (m, k), dtype=torch.int8)
    wq = torch.randint(-127, 128, (n, k), dtype=torch.int8)
    calls = {
        "bf16": lambda: F.linear(x16, weight16),
        "bf16 dX": lambda: grad16 @ weight16,
        "fp32": lambda: F.linear(x, weight),
        "_int_mm": lambda: torch._int_mm(xq, wq.t()),
    }
    return {name: 2 * m * n * k / best_seconds(call, seconds) for name, call in calls.items()}


def main() -> int:
    """Measure, print, record."""
    options = parser(__doc__).parse_args()
    records = Records(options.json)
    start(records, options.threads)
    seconds = QUICK_SECONDS if options.quick or options.smoke else 1.0
    isa = getattr(EXTENSION.module, "chosen_isa", lambda: "reference")()
    found = measure_all(options.threads, seconds)
    print(f"\ninstruction set {isa}, best of several runs")
    for kind, rate in found.items():
        what, unit = KINDS.get(kind, ("memory read, one thread", "byte/s"))
        print(f"  {what:<40}{rate / 1e9:10.1f} G{unit}")
        records.write("ceiling", kind=kind, isa=isa, rate=rate, unit=unit)
    if EXTENSION.module is None or not hasattr(EXTENSION.module, "measure_ceiling"):
        print("  (instruction ceilings need ftrt._C.measure_ceiling, which this build lacks)")
    shapes = [(64, 64, 64)] if options.smoke else GEMMS[:1] if options.quick else GEMMS
    print(
        f"\ntorch's GEMMs, G op/s, best; share of the ceiling{'':6}bf16   bf16 dX   fp32   _int_mm"
    )
    for shape in shapes:
        rates = gemm_rates(shape, seconds)
        against = {"bf16": "bf16", "bf16 dX": "bf16", "fp32": "fp32", "_int_mm": "int8"}
        cells = []
        for name, rate in rates.items():
            top = found.get(against[name])
            share = f" {rate / top:4.0%}" if top else ""
            cells.append(f"{rate / 1e9:8.0f}{share}")
            records.write(
                "gemm", shape=shape, what=name, rate=rate, share=rate / top if top else None
            )
        print(f"  M {shape[0]} N {shape[1]} K {shape[2]}".ljust(46) + "".join(cells), flush=True)
    return records.finish()


if __name__ == "__main__":
    raise SystemExit(main())
