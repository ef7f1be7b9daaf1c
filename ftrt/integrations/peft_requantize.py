"""Merging adapters into int8 weights, one layer at a time."""

__all__ = ["adapters_off", "requantize_layers"]

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ftrt.errors import CheckpointError
from ftrt.quantization.deferred import quantize_rows
from ftrt.quantization.granularity import PerChannel
from ftrt.quantization.int8_linear import Int8Linear
from ftrt.quantization.retention import LayerRetention, layer_retention


@contextlib.contextmanager
def adapters_off(peft_model: PeftModel) -> Iterator[None]:
    """Let the adapted layers compute as the base does; modules that were trained whole stay."""
    layers = [m for m in peft_model.modules() if isinstance(m, BaseTunerLayer)]
    trained = [(p, p.requires_grad) for p in peft_model.parameters()]
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for parameter, requires_grad in trained:
            parameter.requires_grad_(requires_grad)


@torch.no_grad()
def requantize_layers(
    peft_model: PeftModel, names: Sequence[str], weight_of: Callable[[str], Tensor]
) -> list[LayerRetention]:
    """Put `Int8Linear` layers with one scale for each output feature in the named places, with the
    adapters in them where there are any.

    Adapters are added to the float weight, in float32, so that the base is rounded once.

    Args:
        peft_model: changed in place.
        names: layers by their names in the base model.
        weight_of: gives the original float weight of a layer that is int8 now.

    Returns:
        The scores of the adapted layers.

    Raises:
        CheckpointError: a merged weight is not finite.
    """
    base = peft_model.get_base_model()
    scores = []
    for name in names:
        layer: Any = base.get_submodule(name)
        inner: Any = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer
        is_int8 = isinstance(inner, Int8Linear)
        if layer is inner and is_int8 and inner.scale.shape[1] == 1:
            continue
        weight = weight_of(name) if is_int8 else inner.weight.detach()
        dtype = inner.float_dtype if is_int8 else weight.dtype
        merged, bias = weight, inner.bias
        if layer is not inner:
            merged, bias = _merged(layer, weight, name)
        qweight, scale = quantize_rows(merged, PerChannel(), where=f"merge of {name}")
        if layer is not inner:
            scores.append(layer_retention(name, weight, merged, qweight, scale))
        bias = None if bias is None else bias.detach().to(dtype)
        int8 = Int8Linear.from_quantized(qweight, scale, bias, dtype=dtype)
        parent, _, attribute = name.rpartition(".")
        setattr(base.get_submodule(parent), attribute, int8.train(layer.training))
    return scores


def _merged(layer: Any, weight: Tensor, name: str) -> tuple[Tensor, Tensor | None]:
    """Weight and bias, float32, of the layer's adapters merged into `weight`."""
    inner = layer.get_base_layer()
    linear = nn.Linear(inner.in_features, inner.out_features, bias=False, device="meta")
    linear.weight = nn.Parameter(weight.float(), requires_grad=False)
    if inner.bias is not None:
        linear.bias = nn.Parameter(inner.bias.detach().float(), requires_grad=False)
    layer.base_layer = linear
    try:
        layer.merge(safe_merge=True)
    # PEFT's own layers say ValueError
    except (ValueError, CheckpointError) as error:
        raise CheckpointError(f"merge of {name}: {error}") from error
    merged = layer.get_base_layer()
    return merged.weight.detach(), merged.bias
