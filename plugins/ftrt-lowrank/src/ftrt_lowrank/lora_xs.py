"""LoRA-XS: y = base(x) + scaling · x Aᵀ Rᵀ Bᵀ, with A and B frozen and only R (rank, rank) trained.

A = V_rᵀ (rank, in_features) and B = U_r Σ_r (out_features, rank) come from the truncated singular
value decomposition of the base's weight, W ≈ U_r Σ_r V_rᵀ, so a layer trains rank² numbers whatever
its width.

Source: Bałazy et al. 2024, https://arxiv.org/abs/2405.17604, section 3. The paper starts R at small
random numbers; here it starts at zero, which makes the start exact. It trains as well: A and B are
not zero, so neither is the gradient of R.
"""

__all__ = ["LoraXsAdapter", "LoraXsConfig", "LoraXsMethod"]

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ftrt.api import LinearAdapter, LinearMethod, Method, PluginConfig
from ftrt.errors import UnsupportedError
from ftrt.hookspecs import hookimpl
from ftrt.nn import dense_weight, lora_forward

ftrt_hookspec = 1

# Randomised SVD (Halko et al. 2011, https://arxiv.org/abs/0909.4061, section 4.4): a few more
# columns than asked for, and power iterations, which separate the slowly falling spectra of
# transformer weights.
OVERSAMPLING = 8
POWER_ITERATIONS = 8


class LoraXsConfig(PluginConfig):
    """Options of `method: {name: lora_xs}`."""

    rank: int = Field(
        16, ge=1, description="Singular directions kept; a layer trains rank² numbers."
    )
    alpha: float = Field(32.0, gt=0, description="The update is scaled by alpha / rank.")
    targets: Literal["all-linear"] | list[str] = Field(
        "all-linear", description="Names, or last parts of names, of the layers to adapt."
    )


class LoraXsAdapter(LinearAdapter):
    """R between the frozen factors of one layer.

    The factors are saved with R although they could be computed again: the decomposition's last
        bits depend on the
    machine and on whether the base was float or int8, and an adapter must give the same outputs
    wherever it is read.
    """

    lora_a: Tensor
    lora_b: Tensor

    def __init__(self, lora_a: Tensor, lora_b: Tensor, scaling: float) -> None:
        """Take the frozen factors.

        Args:
            lora_a: (rank, in_features), float32.
            lora_b: (out_features, rank), float32.
            scaling: alpha / rank.
        """
        super().__init__()
        rank = lora_a.shape[0]
        self.register_buffer("lora_a", lora_a)
        self.register_buffer("lora_b", lora_b)
        self.core = nn.Parameter(torch.zeros(rank, rank, dtype=torch.float32, device=lora_a.device))
        self.scaling = scaling

    def forward(self, base: nn.Module, x: Tensor) -> Tensor:
        # R A is (rank, in_features) and cheap; with it the update is an ordinary LoRA, which has a
        # fused op.
        return lora_forward(base, x, self.core @ self.lora_a, self.lora_b, self.scaling)

    def delta_weight(self) -> Tensor:
        return self.scaling * (self.lora_b @ (self.core @ self.lora_a))


class LoraXsMethod(LinearMethod):
    """Trains rank² numbers a layer: for many tasks over one base, or very little memory."""

    name = "lora_xs"
    source = "Bałazy et al. 2024, https://arxiv.org/abs/2405.17604"
    Config = LoraXsConfig

    config: LoraXsConfig

    def adapter(self, linear: nn.Module) -> LoraXsAdapter:
        """The adapter of one layer.

        Raises:
            UnsupportedError: the rank is larger than the layer's smaller side.
        """
        rank = self.config.rank
        weight = dense_weight(linear).to(torch.float32)
        if rank > min(weight.shape):
            raise UnsupportedError(
                "method 'lora_xs': rank must not exceed the smaller side of a targeted layer; got"
                f" rank {rank} for {tuple(weight.shape)}. Lower it, or leave that layer out of"
                " `targets`"
            )
        u, s, v = torch.svd_lowrank(
            weight, q=min(rank + OVERSAMPLING, *weight.shape), niter=POWER_ITERATIONS
        )
        lora_a = v[:, :rank].T.contiguous()
        lora_b = (u[:, :rank] * s[:rank]).contiguous()
        return LoraXsAdapter(lora_a, lora_b, self.config.alpha / rank)


@hookimpl
def register_methods() -> list[type[Method]]:
    return [LoraXsMethod]
