"""Stage kernels: every kernel on its own, at the shapes of Llama-3-8B, M = 8192, rank 16.

The launches are those of the ops themselves: w8a8 with either product and w8a16, forward and
backward. Each is recorded once and launched again on rotating copies of its operands. A product is
given as a share of the measured int8 rate, all others as a share of the measured copy bandwidth,
counting each operand once. What a launch costs the host, and what the first call of an op takes
(compilation or cache), stands apart.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from measuring.clock import clock_of
from measuring.interleave import interleave
from measuring.linear_problem import Problem, make_problem, random_rows
from measuring.records import milliseconds

from ftrt import ops
from ftrt.kernels import catalog
from ftrt.kernels.backend import current_backend
from ftrt.kernels.recording import RecordedLaunch, recording
from gpu.ceilings import measure_ceilings
from gpu.machine import cache_bytes
from gpu.paths import PATHS, forced
from gpu.shapes import LINEARS
from gpu.stage import Stage

RANK = 16
COPIES = 8
# launches that fit a stream's queue, so that the host never waits for the device
BURST = 200

Path = tuple[str, str, Callable[[], AbstractContextManager[None]]]


def paths(stage: Stage) -> list[Path]:
    """(name, compute, context) of each way an int8 linear layer is computed."""
    products: list[Path] = [("w8a8", "w8a8", nullcontext)]
    if stage.is_cuda:
        products = [(f"w8a8 {path}", "w8a8", forced(path, stage.device)) for path in PATHS]
    return [*products, ("w8a16", "w8a16", nullcontext)]


def record(stage: Stage, problem: Problem, rows: int, path: Path) -> list[RecordedLaunch]:
    """The launches of one forward and backward; the first of its kind compiles them."""
    name, compute, around = path
    (x,), (grad,) = (
        random_rows(1, rows, width, problem.dtype, problem.device)
        for width in (problem.in_features, problem.out_features)
    )
    a, b = (t.clone().requires_grad_() for t in (problem.a, problem.b))
    packed, scale = ops.pack_int8(problem.qweight), problem.scale
    begin = time.perf_counter()
    with around(), recording() as recorder:
        y = ops.int8_lora_linear(
            x.requires_grad_(), packed, scale, None, a, b, problem.scaling, compute=compute
        )
        y.backward(grad)
        stage.synchronize()
    seconds = time.perf_counter() - begin
    where = f"{problem.out_features}x{problem.in_features} M {rows}"
    stage.records.write("first_call", where=where, name=f"ftrt {name}", seconds=seconds)
    return recorder.launches


def time_launch(
    stage: Stage, launch: RecordedLaunch, ceilings: dict[str, float], **where: Any
) -> None:
    """One kernel's row."""
    backend, clock = current_backend(), clock_of(stage.device)
    least = 2 if launch.nbytes else 1
    count = max(least, min(COPIES, -(-2 * cache_bytes(stage.device) // max(1, launch.nbytes))))
    copies = [launch, *(launch.copy() for _ in range(count - 1))]

    def call(index: int) -> dict[str, float]:
        return clock.phases(kernel=lambda: copies[index % count].run(backend))

    quick = stage.quick
    rounds = interleave(
        {"kernel": call},
        seconds=0.0 if quick else 0.3,
        least=2,
        enough=100,
        warm_ups=2 if quick else 25,
        totals=False,
    )
    seconds = rounds.seconds("kernel", "kernel")
    kind = "int8" if launch.operations else "copy"
    rate = (launch.operations or launch.nbytes) / seconds.median
    share = rate / ceilings[kind] if kind in ceilings else None
    stage.records.write(
        "kernel",
        kernel=launch.kernel.name,
        label=launch.kernel.label,
        grid=launch.grid,
        shared_bytes=launch.shared_bytes,
        operand_bytes=launch.nbytes,
        operations=launch.operations,
        seconds=seconds,
        rate=rate,
        limited_by=kind,
        share=share,
        **where,
    )
    shown = "" if share is None else f"{share:5.0%} of {kind}"
    print(f"    {launch.kernel.label:<70}{milliseconds(seconds):>26}  {shown}", flush=True)


def launch_overhead(stage: Stage, launch: RecordedLaunch) -> None:
    """Microseconds that the host spends on a launch, beside one of torch's."""
    backend = current_backend()
    tiny = torch.zeros(1, device=stage.device)
    calls = {"ftrt.kernels": lambda: launch.run(backend), "torch add_": lambda: tiny.add_(1.0)}
    found = {}
    for name, call in calls.items():
        best = float("inf")
        for _ in range(2 if stage.quick else 10):
            stage.synchronize()
            begin = time.perf_counter()
            for _ in range(BURST):
                call()
            best = min(best, (time.perf_counter() - begin) / BURST)
        found[name] = best
        stage.records.write("launch", name=name, seconds=best)
    shown = ", ".join(f"{name} {seconds * 1e6:.1f} us" for name, seconds in found.items())
    print(f"\na launch costs the host: {shown}")


def measure(stage: Stage) -> None:
    """Every kernel at every shape, then the cost of a launch and what was never launched."""
    stage.need_cuda()
    model, rows = ("tiny", 24) if stage.quick else ("8b", 8192)
    measure_launches(stage, model, rows)


def measure_launches(stage: Stage, model: str, rows: int) -> None:
    """The stage at the linears of `model` with `rows` rows."""
    ceilings = measure_ceilings(stage)
    seen: set[Any] = set()
    for out_features, in_features in LINEARS[model]:
        if not stage.has_time(f"kernels at {out_features}x{in_features}"):
            continue
        problem = make_problem(
            out_features, in_features, rank=RANK, dtype=torch.bfloat16, device=stage.device
        )
        for path in paths(stage):
            stage.empty_memory()
            launches = record(stage, problem, rows, path)
            print(f"  {out_features} x {in_features}, M {rows}, {path[0]}: ms (p10..p90)")
            for launch in launches:
                if launch.key in seen:
                    continue
                seen.add(launch.key)
                time_launch(
                    stage,
                    launch,
                    ceilings,
                    path=path[0],
                    out_features=out_features,
                    in_features=in_features,
                    rows=rows,
                )
    stage.sample_state("kernels")
    small = make_problem(64, 64, rank=RANK, dtype=torch.bfloat16, device=stage.device)
    launch_overhead(stage, record(stage, small, 32, paths(stage)[0])[0])
    launched = {row["kernel"] for row in stage.records.rows if row["record"] == "kernel"}
    missing = sorted({kernel.name for kernel in catalog.variants()} - launched)
    stage.records.write("never_launched", kernels=missing)
    if missing:
        print(f"never launched at these shapes: {', '.join(missing)}")
