"""One decoder layer with LoRA: built, called, timed, and what is exactly right of it."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from measuring.clock import Clock, HostClock
from measuring.gates import cosine, relative_error
from measuring.interleave import Phases
from measuring.model_variants import COMPILED, ModelVariant, build, set_factors

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_GATES = {
    "ftrt w8a8": "layer w8a8",
    "ftrt w8a16": "layer int8 weight",
    "bitsandbytes int8 + PEFT": "layer int8 weight",
    "torchao int8 + PEFT": "layer int8 weight",
}


def make_layer(
    sizes: Mapping[str, int], dtype: torch.dtype, device: torch.device | str = "cpu"
) -> nn.Module:
    """A LlamaModel of one layer with the final norm behind it, the same random weights each time.

    Args:
        sizes: what a `LlamaConfig` takes.
        dtype: of the weights.
        device: where they are made.
    """
    import transformers

    config = transformers.LlamaConfig(
        **sizes, num_hidden_layers=1, vocab_size=64, use_cache=False, attn_implementation="sdpa"
    )
    torch.manual_seed(0)
    with torch.device(device):
        return transformers.LlamaModel(config).to(dtype).train()


class LayerCall:
    """A timed forward and backward of a variant."""

    def __init__(
        self,
        variant: ModelVariant,
        xs: list[Tensor],
        grads: list[Tensor],
        clock: Clock | None = None,
    ) -> None:
        self.variant, self.xs, self.grads = variant, xs, grads
        self.clock = clock or HostClock()

    def run(self, index: int) -> tuple[Tensor, Tensor, Phases]:
        """(y, dx, seconds by phase); the factors' gradients are left in place."""
        for parameter in self.variant.parameters:
            parameter.grad = None
        x = self.xs[index % len(self.xs)].detach().requires_grad_()
        grad = self.grads[index % len(self.grads)]
        results: list[Tensor] = []

        def forward() -> None:
            with self.variant.context():
                results.append(self.variant.model(inputs_embeds=x).last_hidden_state)

        def backward() -> None:
            results[0].backward(grad.to(results[0].dtype))

        phases = self.clock.phases(forward=forward, backward=backward)
        return results[0].detach(), x.grad, phases

    def __call__(self, index: int) -> Phases:
        """Seconds by phase."""
        return self.run(index)[2]

    def gradients(self, kind: str) -> Tensor:
        """All gradients of the A or B factors, as one vector in float64."""
        factors = self.variant.factors()
        parts = [p.grad for name, p in sorted(factors.items()) if f"lora_{kind}" in name]
        return torch.cat([part.double().flatten() for part in parts])

    def errors(self, exact: Mapping[str, Tensor]) -> dict[str, float]:
        """Errors of one forward and backward, by the names of a gate."""
        y, dx, _ = self.run(0)
        return {
            "y": relative_error(y, exact["y"]),
            "dx": relative_error(dx, exact["dx"]),
            "da_cosine": cosine(self.gradients("A"), exact["a"]),
            "db_cosine": cosine(self.gradients("B"), exact["b"]),
        }


def exact_layer(
    sizes: Mapping[str, int], x: Tensor, grad: Tensor, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """y, dx and the factors' gradients of the same layer in float64."""
    variant = build("PEFT bf16", lambda: make_layer(sizes, torch.bfloat16, device), TARGETS)
    set_factors(variant)
    variant.module.double()
    call = LayerCall(variant, [x.double()], [grad.double()])
    y, dx, _ = call.run(0)
    return {"y": y, "dx": dx, "a": call.gradients("A"), "b": call.gradients("B")}


def layer_gate(name: str, device: torch.device | str = "cpu") -> str:
    """The gate of a variant; bitsandbytes multiplies int8 on a GPU, and floats on a CPU."""
    base = name.removesuffix(COMPILED)
    if base.startswith("bitsandbytes") and torch.device(device).type == "cuda":
        return "layer w8a8"
    return _GATES.get(base, "layer bf16")
