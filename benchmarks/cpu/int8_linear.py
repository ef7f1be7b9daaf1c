"""Int8 linear layer on the CPU, forward and dX, against torch's float layers; prints time ratios.

    python benchmarks/cpu/int8_linear.py [--threads 2] [--seconds 2] [--dtype float32] [--json]

Peers, measured in the same process and interleaved call by call, so that load hits all alike:
    float       F.linear with a float weight that is there already: twice to four times the memory;
    dequantize  the reference op: dequantize the weight, then F.linear.
A ratio is peer time / ftrt time of the same round, so above 1 ftrt is faster; its median and its
10th and 90th percentile over the rounds are given. Beside them stands the error against float64 as
a relative Frobenius norm, and rows whose error is not small are marked and not to be trusted.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ftrt.ops import (
    dequantize_weight,
    implementation_report,
    int8_linear,
    int8_linear_dx,
    pack_int8,
)

# (rows, out_features, in_features): MiniLM (384, 1536), BERT and SmolLM2 sizes (576, 768, 1536)
SHAPES = [
    (256, 384, 384),
    (1024, 384, 384),
    (1024, 1536, 384),
    (1024, 384, 1536),
    (4096, 384, 384),
    (4096, 1536, 384),
    (4096, 384, 1536),
    (512, 768, 768),
    (2048, 576, 576),
    (2048, 1536, 576),
    (2048, 576, 1536),
]

MAX_ERROR = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


@dataclass(frozen=True)
class Row:
    """One direction of one shape: milliseconds are medians, ratios are peer / ftrt."""

    direction: str
    rows: int
    out_features: int
    in_features: int
    milliseconds: float
    gflops: float
    error: float
    over_float: tuple[float, float, float]
    over_dequantize: tuple[float, float, float]


def percentiles(values: list[float]) -> tuple[float, float, float]:
    """(10th, 50th, 90th) percentile."""
    cuts = statistics.quantiles(values, n=10, method="inclusive")
    return cuts[0], statistics.median(values), cuts[8]


def interleave(
    functions: dict[str, Callable[[], Tensor]], seconds: float, least: int = 15
) -> dict[str, list[float]]:
    """Seconds of each call, one call of each function a round, until `seconds` have passed."""
    for function in functions.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < least:
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return times


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Frobenius norm of the difference over that of the expected value."""
    return ((actual.double() - expected).norm() / expected.norm()).item()


def measure(
    rows: int, out_features: int, in_features: int, dtype: torch.dtype, seconds: float
) -> list[Row]:
    """Forward and dX of one shape, per-channel scales, normal random data."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, in_features, generator=generator).to(dtype)
    grad = torch.randn(rows, out_features, generator=generator).to(dtype)
    qweight = torch.randint(
        -127, 128, (out_features, in_features), dtype=torch.int8, generator=generator
    )
    scale = torch.rand(out_features, 1, generator=generator) / 127
    packed = pack_int8(qweight)
    weight = dequantize_weight(qweight, scale, dtype)
    exact = dequantize_weight(qweight, scale, torch.float64)
    linear = torch.nn.functional.linear
    directions = {
        "forward": (
            {
                "ftrt": lambda: int8_linear(x, packed, scale),
                "float": lambda: linear(x, weight),
                "dequantize": lambda: linear(x, dequantize_weight(qweight, scale, dtype)),
            },
            x.double() @ exact.T,
        ),
        "dX": (
            {
                "ftrt": lambda: int8_linear_dx(grad, packed, scale, in_features=in_features),
                "float": lambda: grad @ weight,
                "dequantize": lambda: grad @ dequantize_weight(qweight, scale, dtype),
            },
            grad.double() @ exact,
        ),
    }
    results = []
    for direction, (functions, expected) in directions.items():
        error = relative_error(functions["ftrt"](), expected)
        times = interleave(functions, seconds)
        over = {
            peer: percentiles([t / own for t, own in zip(times[peer], times["ftrt"], strict=True)])
            for peer in ("float", "dequantize")
        }
        median = statistics.median(times["ftrt"])
        gflops = 2 * rows * out_features * in_features / median / 1e9
        shape = (rows, out_features, in_features)
        results.append(
            Row(direction, *shape, median * 1e3, gflops, error, over["float"], over["dequantize"])
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2.0, help="per shape and direction")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--json", action="store_true", help="one JSON object a row")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    dtype = getattr(torch, arguments.dtype)
    report = implementation_report()
    if not arguments.json:
        print(
            f"int8_linear: {report['int8_linear']}, {arguments.dtype}, torch {torch.__version__},"
        )
        print(f"{arguments.threads} threads; ratios are peer / ftrt: p10 median p90")
        print(f"{'':8}{'shape':>18}{'ms':>9}{'GFLOP/s':>9}{'error':>9}", end="")
        print(f"{'/ float':>19}{'/ dequantize':>19}")
    everything = []
    for shape in SHAPES:
        for row in measure(*shape, dtype, arguments.seconds):
            everything.append(row)
            if arguments.json:
                print(json.dumps({**asdict(row), "isa": report["int8_linear"]}), flush=True)
                continue
            label = f"{row.rows}x{row.out_features}x{row.in_features}"
            ratios = "".join(
                f"{low:7.2f}{mid:6.2f}{high:6.2f}"
                for low, mid, high in (row.over_float, row.over_dequantize)
            )
            mark = "" if row.error <= MAX_ERROR[dtype] else "  WRONG"
            print(
                f"{row.direction:8}{label:>18}{row.milliseconds:9.2f}{row.gflops:9.0f}"
                f"{row.error:9.1e}{ratios}{mark}",
                flush=True,
            )
    if not arguments.json:
        for name in ("over_float", "over_dequantize"):
            mean = statistics.geometric_mean([getattr(row, name)[1] for row in everything])
            print(f"geometric mean of the medians, {name.removeprefix('over_')}: {mean:.2f}")


if __name__ == "__main__":
    main()
