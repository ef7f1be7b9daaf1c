"""Reading the base model as a recipe describes it; training and reloading share this."""

__all__ = ["quantize_base", "read_base"]

from typing import TYPE_CHECKING

from torch import nn

from ftrt.api import Head
from ftrt.integrations import transformers as bridge
from ftrt.quantization.convert import quantize_linears
from ftrt.recipe import ModelSection, QuantizationSection

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def read_base(
    section: ModelSection, head: Head, *, path: str | None = None, dtype: str | None = None
) -> "PreTrainedModel":
    """The model of a recipe's `model:` section, with the head's options and the blocks it keeps.

    Args:
        section: the recipe's `model:`.
        head: says which Auto class reads it and with what options.
        path: where the model is, if not where the section says.
        dtype: dtype of the float weights, if not the section's.
    """
    model = bridge.load_model(
        path or section.path,
        head.auto_class,
        dtype=dtype or section.dtype,
        options=head.model_options(),
        config=section.config,
    )
    if section.layers is not None:
        bridge.keep_layers(model, section.layers)
    return model


def quantize_base(
    model: nn.Module, section: QuantizationSection | None, new_modules: list[str]
) -> list[str]:
    """Put the base's linear layers in int8 as the recipe says; names of the layers, none without a
    section.
    """
    if section is None:
        return []
    return quantize_linears(
        model, section.granularity, [*section.skip, *new_modules], group_size=section.group_size
    )
