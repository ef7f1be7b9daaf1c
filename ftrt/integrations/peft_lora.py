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

from typing import Any, cast

import torch
from peft import LoraConfig
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn

from ftrt.errors import UnsupportedError
from ftrt.integrations.peft_merging import KeepsBase
from ftrt.nn import Int8Linear, is_linear, lora_forward

# Initialisations that never read the base's weight; all others of PEFT's do, and several change it.
WEIGHT_FREE_INITS = (True, False, "gaussian")


class FusedLoraLinear(LoraLinear):
    """PEFT's LoRA layer, running one plain active adapter through `ftrt.nn.lora_forward`."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        name = None if args or kwargs else self._fusable()
        if name is None:
            output: Tensor = super().forward(x, *args, **kwargs)
            return output
        a, b = cast(nn.Linear, self.lora_A[name]), cast(nn.Linear, self.lora_B[name])
        return lora_forward(self.base_layer, x, a.weight, b.weight, self.scaling[name])

    def _fusable(self) -> str | None:
        """The adapter that the fused op can run on this call; None where PEFT's forward must."""
        if self._disable_adapters or self.merged_adapters or self.fan_in_fan_out:
            return None
        active = [name for name in self.active_adapters if name in self.lora_A]
        if len(active) != 1:
            return None
        name = active[0]
        if name in self.lora_variant or self.lora_bias[name]:
            return None
        dropout = self.lora_dropout[name]
        if self.training and not isinstance(dropout, nn.Identity):
            return None
        # A module hook or a subclass on these layers (offloading, tensor parallelism,
        # parametrization) only works if they are called.
        layers = (self.lora_A[name], self.lora_B[name])
        is_plain = all(type(layer) is nn.Linear and not _is_hooked(layer) for layer in layers)
        return name if is_plain and self._is_fusable_base() else None

    def _is_fusable_base(self) -> bool:
        return is_linear(self.base_layer) and not _is_hooked(self.base_layer)


class Int8LoraLinear(KeepsBase, FusedLoraLinear):
    """LoRA over an int8 base; merging swaps in a float layer and keeps the int8 one."""

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
        if variant is not None:
            raise UnsupportedError(
                f"LoRA on int8: {type(variant).__name__.removesuffix('LinearVariant')} needs the"
                " base's float weight; use plain LoRA, or a float base"
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
            delta = torch.stack([self.get_delta_weight(n).float() for n in names]).sum(dim=0)
        self.swap_in(delta, names, safe=safe_merge)


def lora_on_int8(config: Any) -> None:
    """Let this `LoraConfig` adapt int8 layers; no trace of it is saved."""
    config._register_custom_module({Int8Linear: Int8LoraLinear})


def is_plain_lora(config: Any) -> bool:
    """Whether the config is PEFT's LoRA itself, not one of the methods derived from it."""
    return type(config) is LoraConfig


def fuse_layers(model: nn.Module) -> int:
    """Give PEFT's LoRA linear layers the fused forward, in place; return how many have it."""
    count = 0
    for module in model.modules():
        if type(module) is LoraLinear:
            module.__class__ = FusedLoraLinear
        count += isinstance(module, FusedLoraLinear)
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
