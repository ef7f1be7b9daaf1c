"""One decoder layer of Llama 1B with LoRA on the CPU, forward and backward, interleaved.

    python benchmarks/cpu/decoder_layer.py [--quick] [--minutes 8] [--no-compile] [--json FILE]

The layer of Llama 3.2 1B (2048 wide, 32 query and 8 key heads, 8192 in the MLP) with the final norm
behind it, rank 16 on its seven linear layers, 1 x 512 and 4 x 512 tokens, bfloat16. The gradient
for the input is computed, as inside a model. Errors are those of the whole layer against float64,
and cosines of all dA and all dB together.
"""

import argparse
import time

import torch
from end_to_end import FAILURES
from gates import cosine, relative_error
from interleave import Phases, interleave
from linears import away
from machine import start
from model_variants import COMPILED, ModelVariant, build, set_factors
from records import Records, milliseconds, parser, times, verdict
from torch import Tensor, nn
from workloads import SMOLLM2_TARGETS

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
GATES = {
    "ftrt w8a8": "layer w8a8",
    "ftrt w8a16": "layer int8 weight",
    "bitsandbytes int8 + PEFT": "layer int8 weight",
    "torchao int8 + PEFT": "layer int8 weight",
}
BUFFERS = 4


def make_layer(dtype: torch.dtype, *, is_tiny: bool) -> nn.Module:
    """A LlamaModel of one layer, the same random weights each time."""
    import transformers

    config = transformers.LlamaConfig(
        **(TINY if is_tiny else SIZES), num_hidden_layers=1, vocab_size=64, use_cache=False
    )
    torch.manual_seed(0)
    return transformers.LlamaModel(config).to(dtype).train()


class LayerCall:
    """A timed forward and backward of a variant."""

    def __init__(self, variant: ModelVariant, xs: list[Tensor], grads: list[Tensor]) -> None:
        self.variant, self.xs, self.grads = variant, xs, grads

    def run(self, index: int) -> tuple[Tensor, Tensor, Phases]:
        """(y, dx, seconds by phase); the factors' gradients are left in place."""
        for parameter in self.variant.parameters:
            parameter.grad = None
        x = self.xs[index % len(self.xs)].detach().requires_grad_()
        begin = time.perf_counter()
        with self.variant.context():
            y = self.variant.model(inputs_embeds=x).last_hidden_state
        middle = time.perf_counter()
        y.backward(self.grads[index % len(self.grads)].to(y.dtype))
        end = time.perf_counter()
        return y.detach(), x.grad, {"forward": middle - begin, "backward": end - middle}

    def __call__(self, index: int) -> Phases:
        """Seconds by phase."""
        return self.run(index)[2]

    def gradients(self, kind: str) -> Tensor:
        """All gradients of the A or B factors, as one vector."""
        factors = self.variant.factors()
        parts = [p.grad for name, p in sorted(factors.items()) if f"lora_{kind}" in name]
        return torch.cat([part.double().flatten() for part in parts])


def exact(xs: list[Tensor], grads: list[Tensor], *, is_tiny: bool) -> dict[str, Tensor]:
    """y, dx and the factors' gradients of the same layer in float64."""
    variant = build(
        "PEFT bf16",
        lambda: make_layer(torch.bfloat16, is_tiny=is_tiny),
        SMOLLM2_TARGETS,
    )
    set_factors(variant)
    variant.module.double()
    call = LayerCall(variant, [x.double() for x in xs[:1]], [g.double() for g in grads[:1]])
    y, dx, _ = call.run(0)
    return {"y": y, "dx": dx, "a": call.gradients("A"), "b": call.gradients("B")}


def measure(
    records: Records, options: argparse.Namespace, shape: tuple[int, int], seconds: float
) -> None:
    """One batch shape: gate, time, print, record."""
    width = (TINY if options.smoke else SIZES)["hidden_size"]
    xs, grads = ([torch.randn(*shape, width).bfloat16() for _ in range(BUFFERS)] for _ in range(2))
    right = exact(xs, grads, is_tiny=options.smoke)
    where = f"layer {shape[0]}x{shape[1]} tokens"
    names = [*NAMES, "bitsandbytes int8 + PEFT", "torchao int8 + PEFT"]
    if not options.no_compile:
        names += [name + COMPILED for name in NAMES]
    calls, errors = {}, {}
    for name in names:
        try:
            variant = build(
                name, lambda: make_layer(torch.bfloat16, is_tiny=options.smoke), SMOLLM2_TARGETS
            )
            set_factors(variant)
            call = LayerCall(variant, xs, grads)
            y, dx, _ = call.run(0)
        except FAILURES as error:
            away(records, f"{where} {name}", error)
            continue
        errors[name] = {
            "y": relative_error(y, right["y"]),
            "dx": relative_error(dx, right["dx"]),
            "da_cosine": cosine(call.gradients("A"), right["a"]),
            "db_cosine": cosine(call.gradients("B"), right["b"]),
        }
        gate = GATES.get(name.removesuffix(COMPILED), "layer bf16")
        if records.gate(f"{where} {name}", gate, errors[name]):
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
