"""Adapter methods as `PeftModel`s: put one on a model, read it back, make it fast, merge it.

With `peft_*.py` beside it this is the only importer of peft; importing it registers the PEFT type
"FTRT".
"""

__all__ = ["config_for", "fuse", "load", "merge", "merge_int8", "unfuse", "wrap"]

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from peft import PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ftrt.api import Method
from ftrt.errors import CheckpointError, UnsupportedError, UsageError
from ftrt.integrations.peft_config import check_bare, config_for
from ftrt.integrations.peft_int8 import (
    Int8AsLinear,
    guard_merging,
    show_as_linear,
    show_as_they_are,
)
from ftrt.integrations.peft_load import load
from ftrt.integrations.peft_lora import fuse_layers, unfuse_layers
from ftrt.integrations.peft_requantize import requantize_layers
from ftrt.integrations.peft_tuner import FtrtConfig
from ftrt.quantization.convert import dequantize_linears
from ftrt.quantization.retention import LayerRetention

# How PEFT's names of layers start.
PREFIX = "base_model.model."

logger = logging.getLogger(__name__)


def wrap(
    model: nn.Module,
    method: Method,
    *,
    new_modules: Sequence[str] = (),
    task_type: str | None = None,
    adapter_name: str = "default",
    options: Mapping[str, Any] | None = None,
) -> PeftModel:
    """Freeze `model` and put an untrained adapter on it, in place.

    PEFT's LoRA layers run the fused forward (`unfuse` undoes that). Adapters are float32 on any
    base.

    Args:
        model: a float or int8 model without adapters.
        method: a `LinearMethod` or `PeftMethod`.
        new_modules: names of modules that no pretraining has seen; trained and saved whole.
        task_type: PEFT's task type, say "SEQ_CLS".
        adapter_name: PEFT's name for the adapter.
        options: what to record as the method's options; the validated config by default.

    Raises:
        ConfigError: a target matches no layer.
        UnsupportedError: the method and this base do not go together.
        UsageError: the model has adapters already, or the method is none that adapts.
    """
    check_bare(model)
    if not adapter_name or "." in adapter_name:
        raise UsageError(f"wrap: adapter_name must be a name without dots; got {adapter_name!r}")
    config = config_for(
        model, method, new_modules=new_modules, task_type=task_type, options=options
    )
    model.requires_grad_(False)
    shown = show_as_linear(model, config)
    try:
        peft_model = get_peft_model(model, config, adapter_name=adapter_name)
    except (ValueError, NotImplementedError) as error:
        show_as_they_are(shown)
        raise UnsupportedError(
            f"method {method.name!r}: cannot adapt {type(model).__name__}; {error}"
        ) from error
    fuse_layers(peft_model)
    guard_merging(peft_model)
    return peft_model


def fuse(peft_model: PeftModel) -> PeftModel:
    """Run the LoRA layers of a `PeftModel` through ftrt's fused op, in place, and return it.

    Outputs agree within rounding, and files, state-dict keys and PEFT's own functions stay as they
    are. LoRA, rsLoRA and DoRA run fused, with dropout too, whose mask then comes from ftrt's seed.
    Layers that will run PEFT's own forward all the same (another variant, lora_bias, module hooks,
    a base that trains, several active adapters) are logged by name, and `ftrt.layer_report` lists
    them.

    Raises:
        UsageError: not a `PeftModel`, or one without LoRA linear layers.
    """
    if not isinstance(peft_model, PeftModel):
        raise UsageError(f"fuse: must be given a peft.PeftModel; got {type(peft_model).__name__}")
    count = fuse_layers(peft_model)
    if count == 0:
        kinds = ", ".join(
            sorted(
                {
                    str(getattr(c.peft_type, "value", c.peft_type))
                    for c in peft_model.peft_config.values()
                }
            )
        )
        raise UsageError(
            f"fuse: the model must have LoRA linear layers; it has none (its PEFT type is {kinds})"
        )
    logger.info("fused %d LoRA layers", count)
    return peft_model


