"""The int8 layers of a model by name, and recorded choices put back on them."""

__all__ = [
    "apply_choices",
    "bare_model",
    "base_name",
    "compute_all",
    "int8_layers",
    "share_inputs",
]

from collections.abc import Iterable
from typing import Any

from torch import nn

from ftrt.errors import ConfigError, UsageError
from ftrt.quantization.choices import Compute, LayerChoice
from ftrt.quantization.int8_linear import Int8Linear
from ftrt.quantization.shared_input import SharedInput

# What PEFT puts around the name that a layer has in the base model.
_PREFIX = "base_model.model."
_BASE = ".base_layer"


def int8_layers(model: nn.Module) -> dict[str, Int8Linear]:
    """The int8 layers of `model` by their names in the base model, in its order."""
    return {
        base_name(name): module
        for name, module in bare_model(model).named_modules()
        if isinstance(module, Int8Linear)
    }


def bare_model(model: nn.Module) -> nn.Module:
    """The base model with the adapters in it, out of what PEFT puts around it, which is one shell
    for adapters in layers ("base_model.model.") and another for prompts ("base_model.").
    """
    getter: Any = getattr(model, "get_base_model", None)
    inner: nn.Module = getter() if callable(getter) else model
    return inner


def share_inputs(model: nn.Module) -> None:
    """Let the int8 layers that have the same parent in `model` share what w8a8 makes of one x."""
    for parent in model.modules():
        layers = [child for child in parent.children() if isinstance(child, Int8Linear)]
        if len(layers) > 1:
            shared = SharedInput()
            for layer in layers:
                layer.share_input(shared)


def compute_all(model: nn.Module, compute: Compute) -> None:
    """Let every int8 layer of `model` compute so; those of one parent share one quantized x."""
    for layer in int8_layers(model).values():
        layer.set_compute(compute)
    share_inputs(model)


def base_name(name: str) -> str:
    """A layer's name in the base model: without what PEFT puts around it."""
    # also in the middle: PEFT may wrap a whole block
    return name.removeprefix(_PREFIX).replace(_BASE, "")


def apply_choices(
    model: nn.Module, choices: Iterable[LayerChoice], *, where: str = "layers"
) -> None:
    """Put recorded choices back; layers that none names stay as they are.

    Args:
        model: has every layer that a choice names, in int8.
        choices: at most one a layer.
        where: how an error names what they were read from.

    Raises:
        ConfigError: a choice names no int8 layer of the model, or does not fit it.
    """
    layers = int8_layers(model)
    for choice in choices:
        layer = layers.get(choice.name)
        if layer is None:
            raise ConfigError(
                f"{where}: {choice.name} must be an int8 layer of {type(model).__name__}; it has"
                f" {len(layers)} others. The recipe's quantization or the base has changed"
            )
        try:
            layer.set_compute(choice.compute, choice.outliers)
        except UsageError as error:
            raise ConfigError(f"{where}: {choice.name}: {error}") from None
        layer.choice = choice
