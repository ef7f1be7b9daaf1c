"""LoRA-FA: y = base(x) + scaling · x Aᵀ Bᵀ with A frozen at random and B trained from zero.

Source: Zhang et al. 2023, https://arxiv.org/abs/2308.03303, section 3.
"""

__all__ = ["LoraFaAdapter", "LoraFaConfig", "LoraFaMethod"]

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ftrt.api import LinearAdapter, LinearMethod, Method, PluginConfig
from ftrt.hookspecs import hookimpl
from ftrt.nn import lora_forward

ftrt_hookspec = 1


class LoraFaConfig(PluginConfig):
    """Options of `method: {name: lora_fa}`."""

    rank: int = Field(16, ge=1, description="Rows of A; a layer trains out_features · rank.")
    alpha: float = Field(32.0, gt=0, description="The update is scaled by alpha / rank.")
    targets: Literal["all-linear"] | list[str] = Field(
        "all-linear", description="Names, or last parts of names, of the layers to adapt."
    )


class LoraFaAdapter(LinearAdapter):
    """B beside one layer; A is saved with it, since random numbers differ between machines."""

    lora_a: Tensor

    def __init__(self, in_features: int, out_features: int, rank: int, scaling: float) -> None:
        super().__init__()
        # rows of unit length in the mean, so that the update's scale does not depend on the width
        self.register_buffer("lora_a", torch.randn(rank, in_features) / in_features**0.5)
        self.lora_b = nn.Parameter(torch.zeros(out_features, rank))
        self.scaling = scaling

    def forward(self, base: nn.Module, x: Tensor) -> Tensor:
        return lora_forward(base, x, self.lora_a, self.lora_b, self.scaling)

    def delta_weight(self) -> Tensor:
        return self.scaling * (self.lora_b @ self.lora_a)


class LoraFaMethod(LinearMethod):
    """LoRA with its first factor frozen: half the trained numbers, gradients and moments."""

    name = "lora_fa"
    source = "Zhang et al. 2023, https://arxiv.org/abs/2308.03303"
    Config = LoraFaConfig

    config: LoraFaConfig

    def adapter(self, linear: nn.Module) -> LoraFaAdapter:
        """The adapter of one layer."""
        layer: Any = linear
        rank, alpha = self.config.rank, self.config.alpha
        return LoraFaAdapter(layer.in_features, layer.out_features, rank, alpha / rank)


@hookimpl
def register_methods() -> list[type[Method]]:
    return [LoraFaMethod]
