"""PEFT's own LoRA layers with a fused forward, on float and on int8 bases.

The classes only override what they must: files, state-dict keys, adapters and everything unusual
stay PEFT's.
"""

__all__ = [
    "FusedLoraLinear",
    "Int8LoraLinear",
    "fuse_layers",
    "is_plain_lora",
    "lora_on_int8",
    "unfuse_layers",
]

import logging
from typing import Any, cast

import torch
from peft import LoraConfig
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn

from ftrt.errors import UnsupportedError
from ftrt.integrations.peft_dora import DORA_VARIANTS, Int8DoraVariant, column_scale, merged_delta
from ftrt.integrations.peft_merging import KeepsBase
from ftrt.nn import Int8Linear, is_linear, lora_forward
from ftrt.nn.layer_report import Adapter
from ftrt.ops import MAX_RANK
from ftrt.quantization.int8_layers import base_name

# Initialisations that never read the base's weight; all others of PEFT's do, and several change it.
WEIGHT_FREE_INITS = (True, False, "gaussian")

logger = logging.getLogger(__name__)


class FusedLoraLinear(LoraLinear):
    """PEFT's LoRA layer, running one plain or DoRA adapter through `ftrt.nn.lora_forward`."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        name = None if args or kwargs else self._active_alone()
        if name is None or self._obstacle(name):
            output: Tensor = super().forward(x, *args, **kwargs)
            return output
        a = cast(nn.Linear, self.lora_A[name]).weight
        b = cast(nn.Linear, self.lora_B[name]).weight
        dropout = self.lora_dropout[name]
        rate = dropout.p if self.training and isinstance(dropout, nn.Dropout) else 0.0
        base, scaling = self.base_layer, self.scaling[name]
        if name not in self.lora_variant:
            return lora_forward(base, x, a, b, scaling, dropout=rate)
        scale = column_scale(self, name)
        if rate == 0:
            return lora_forward(base, x, a, b, scaling, column_scale=scale)
        # PEFT's DoRA drops x for the weight too, in all but the part that is the base's own output:
        # y = base(x) + W' drop(x) - W drop(x).
        dropped = dropout(x)
        adapted = lora_forward(base, dropped, a, b, scaling, column_scale=scale)
        return cast(Tensor, base(x) + (adapted - base(dropped)))

    def forward_path(self) -> tuple[Adapter, str]:
        """How the active adapters run, for `ftrt.layer_report`."""
        names = [name for name in self.active_adapters if name in self.lora_A]
        obstacles = {self._obstacle(name) for name in names} - {""}
        if len(names) > 1:
            obstacles.add("several adapters are active")
        return ("peft", "; ".join(sorted(obstacles))) if obstacles else ("fused", "")

    def _active_alone(self) -> str | None:
        """The adapter that runs, if it is one that is neither disabled nor merged."""
        if self._disable_adapters or self.merged_adapters:
            return None
        active = [name for name in self.active_adapters if name in self.lora_A]
        return active[0] if len(active) == 1 else None

    def _obstacle(self, name: str) -> str:
        """Why this adapter runs PEFT's own forward, whatever the call; empty if the fused op can
        run it.
        """
        variant = self.lora_variant.get(name)
        if variant is not None and type(variant) not in DORA_VARIANTS:
            return f"it is {type(variant).__name__.removesuffix('LinearVariant')}"
        if self.fan_in_fan_out:
            return "fan_in_fan_out"
        if self.lora_bias[name]:
            return "lora_bias"
        if type(self.lora_dropout[name]) not in (nn.Identity, nn.Dropout):
            return f"its dropout is {type(self.lora_dropout[name]).__name__}"
        if self.r[name] > MAX_RANK:
            return f"its rank {self.r[name]} is above {MAX_RANK}"
        # A module hook or a subclass on these layers (offloading, tensor parallelism,
        # parametrization) only works if they are called.
        layers = (self.lora_A[name], self.lora_B[name], self.base_layer)
        for part, layer in zip(("lora_A", "lora_B", "base"), layers, strict=True):
            if not (is_linear(layer) if part == "base" else type(layer) is nn.Linear):
                return f"its {part} is {type(layer).__name__}"
            if _is_hooked(layer):
                return f"its {part} has module hooks"
        return self._obstacle_of_weight()

    def _obstacle_of_weight(self) -> str:
        base = self.base_layer
        if isinstance(base, Int8Linear):
            return ""
        if base.weight.requires_grad:
            return "its base trains"
        if type(base.weight) is not nn.Parameter:
            return f"its weight is {type(base.weight).__name__}"
        return ""


class Int8LoraLinear(KeepsBase, FusedLoraLinear):
    """LoRA over an int8 base; merging swaps in a float layer and keeps the int8 one."""

    @property
    def lora_variants(self) -> dict[tuple[str, ...], Any]:
        """PEFT's table, with DoRA as it works on int8."""
        return {**super().lora_variants, ("use_dora",): Int8DoraVariant}

    def update_layer(
        self, adapter_name: str, r: int, lora_alpha: int, config: LoraConfig, **kwargs: Any
    ) -> None:
        if config.init_lora_weights not in WEIGHT_FREE_INITS:
            raise UnsupportedError(
                "LoRA on int8: init_lora_weights must be one of"
                f" {', '.join(map(str, WEIGHT_FREE_INITS))}; got {config.init_lora_weights!r},"
                " which reads or changes the base's float weight"
            )
        variant = self.resolve_lora_variant(config=config)
        if variant is not None and not isinstance(variant, Int8DoraVariant):
            raise UnsupportedError(
                f"LoRA on int8: {type(variant).__name__.removesuffix('LinearVariant')} needs the"
                " base's float weight; use plain LoRA or DoRA, or a float base"
            )
        super().update_layer(adapter_name, r, lora_alpha=lora_alpha, config=config, **kwargs)

    def _get_in_out_features(self, module: Any) -> tuple[int, int]:
        return module.in_features, module.out_features

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Dequantize the base and add the adapters' weight to it.

        Raises:
            CheckpointError: `safe_merge`, and the merged weight is not finite.
        """
        names = [
            name for name in check_adapters_to_merge(self, adapter_names) if name in self.lora_A
        ]
        if not names:
            return
        if any(self.lora_bias[name] for name in names):
            raise UnsupportedError("merge: LoRA with lora_bias cannot be merged into an int8 base")
        with torch.no_grad():
            delta = merged_delta(self, names)
        self.swap_in(delta, names, safe=safe_merge)


def lora_on_int8(config: Any) -> None:
    """Let this `LoraConfig` adapt int8 layers; no trace of it is saved."""
    config._register_custom_module({Int8Linear: Int8LoraLinear})


def is_plain_lora(config: Any) -> bool:
    """Whether the config is PEFT's LoRA itself, not one of the methods derived from it."""
    return type(config) is LoraConfig


def fuse_layers(model: nn.Module) -> int:
    """Give PEFT's LoRA linear layers the fused forward, in place; return how many have it.

    Layers that will run PEFT's own forward all the same are logged, by name and reason.
    """
    count = 0
    obstacles: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        if type(module) is LoraLinear:
            module.__class__ = FusedLoraLinear
        if isinstance(module, FusedLoraLinear):
            count += 1
            path, reason = module.forward_path()
            if path == "peft":
                obstacles.setdefault(reason, []).append(base_name(name))
    for reason, names in obstacles.items():
        logger.warning(
            "%d of the LoRA layers run PEFT's own forward, because %s: %s",
            len(names),
            reason,
            ", ".join(names),
        )
    return count


def unfuse_layers(model: nn.Module) -> int:
    """Give float LoRA layers PEFT's own forward back, in place; return how many changed."""
    count = 0
    for module in model.modules():
        if type(module) is FusedLoraLinear:
            module.__class__ = LoraLinear  # type: ignore[assignment]
            count += 1
    return count


def _is_hooked(module: nn.Module) -> bool:
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    # accelerate replaces `forward` on the instance instead of registering a hook
    return any(hooks) or "forward" in module.__dict__
