"""How exact ftrt's CPU computations are: on normal data, on real activations, in whole gradients.

    python benchmarks/cpu/accuracy.py [--quick] [--json FILE]

1. Normal data: y, dx, dA, dB of bf16, w8a16 and w8a8 with LoRA against float64.
2. Real activations: every linear layer of SmolLM2-135M (asset) on a real batch, its captured x and
   gradient, the int8 layers as the calibration ladder left them on other batches. Which layers fell
   back to w8a16 and how many have outlier columns is part of the result.
3. Whole gradients: dA and dB of all layers from one backward of the model, against PEFT in float32,
   beside those of PEFT in bfloat16. Here errors of 30 layers add up in any low precision, so the
   comparison is with bfloat16, not with the bound of a single layer.

Loss curves over 300 steps and three seeds: `loss_curves.py`.
"""

import sys
from pathlib import Path

# the folder that holds `measuring`
sys.path.append(str(Path(__file__).resolve().parents[1]))

import argparse
import statistics
from collections.abc import Callable

import torch
from captured import capture, layer_errors
from machine import start
from measuring.gates import cosine, failures
from measuring.linear_problem import Exact, make_problem, random_rows
from measuring.linear_variants import own_variants
from measuring.model_variants import ModelVariant, build, set_factors
from measuring.records import Records, parser, verdict
from torch import Tensor, nn
from workloads import Workload, make_workload

SHAPES = [(512, 2048, 2048), (512, 2048, 8192), (512, 576, 1536), (129, 192, 576)]


def on_normal_data(records: Records, shapes: list[tuple[int, int, int]]) -> None:
    """Part 1."""
    print("\nnormal data against float64 (relative Frobenius errors, cosines)")
    for rows, out_features, in_features in shapes:
        problem = make_problem(out_features, in_features, rank=16, dtype=torch.bfloat16)
        x = random_rows(1, rows, in_features, torch.bfloat16)[0]
        grad = random_rows(1, rows, out_features, torch.bfloat16)[0]
        exact = Exact(problem, x, grad)
        for variant in own_variants(problem):
            errors = variant.errors(exact)
            where = f"normal {rows}x{out_features}x{in_features} {variant.name}"
            records.gate(where, variant.gate, errors)
            records.write("normal", where=where, errors=errors)
            print(f"  {where:<48}" + " ".join(f"{k} {v:.3g}" for k, v in errors.items()))


def on_real_activations(records: Records, workload: Workload) -> None:
    """Part 2."""
    model = workload.make(torch.bfloat16)
    batch, others = workload.batches[0], workload.batches[1:5]
    captured = capture(model, workload.targets, batch)
    del model
    print(f"\n{workload.name}, {workload.weights} weights: {len(captured)} layers, captured x")
    for name, gate in (("ftrt bf16", "bf16"), ("ftrt w8a16", "w8a16"), ("ftrt w8a8", "w8a8")):
        variant = build(
            name, lambda: workload.make(torch.bfloat16), workload.targets, calibration=others
        )
        layers = base_layers(variant.module)
        errors = {
            place: layer_errors(layers[place], found)
            for place, found in captured.items()
            if place in layers
        }
        _print_layers(records, name, gate, errors, layers, variant)


def base_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The adapted layers' bases by their names in the plain model."""
    return {
        name.removeprefix("base_model.model.").removesuffix(".base_layer"): module
        for name, module in model.named_modules()
        if name.endswith(".base_layer")
    }


def _print_layers(
    records: Records,
    name: str,
    gate: str,
    errors: dict[str, dict[str, float]],
    layers: dict[str, nn.Module],
    variant: ModelVariant,
) -> None:
    """One line for a variant, a verdict, and where it is past its bound."""
    if not errors:
        records.away(f"captured {name}", RuntimeError("no adapted layer was found"))
        return
    faults: dict[str, dict[str, list[str]]] = {}
    for place, found in errors.items():
        # a layer that fell back to w8a16 must be as exact as w8a16
        own_gate = getattr(layers[place], "compute", gate)
        past = failures(own_gate, found)
        records.write(
            "captured", name=name, layer=place, compute=own_gate, errors=found, faults=past
        )
        if past:
            faults.setdefault(own_gate, {})[place] = past
    cells = []
    keys = ("y", "y_dequantized", "dx", "da_cosine", "db_cosine")
    for key in keys:
        values = [found[key] for found in errors.values() if key in found]
        if values:
            worst = min(values) if key.endswith("cosine") else max(values)
            cells.append(f"{key} median {statistics.median(values):.4g} worst {worst:.4g}")
    print(f"  {name:<12}" + "; ".join(cells), variant.notes or "", flush=True)
    share = 1 - sum(map(len, faults.values())) / len(errors)
    verdict(records, f"captured x, {name}: share of layers within the bound", share, 1.0)
    for own_gate, by_place in faults.items():
        first = "; ".join(f"{place}: {past[0]}" for place, past in list(by_place.items())[:3])
        print(f"{'':>14}{len(by_place)} layers that compute {own_gate}, such as {first}")


def whole_gradients(records: Records, workload: Workload) -> None:
    """Part 3."""
    batch = workload.batches[0]
    reference = _gradients(
        build("PEFT bf16", lambda: workload.make(torch.float32), workload.targets), batch
    )
    print(f"\n{workload.name}: dA, dB of one backward against PEFT in float32 (cosines)")
    for name in ("PEFT bf16", "ftrt bf16", "ftrt w8a16", "ftrt w8a8"):
        variant = build(
            name,
            lambda: workload.make(torch.bfloat16),
            workload.targets,
            calibration=workload.batches[1:5],
        )
        found = _gradients(variant, batch)
        cosines = {key: cosine(found[key], value) for key, value in reference.items()}
        together = cosine(
            torch.cat([found[key].flatten() for key in reference]),
            torch.cat([value.flatten() for value in reference.values()]),
        )
        worst = min(cosines, key=cosines.__getitem__)
        median = statistics.median(cosines.values())
        records.write(
            "gradients", name=name, all=together, median=median, worst=cosines[worst], at=worst
        )
        print(
            f"  {name:<12}all {together:.5f}, median {median:.5f},"
            f" worst {cosines[worst]:.5f} at {worst}",
            flush=True,
        )


def _gradients(variant: ModelVariant, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    set_factors(variant)
    variant.model(**batch).loss.backward()
    return {
        name: factor.grad.double()
        for name, factor in variant.factors().items()
        if factor.grad is not None
    }


def main() -> int:
    """All three parts."""
    options: argparse.Namespace = parser(__doc__).parse_args()
    records = Records(options.json)
    start(records, options.threads)
    is_short = options.quick or options.smoke
    on_normal_data(records, SHAPES[-1:] if options.smoke else SHAPES[-2:] if is_short else SHAPES)
    weights = "random" if options.smoke else "auto"
    workload = make_workload("smollm2", weights, is_tiny=options.smoke)
    if options.quick:
        workload.batches[:] = [{k: v[:1] for k, v in b.items()} for b in workload.batches]
    parts: list[Callable[[Records, Workload], None]] = [on_real_activations, whole_gradients]
    for part in parts:
        part(records, workload)
    return records.finish()


if __name__ == "__main__":
    raise SystemExit(main())
