"""Stage ceilings: what this GPU does at most with torch's own calls, on random data.

Copy bandwidth counts bytes read and bytes written. Zeros would flatter: a bfloat16 product runs
over a tenth faster on them. The other stages measure the three ceilings again, so that a share is
one of the same minute.
"""

from collections.abc import Callable, Mapping

import torch
from measuring.clock import clock_of
from measuring.interleave import Spread, interleave
from torch import Tensor
from torch.nn import functional as F

from gpu.shapes import LINEARS
from gpu.stage import Stage

UNITS = {"copy": "byte/s", "bf16": "op/s", "int8": "op/s"}


def median_seconds(
    stage: Stage, calls: Mapping[str, Callable[[], object]], seconds: float
) -> dict[str, Spread]:
    """Time of each call, interleaved for about `seconds`; one that raises is away, by name."""
    timed = {}
    for name, call in calls.items():
        try:
            call()
        except RuntimeError as error:
            stage.records.away(f"{stage.name} {name}", error)
            continue
        clock = clock_of(stage.device)
        timed[name] = lambda index, clock=clock, call=call: clock.phases(call=call)
    if not timed:
        return {}
    warm_ups = 2 if stage.quick else 25
    rounds = interleave(
        timed, seconds=seconds, least=3, enough=200, warm_ups=warm_ups, totals=False
    )
    return {name: rounds.seconds(name, "call") for name in timed}


def int8_matrix(rows: int, columns: int, device: torch.device) -> Tensor:
    """Uniform in -127 to 127."""
    return torch.randint(-127, 128, (rows, columns), dtype=torch.int8, device=device)


def measure_ceilings(stage: Stage) -> dict[str, float]:
    """Rates by the names of `UNITS`; one that torch cannot run here is away."""
    device, size = stage.device, 256 if stage.quick else 8192
    count = 2**20 if stage.quick else 2**30
    source = torch.randint(-(2**31), 2**31 - 1, (count // 4,), dtype=torch.int32, device=device)
    target = torch.empty_like(source)
    left, right = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    xq, wq = (int8_matrix(size, size, device) for _ in range(2))
    calls = {
        "copy": lambda: target.copy_(source),
        "bf16": lambda: F.linear(left, right),
        "int8": lambda: torch._int_mm(xq, wq.t()),
    }
    work = {"copy": 2 * source.nbytes, "bf16": 2 * size**3, "int8": 2 * size**3}
    found = median_seconds(stage, calls, 0.0 if stage.quick else 1.0)
    rates = {name: work[name] / taken.median for name, taken in found.items()}
    for name, taken in found.items():
        stage.records.write(
            "ceiling", kind=name, rate=rates[name], unit=UNITS[name], seconds=taken, size=size
        )
    return rates


def measure_products(stage: Stage, ceilings: Mapping[str, float]) -> None:
    """The bare products of the 8B linears: what no layer on these libraries can be faster than.

    "dX" of int8 multiplies with a weight that lies transposed in memory already.
    """
    device = stage.device
    rows = 64 if stage.quick else 8192
    model = "tiny" if stage.quick else "8b"
    print(f"\ntorch's products at M {rows}: T op/s (share of the ceiling)")
    for out_features, in_features in LINEARS[model]:
        if not stage.has_time(f"products {out_features}x{in_features}"):
            continue
        x, weight = torch.randn(rows, in_features), torch.randn(out_features, in_features)
        x, weight = x.to(device).bfloat16(), weight.to(device).bfloat16()
        grad = torch.randn(rows, out_features, device=device).bfloat16()
        xq, wq = int8_matrix(rows, in_features, device), int8_matrix(*weight.shape, device)
        gq, wt = int8_matrix(rows, out_features, device), wq.t().contiguous()
        calls = {
            "bf16": lambda x=x, weight=weight: F.linear(x, weight),
            "bf16 dX": lambda grad=grad, weight=weight: grad @ weight,
            "int8": lambda xq=xq, wq=wq: torch._int_mm(xq, wq.t()),
            "int8 dX": lambda gq=gq, wt=wt: torch._int_mm(gq, wt.t()),
        }
        found = median_seconds(stage, calls, 0.0 if stage.quick else 1.0)
        cells = []
        for name, taken in found.items():
            rate = 2 * rows * out_features * in_features / taken.median
            top = ceilings.get(name.split()[0])
            share = rate / top if top else None
            cells.append(f"{name} {rate / 1e12:.4g}" + (f" ({share:.0%})" if share else ""))
            stage.records.write(
                "product",
                model=model,
                out_features=out_features,
                in_features=in_features,
                rows=rows,
                what=name,
                seconds=taken,
                rate=rate,
                share=share,
            )
        print(f"  {out_features} x {in_features}: " + ", ".join(cells), flush=True)


def measure(stage: Stage) -> None:
    """The three ceilings, then the bare products of the 8B linears."""
    ceilings = measure_ceilings(stage)
    stage.sample_state("after the ceilings")
    for name, rate in ceilings.items():
        print(f"  {name:<6}{rate / 1e12:10.4g} T{UNITS[name]}")
    if {"bf16", "int8"} <= ceilings.keys():
        ratio = ceilings["int8"] / ceilings["bf16"]
        stage.records.write("int8_over_bf16", ratio=ratio)
        print(f"  int8 / bf16 {ratio:.2f}" + ("" if ratio >= 1.5 else " !!! below 1.5"))
    measure_products(stage, ceilings)
