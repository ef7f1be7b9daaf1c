"""int8 layers under PEFT's methods other than LoRA, whose own layers know `nn.Linear` only.

Most of PEFT's layers call the base and add to its output, or change its input; some read its
weight. Both work on an int8 layer that passes for an `nn.Linear` and whose `weight` is dequantized
when it is read. Writing to that weight would be lost, so merging it in place is refused.
"""

__all__ = ["Int8AsLinear", "guard_merging", "show_as_linear", "show_as_they_are"]

from collections.abc import Iterable
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from torch import Tensor, nn

from ftrt.errors import UnsupportedError
from ftrt.integrations.peft_lora import is_plain_lora
from ftrt.integrations.peft_tuner import FtrtConfig
from ftrt.nn import Int8Linear
from ftrt.quantization.int8_layers import base_name


class Int8AsLinear(Int8Linear, nn.Linear):  # type: ignore[misc]
    """An `Int8Linear` that code which asks for an `nn.Linear` takes for one."""

    @property
    def weight(self) -> Tensor:
        """(out_features, in_features), float: a new, frozen tensor at each call."""
        return self.dequantize(self.float_dtype)

    @weight.setter
    def weight(self, value: Tensor) -> None:
        # PEFT hands a layer its own weight when it takes an adapter off.
        if not torch.equal(value, self.weight):
            raise UnsupportedError("int8 layer: its weight cannot be written to; dequantize it")


def show_as_linear(model: nn.Module, config: PeftConfig) -> list[Int8Linear]:
    """Let the int8 layers that `config` targets pass for `nn.Linear`, in place; return them."""
    shown: list[Int8Linear] = []
    is_ours = isinstance(config, FtrtConfig) or is_plain_lora(config)
    if is_ours or not getattr(config, "target_modules", None):
        return shown
    for name, module in model.named_modules():
        layer = getattr(module, "base_layer", module)
        if type(layer) is Int8Linear and check_target_module_exists(config, base_name(name)):
            layer.__class__ = Int8AsLinear
            shown.append(layer)
    return shown


def show_as_they_are(layers: Iterable[Int8Linear]) -> None:
    """Undo `show_as_linear`."""
    for layer in layers:
        layer.__class__ = Int8Linear


def guard_merging(model: nn.Module) -> None:
    """Refuse PEFT's own merging into an int8 weight, where it would be lost without a word."""
    for module in model.modules():
        layer: Any = module
        if isinstance(layer, BaseTunerLayer) and isinstance(layer.get_base_layer(), Int8AsLinear):
            layer.__dict__["merge"] = _guarded(layer)


def _guarded(layer: Any) -> Any:
    def merge(*args: Any, **kwargs: Any) -> None:
        if isinstance(layer.get_base_layer(), Int8Linear):
            raise UnsupportedError(
                f"merge: {type(layer).__name__} cannot be merged into an int8 layer in place; use"
                " `ftrt merge`, which merges into float weights"
            )
        type(layer).merge(layer, *args, **kwargs)

    return merge
