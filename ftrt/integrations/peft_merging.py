"""Merging beside a kept base, so that unmerging puts the very same layer back."""

__all__ = ["KeepsBase", "float_layer", "merged_linear"]

from typing import Any

import torch
from torch import Tensor, nn

from ftrt.errors import CheckpointError
from ftrt.nn import Int8Linear, dense_weight


class KeepsBase:
    """Mixed into a PEFT layer: swaps `base_layer` while merged, so unmerging is bit-exact.

    PEFT's own layers add to the weight and subtract again, which an int8 weight cannot do and which
    rounds a float one.
    """

    base_layer: Any
    merged_adapters: list[str]

    def swap_in(self, delta: Tensor, names: list[str], *, safe: bool) -> None:
        """Put base + delta, (out_features, in_features), in the base's place.

        Raises:
            CheckpointError: `safe`, and the merged weight is not finite; the base stays.
        """
        merged = merged_linear(self.base_layer, delta)
        if safe and not torch.isfinite(merged.weight).all():
            raise CheckpointError(
                f"merge: the merged weight must be finite; adapter {', '.join(names)} is broken"
            )
        if not self._kept:
            self._kept.append(self.base_layer)
        self.base_layer = merged
        self.merged_adapters.extend(names)

    def unmerge(self) -> None:
        """Put the base itself back."""
        if self._kept:
            device = self.base_layer.weight.device
            self.base_layer = self._kept.pop().to(device)
        self.merged_adapters = []

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """What takes this layer's place once its adapters are gone (PEFT calls it by this name)."""
        if merge:
            self.merge(safe_merge=safe_merge, adapter_names=adapter_names)  # type: ignore[attr-defined]
            self.base_layer = float_layer(self.base_layer)
        else:
            self.unmerge()
        layer: nn.Module = self.base_layer
        return layer

    @property
    def _kept(self) -> list[nn.Module]:
        # a list hides the base from module registration, so that state-dict keys stay as they are
        kept: list[nn.Module] = self.__dict__.setdefault("_kept_base", [])
        return kept


def merged_linear(base: nn.Module, delta: Tensor) -> nn.Linear:
    """A frozen `nn.Linear` with weight dense(base) + delta, summed in float32; the bias is shared.

    Args:
        base: `nn.Linear` or `Int8Linear`.
        delta: (out_features, in_features).
    """
    layer = float_layer(base)
    weight = dense_weight(base).detach()
    summed = weight.float() + delta.to(weight.device, torch.float32)
    result = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    result.weight = nn.Parameter(summed.to(layer.weight.dtype), requires_grad=False)
    result.bias = layer.bias
    return result.train(base.training)


def float_layer(layer: Any) -> Any:
    """`layer`, dequantized if it is int8."""
    return layer.to_linear() if isinstance(layer, Int8Linear) else layer
