"""LoRA: y = base(x) + scaling · x Aᵀ Bᵀ, with PEFT's own layers, config and files.

Source: Hu et al. 2021, https://arxiv.org/abs/2106.09685, equation 3. Rank-stabilised scaling:
    Kalajdzievski 2023,
https://arxiv.org/abs/2312.03732. DoRA: Liu et al. 2024, https://arxiv.org/abs/2402.09353.
"""

__all__ = ["LoraConfig", "LoraMethod"]

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field
from torch import nn

from ftrt.api import Method, PeftMethod, PluginConfig
from ftrt.hookspecs import hookimpl

if TYPE_CHECKING:
    import peft

ftrt_hookspec = 1


class LoraConfig(PluginConfig):
    """Options of `method: {name: lora}`."""

    rank: int = Field(
        16, ge=1, description="Rank of the update; A is (rank, in), B is (out, rank)."
    )
    alpha: float = Field(32.0, gt=0, description="The update is scaled by alpha / rank.")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="Dropout on the adapter's input while training."
    )
    targets: Literal["all-linear"] | list[str] = Field(
        "all-linear", description="Names, or last parts of names, of the layers to adapt."
    )
    rslora: bool = Field(False, description="Scale by alpha / sqrt(rank), stable at high ranks.")
    dora: bool = Field(False, description="Also train the magnitude of each output feature.")
    lr_ratio: float = Field(
        1.0,
        ge=1,
        description="LoRA+: B learns at this many times the run's learning rate, A at the rate.",
    )
    init: Literal["kaiming", "gaussian"] = Field(
        "kaiming", description="How A starts; B starts at zero."
    )


class LoraMethod(PeftMethod):
    """PEFT's LoRA and DoRA; layers with one active adapter run the fused op."""

    name = "lora"
    source = "Hu et al. 2021, https://arxiv.org/abs/2106.09685"
    Config = LoraConfig

    config: LoraConfig

    def param_groups(self, model: nn.Module) -> list[dict[str, Any]] | None:
        """B apart, at `lr_ratio` times the learning rate; None where that is 1.

        Source: Hayou et al. 2024, https://arxiv.org/abs/2402.12354, section 4.
        """
        if self.config.lr_ratio == 1:
            return None
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        fast = [p for name, p in trained if ".lora_B." in name or ".lora_embedding_B." in name]
        ids = {id(p) for p in fast}
        rest = [p for _, p in trained if id(p) not in ids]
        return [{"params": rest}, {"params": fast, "lr_ratio": self.config.lr_ratio}]

    def peft_config(self, model: nn.Module) -> "peft.LoraConfig":
        """PEFT's config of the same meaning."""
        import peft

        options = self.config
        # PEFT annotates an integer and takes any number; its readers expect one without a dot
        whole = options.alpha.is_integer()
        alpha: Any = int(options.alpha) if whole else options.alpha
        return peft.LoraConfig(
            r=options.rank,
            lora_alpha=alpha,
            lora_dropout=options.dropout,
            target_modules=options.targets,
            use_rslora=options.rslora,
            use_dora=options.dora,
            init_lora_weights=True if options.init == "kaiming" else options.init,
        )


@hookimpl
def register_methods() -> list[type[Method]]:
    return [LoraMethod]