def unfuse(peft_model: PeftModel) -> PeftModel:
    """Give LoRA layers PEFT's own forward back, in place; int8 layers have no other and stay."""
    if not isinstance(peft_model, PeftModel):
        raise UsageError(f"unfuse: must be given a peft.PeftModel; got {type(peft_model).__name__}")
    unfuse_layers(peft_model)
    return peft_model


def merge(peft_model: PeftModel) -> nn.Module:
    """The base with its active adapters added to the weights, as a plain float model.

    Raises:
        UsageError: not a `PeftModel`.
        UnsupportedError: the method cannot be merged; the message names it.
        CheckpointError: the merged weights are not finite.
    """
    label = _checked_method(peft_model)
    merged = _unloaded(peft_model, label)
    dequantize_linears(merged)
    return merged


def merge_int8(
    peft_model: PeftModel, names: Sequence[str], weight_of: Callable[[str], Tensor]
) -> tuple[nn.Module, list[LayerRetention]]:
    """The base with its active adapters added to the weights and quantized anew per channel, a
    layer at a time; layers that are not named are merged in float.

    Args:
        peft_model: changed in place, and of no more use after.
        names: the layers that are int8 in the result, by their names in the base.
        weight_of: gives the original float weight of a layer that is int8 now.

    Returns:
        The plain model, and how much of the adapter each adapted int8 layer keeps.

    Raises:
        UsageError, UnsupportedError, CheckpointError: as `merge`.
    """
    label = _checked_method(peft_model)
    retained = requantize_layers(peft_model, names, weight_of)
    return _unloaded(peft_model, label), retained


def _checked_method(peft_model: PeftModel) -> str:
    """Refuse what cannot be merged; the name of the method otherwise."""
    if not isinstance(peft_model, PeftModel):
        raise UsageError(f"merge: must be given a peft.PeftModel; got {type(peft_model).__name__}")
    label = ""
    for name in peft_model.active_adapters:
        config = peft_model.peft_config[name]
        label = _method_name(config)
        mergeable = (
            config.resolve().mergeable
            if isinstance(config, FtrtConfig)
            else not config.is_prompt_learning
        )
        if not mergeable or not hasattr(peft_model.base_model, "merge_and_unload"):
            raise UnsupportedError(
                f"merge: method {label!r} cannot be merged into the weights; keep it as an adapter"
            )
    _check_unshared(peft_model)
    return label


def _unloaded(peft_model: PeftModel, label: str) -> nn.Module:
    for layer in peft_model.modules():
        base = getattr(layer, "base_layer", None)
        if isinstance(layer, BaseTunerLayer) and isinstance(base, Int8AsLinear):
            layer.base_layer = base.to_linear()
    try:
        merged: nn.Module = peft_model.merge_and_unload(safe_merge=True)
    except NotImplementedError as error:
        raise UnsupportedError(
            f"merge: method {label!r} cannot be merged into the weights; keep it as an adapter"
        ) from error
    except ValueError as error:
        if "NaN" in str(error):
            raise CheckpointError(f"merge: method {label!r}: {error}") from error
        raise UnsupportedError(
            f"merge: method {label!r} cannot be merged into these weights: {error}; keep it as an"
            " adapter"
        ) from error
    return merged


def _check_unshared(model: nn.Module) -> None:
    """Refuse tied weights: adding to one in place changes whatever else holds it."""
    uses = Counter(id(p) for m in model.modules() for p in m._parameters.values() if p is not None)
    for name, layer in model.named_modules():
        base = getattr(layer, "base_layer", None) if isinstance(layer, BaseTunerLayer) else None
        weight = getattr(base, "weight", None)
        if isinstance(weight, nn.Parameter) and uses[id(weight)] > 1:
            raise UnsupportedError(
                f"merge: {name.removeprefix(PREFIX)} shares its weight with another module, which"
                " merging would change too; keep it as an adapter, or untie the weights before"
                " training"
            )


def _method_name(config: PeftConfig) -> str:
    if isinstance(config, FtrtConfig):
        return config.method
    return str(getattr(config.peft_type, "value", config.peft_type)).lower()
