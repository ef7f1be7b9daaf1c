"""What counts as a linear layer, and its weight in float."""

__all__ = ["dense_weight", "is_linear", "linear_names"]

from collections.abc import Sequence
from typing import TypeGuard

from torch import Tensor, nn

from ftrt.errors import UsageError
from ftrt.quantization.int8_linear import Int8Linear
from ftrt.quantization.output_head import output_head_names


def is_linear(module: nn.Module) -> TypeGuard[nn.Linear | Int8Linear]:
    """Whether `module` is exactly an `nn.Linear`, whose subclasses may compute something else, or
    an `Int8Linear`.
    """
    return type(module) is nn.Linear or isinstance(module, Int8Linear)


def dense_weight(linear: nn.Module) -> Tensor:
    """The weight of a linear layer, (out_features, in_features), in float.

    Args:
        linear: `nn.Linear` (its own weight, no copy), `Int8Linear` (dequantized, float32), or a
            layer that wraps one as `base_layer`, as PEFT's do.

    Raises:
        UsageError: it is none of these.
    """
    layer = linear
    while isinstance(base := getattr(layer, "base_layer", None), nn.Module):
        layer = base
    if isinstance(layer, Int8Linear):
        return layer.dequantize()
    if isinstance(layer, nn.Linear):
        return layer.weight
    raise UsageError(
        "dense_weight: must be given a linear layer (nn.Linear, Int8Linear, or one that wraps it as"
        f" base_layer); got {type(linear).__name__}"
    )


def linear_names(model: nn.Module, *, exclude: Sequence[str] = ()) -> list[str]:
    """Full names of the linear layers of `model`, in its order, without the output head.

    Args:
        model: any module; a layer that stands in several places is named once.
        exclude: names, or last parts of names, of layers or modules to leave out.
    """
    left_out = output_head_names(model)
    return [
        name
        for name, module in model.named_modules()
        if is_linear(module)
        and name not in left_out
        and not any(f".{entry}." in f".{name}." for entry in exclude)
    ]
