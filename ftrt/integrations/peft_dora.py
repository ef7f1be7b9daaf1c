"""DoRA over ftrt's linear layers, int8 ones too, with PEFT's parameters, files and formula.

W' = magnitude · (W + scaling · B A) / ‖W + scaling · B A‖, the norm over each output feature and
constant for the gradient. W + scaling · B A is never formed:

    ‖w + s (b A)‖² = ‖w‖² + 2 s b · (A w) + s² b (A Aᵀ) b,   w a row of W, b a row of B

Source: Liu et al. 2024, https://arxiv.org/abs/2402.09353, equation 5 and section 4.3.
"""

__all__ = ["DORA_VARIANTS", "Int8DoraVariant", "column_scale", "merged_delta"]

from typing import Any, cast

import torch
from peft.tuners.lora.dora import DoraLinearLayer
from peft.tuners.lora.variants import DoraLinearVariant
from torch import Tensor, nn
from torch.nn import functional as F

from ftrt.errors import UnsupportedError
from ftrt.nn import Int8Linear, dense_weight
from ftrt.ops import int8_linear

# Weights in float at a time while the norms of an int8 weight are added up.
_CHUNK = 1 << 20


class Int8DoraLayer(DoraLinearLayer):
    """PEFT's holder of a magnitude; also keeps ‖w‖² of the frozen int8 weight, (out_features)."""

    def __init__(self, base: Int8Linear) -> None:
        super().__init__(fan_in_fan_out=False)  # type: ignore[no-untyped-call]
        # A plain attribute: no part of a state dict, and not cast with the model.
        self.squared_norm = _squared_norm(base)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """PEFT's own forward would take the int8 panels for a float weight.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError("DoRA on int8: the layer must be run as a whole, by its LoRA layer")


class Int8DoraVariant(DoraLinearVariant):
    """How PEFT's LoRA layer sets up and runs DoRA, for an int8 base."""

    @staticmethod
    def init(module: Any, adapter_name: str, **kwargs: Any) -> None:
        """Add the magnitude, which starts as the norm, so that the layer starts as its base."""
        if not module.lora_magnitude_vector:
            module.adapter_layer_names = (*module.adapter_layer_names, "lora_magnitude_vector")
        layer = Int8DoraLayer(module.get_base_layer())
        module.lora_magnitude_vector[adapter_name] = layer
        norm = _norm(module, adapter_name)
        layer.weight = nn.Parameter(norm.to(module.lora_A[adapter_name].weight.dtype))

    @staticmethod
    def forward(
        module: Any, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any
    ) -> Tensor:
        """result, which several active adapters may have added to already, with this one's part."""
        scale = column_scale(module, active_adapter)
        base, dropped = module.get_base_layer(), module.lora_dropout[active_adapter](x)
        product = result if dropped is x else base(dropped)
        if base.bias is not None:
            product = product - base.bias
        a, b = module.lora_A[active_adapter], module.lora_B[active_adapter]
        update = b(a(dropped)) * module.scaling[active_adapter]
        return cast(Tensor, result + (scale - 1) * product + scale * update)


DORA_VARIANTS = (DoraLinearVariant, Int8DoraVariant)


def column_scale(layer: Any, name: str) -> Tensor:
    """magnitude / ‖W + scaling · B A‖, (out_features); differentiable in the magnitude alone.

    Args:
        layer: PEFT's LoRA linear layer over an `nn.Linear` or an `Int8Linear`.
        name: of an adapter that is DoRA.
    """
    magnitude: Tensor = layer.lora_magnitude_vector[name].weight
    return magnitude / _norm(layer, name)


def merged_delta(layer: Any, names: list[str]) -> Tensor:
    """What merging the adapters adds to the weight of `layer`, (out_features, in_features) float32.

    Adapters are merged in turn, as PEFT does: each plain one adds to what is there, each DoRA one
    also scales it by its own magnitude over norm.
    """
    start = dense_weight(layer).float()
    weight = start
    for name in names:
        weight = weight + layer.get_delta_weight(name).float()
        if name in layer.lora_variant:
            weight = column_scale(layer, name).float().unsqueeze(1) * weight
    return weight - start


@torch.no_grad()
def _norm(layer: Any, name: str) -> Tensor:
    """‖W + scaling · B A‖ of each output feature, (out_features) float32."""
    base = layer.get_base_layer()
    a, b = layer.lora_A[name].weight.float(), layer.lora_B[name].weight.float()
    scaling = layer.scaling[name]
    with torch.autocast(a.device.type, enabled=False):
        if isinstance(base, Int8Linear):
            holder = layer.lora_magnitude_vector[name]
            if holder.squared_norm.device != a.device:
                holder.squared_norm = holder.squared_norm.to(a.device)
            squared = holder.squared_norm
            # (rank, out_features): A times the weight, which is never dequantized as a whole
            projected = int8_linear(a, base.packed, base.scale)
        else:
            weight = base.weight
            squared = torch.linalg.vector_norm(weight, dim=1, dtype=torch.float32).square()
            projected = F.linear(a.to(weight.dtype), weight).float()
        cross = (b * projected.t()).sum(1)
        update = (b.mm(a.mm(a.t())) * b).sum(1)
        # Rounding could make the sum of a vanishing row negative.
        total: Tensor = squared + 2 * scaling * cross + scaling**2 * update
        return total.clamp_min(0).sqrt()


def _squared_norm(base: Int8Linear) -> Tensor:
    """‖w‖² of each output feature, (out_features) float32, a few rows at a time."""
    qweight, rows = base.qweight, max(1, _CHUNK // base.in_features)
    parts = []
    for start in range(0, base.out_features, rows):
        part = qweight[start : start + rows].float()
        scale = base.scale[start : start + rows].repeat_interleave(base.group_size, dim=1)
        parts.append((part * scale).square().sum(1))
    return torch.cat(parts)
