"""The method `example`: a low-rank update whose scaling does not shrink as the rank grows."""

__all__ = ["Example", "ExampleAdapter"]

import math
from typing import ClassVar, Literal

import torch
from ftrt import LinearAdapter, LinearMethod, PluginConfig, hookimpl
from ftrt.nn import lora_forward
from pydantic import Field
from torch import Tensor, nn

ftrt_hookspec = 1


class ExampleConfig(PluginConfig):
    """What a recipe may give beside `name: example`."""

    rank: int = Field(8, ge=1, description="Rows of lora_a, columns of lora_b.")
    alpha: float = Field(8.0, gt=0, description="Strength of the update; scaling = alpha / √rank.")
    targets: list[str] | Literal["all-linear"] = Field(
        "all-linear", description="Names, or last parts of names, of the layers to adapt."
    )


class ExampleAdapter(LinearAdapter):
    """y = base(x) + alpha / √rank · (x Aᵀ) Bᵀ; B starts at zero, so nothing changes at first."""

    def __init__(self, linear: nn.Module, config: ExampleConfig) -> None:
        super().__init__()
        rows, columns = int(linear.out_features), int(linear.in_features)  # type: ignore[arg-type]
        device = next((t.device for t in [*linear.parameters(), *linear.buffers()]), None)
        self.scaling = config.alpha / math.sqrt(config.rank)
        self.lora_a = nn.Parameter(torch.empty(config.rank, columns, device=device))
        self.lora_b = nn.Parameter(torch.zeros(rows, config.rank, device=device))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def forward(self, base: nn.Module, x: Tensor) -> Tensor:
        """The adapted output, (..., out_features); one fused op where `base` and device allow."""
        return lora_forward(base, x, self.lora_a, self.lora_b, self.scaling)

    def delta_weight(self) -> Tensor:
        """alpha / √rank · B A, (out_features, in_features), for merging."""
        return self.scaling * (self.lora_b.float() @ self.lora_a.float())


class Example(LinearMethod):
    """Low-rank adapters scaled by alpha / √rank, so that high ranks learn as fast as low ones.

    Source: Kalajdzievski 2023, https://arxiv.org/abs/2312.03732, equation 4.
    """

    name: ClassVar[str] = "example"
    source: ClassVar[str] = "Kalajdzievski 2023, https://arxiv.org/abs/2312.03732"
    Config = ExampleConfig

    def adapter(self, linear: nn.Module) -> ExampleAdapter:
        """The adapter of one frozen linear layer."""
        return ExampleAdapter(linear, self.config)


@hookimpl
def register_methods() -> list[type[Example]]:
    """What this plugin offers."""
    return [Example]
