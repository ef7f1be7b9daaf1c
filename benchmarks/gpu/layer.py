"""Stage layer: one Llama-3-8B decoder layer, all seven linears adapted, forward and backward.

4 x 2048 tokens, rank 16, bfloat16, random weights, the final norm behind it. The gradient of the
input is computed, as inside a model. Errors are those of the whole layer against float64.
"""

import time
from typing import Any

import torch
from measuring.clock import clock_of
from measuring.decoder import TARGETS, LayerCall, exact_layer, layer_gate, make_layer
from measuring.interleave import Rounds, interleave
from measuring.model_variants import FAILURES, build, set_factors
from measuring.records import milliseconds, times

from gpu.shapes import WIDTHS
from gpu.stage import Stage

NAMES = (
    "PEFT bf16",
    "PEFT default",
    "ftrt w8a8",
    "ftrt w8a16",
    "ftrt bf16",
    "bitsandbytes int8 + PEFT",
)
QUICK_NAMES = ("PEFT bf16", "PEFT default", "ftrt w8a8", "ftrt w8a16")
BUFFERS = 2
PHASES = ("forward", "backward", "total")
MOST_SECONDS = 40.0


def memory_of(stage: Stage, call: LayerCall) -> dict[str, int]:
    """Most that one forward and backward adds, and what forward keeps for backward."""
    for parameter in call.variant.parameters:
        parameter.grad = None
    stage.empty_memory()
    before = stage.allocated_bytes()
    x = call.xs[0].detach().requires_grad_()
    with call.variant.context():
        y = call.variant.model(inputs_embeds=x).last_hidden_state
    stage.synchronize()
    kept = stage.allocated_bytes() - before
    y.backward(call.grads[0].to(y.dtype))
    stage.synchronize()
    return {"saved_bytes": kept, "peak_bytes": stage.peak_bytes() - before}


def prepare(
    stage: Stage, names: tuple[str, ...], sizes: dict[str, int], shape: tuple[int, int]
) -> tuple[dict[str, LayerCall], dict[str, Any]]:
    """Calls of the variants that are right, and their errors."""
    device, width = stage.device, sizes["hidden_size"]
    xs, grads = (
        [torch.randn(*shape, width, device=device).bfloat16() for _ in range(BUFFERS)]
        for _ in range(2)
    )
    exact = exact_layer(sizes, xs[0], grads[0], device)
    stage.empty_memory()
    calls, errors = {}, {}
    for name in names:
        try:
            variant = build(name, lambda: make_layer(sizes, torch.bfloat16, device), TARGETS)
            set_factors(variant)
            call = LayerCall(variant, xs, grads, clock_of(device))
            begin = time.perf_counter()
            errors[name] = call.errors(exact)
            first = time.perf_counter() - begin
        except FAILURES as error:
            stage.records.away(f"layer {name}", error)
            continue
        stage.records.write("first_call", where="layer", name=name, seconds=first)
        if stage.records.gate(f"layer {name}", layer_gate(name, device), errors[name]):
            calls[name] = call
    return calls, errors


def report(
    stage: Stage, calls: dict[str, LayerCall], rounds: Rounds, errors: dict[str, Any], **facts: Any
) -> None:
    """A line and a row for each variant."""
    own = [name for name in calls if name.startswith("ftrt")]
    for name, call in calls.items():
        seconds = {phase: rounds.seconds(name, phase) for phase in PHASES}
        ratios = {mine: rounds.ratio(name, mine, "total") for mine in own if mine != name}
        memory = memory_of(stage, call)
        host = call.clock.host_seconds
        stage.records.write(
            "layer",
            name=name,
            seconds=seconds,
            host_seconds=host,
            ratios=ratios,
            errors=errors[name],
            **memory,
            **facts,
        )
        notes = " ".join(f"{key} {value:.2g}" for key, value in errors[name].items())
        print(
            f"  {name:<28}{milliseconds(seconds['total']):>28}"
            f"  x{times(ratios.get('ftrt w8a8')):<20} {notes}"
            f"  saved {memory['saved_bytes'] / 2**20:.0f} peak {memory['peak_bytes'] / 2**20:.0f}"
            " MiB" + (f" host {host * 1e3:.2f} ms" if host else ""),
            flush=True,
        )


def measure(stage: Stage) -> None:
    """Gate, time, print, record."""
    model, shape = ("tiny", (2, 8)) if stage.quick else ("8b", (4, 2048))
    calls, errors = prepare(stage, QUICK_NAMES if stage.quick else NAMES, WIDTHS[model], shape)
    if not calls:
        return
    seconds = max(0.0, min(MOST_SECONDS, stage.seconds - stage.elapsed_seconds))
    rounds = interleave(
        calls,
        seconds=0.0 if stage.quick else seconds,
        least=2 if stage.quick else 5,
        enough=100,
        warm_ups=2 if stage.quick else 25,
    )
    stage.sample_state("layer")
    print(f"\n{model} decoder layer, {shape[0]} x {shape[1]} tokens: forward + backward, ms")
    report(stage, calls, rounds, errors, model=model, shape=shape)
