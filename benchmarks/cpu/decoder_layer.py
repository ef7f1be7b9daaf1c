"""One decoder layer of Llama 1B with LoRA on the CPU, forward and backward, interleaved.

    python benchmarks/cpu/decoder_layer.py [--quick] [--minutes 8] [--no-compile] [--json FILE]

The layer of Llama 3.2 1B (2048 wide, 32 query and 8 key heads, 8192 in the MLP) with the final norm
behind it, rank 16 on its seven linear layers, 1 x 512 and 4 x 512 tokens, bfloat16. The gradient
for the input is computed, as inside a model. Errors are those of the whole layer against float64,
and cosines of all dA and all dB together.
"""

import sys
from pathlib import Path

# the folder that holds `measuring`
sys.path.append(str(Path(__file__).resolve().parents[1]))

import argparse

import torch
from machine import start
from measuring.decoder import TARGETS, LayerCall, exact_layer, layer_gate, make_layer
from measuring.interleave import interleave
from measuring.model_variants import COMPILED, FAILURES, build, set_factors
from measuring.records import Records, milliseconds, parser, times, verdict

SIZES = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
TINY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
NAMES = ("ftrt w8a8", "ftrt w8a16", "ftrt bf16", "PEFT bf16", "PEFT default")
BUFFERS = 4


def measure(
    records: Records, options: argparse.Namespace, shape: tuple[int, int], seconds: float
) -> None:
    """One batch shape: gate, time, print, record."""
    sizes = TINY if options.smoke else SIZES
    width = sizes["hidden_size"]
    xs, grads = ([torch.randn(*shape, width).bfloat16() for _ in range(BUFFERS)] for _ in range(2))
    right = exact_layer(sizes, xs[0], grads[0])
    where = f"layer {shape[0]}x{shape[1]} tokens"
    names = [*NAMES, "bitsandbytes int8 + PEFT", "torchao int8 + PEFT"]
    if not options.no_compile:
        names += [name + COMPILED for name in NAMES]
    calls, errors = {}, {}
    for name in names:
        try:
            variant = build(name, lambda: make_layer(sizes, torch.bfloat16), TARGETS)
            set_factors(variant)
            call = LayerCall(variant, xs, grads)
            errors[name] = call.errors(right)
        except FAILURES as error:
            records.away(f"{where} {name}", error)
            continue
        if records.gate(f"{where} {name}", layer_gate(name), errors[name]):
            calls[name] = call
    least = 2 if options.smoke else 5
    rounds = interleave(calls, seconds=seconds, least=least)
    print(f"\n{where}: forward + backward, ms; x ftrt w8a8")
    for name in calls:
        ratios = {own: rounds.ratio(name, own, "total") for own in calls if own.startswith("ftrt")}
        phases = {p: rounds.seconds(name, p) for p in ("forward", "backward", "total")}
        records.write(
            "layer", shape=shape, name=name, seconds=phases, ratios=ratios, errors=errors[name]
        )
        shown = " ".join(f"{key} {value:.3g}" for key, value in errors[name].items())
        versus = times(ratios.get("ftrt w8a8"))
        print(f"  {name:<28}{milliseconds(phases['total']):>30}  x{versus:<20}{shown}")
    for peer in ("PEFT bf16", "PEFT bf16 compiled", "PEFT default", "PEFT default compiled"):
        ratio = None
        if peer in calls and "ftrt w8a8" in calls:
            ratio = rounds.ratio(peer, "ftrt w8a8", "total")
        if peer in names:
            verdict(records, f"{where}: ftrt w8a8 vs {peer}", ratio and ratio.median, 1.0)


def main() -> int:
    """Both batch shapes."""
    options = parser(__doc__)
    options.add_argument("--minutes", type=float, default=8.0)
    options.add_argument("--no-compile", action="store_true")
    options = options.parse_args()
    records = Records(options.json)
    start(records, options.threads)
    shapes = [(1, 512), (4, 512)]
    if options.quick or options.smoke:
        shapes = [(2, 8)] if options.smoke else shapes[:1]
    # half of the time is for building, compiling and checking
    seconds = 60 * options.minutes / len(shapes) / 2
    if options.quick or options.smoke:
        seconds = 0.0
    for shape in shapes:
        measure(records, options, shape, seconds)
    return records.finish()


if __name__ == "__main__":
    raise SystemExit(main())
