"""Reading the base model as a recipe describes it; training and reloading share this."""

__all__ = ["check_dtype", "load_quantized", "quantize_base", "read_base"]

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ftrt.api import Head
from ftrt.errors import UnsupportedError
from ftrt.integrations import transformers as bridge
from ftrt.ops import implementation_report
from ftrt.quantization.choices import Compute
from ftrt.quantization.convert import quantize_linears
from ftrt.quantization.deferred import has_deferred, quantize_deferred
from ftrt.quantization.granularity import Granularity
from ftrt.quantization.int8_layers import compute_all, int8_layers
from ftrt.recipe import ModelSection, QuantizationSection

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What the CPU kernels take for x; the reference takes float16 and float64 as well.
KERNEL_DTYPES = {torch.float32, torch.bfloat16}


def read_base(
    section: ModelSection,
    head: Head,
    *,
    quantization: QuantizationSection | None = None,
    path: str | None = None,
    dtype: str | None = None,
) -> "PreTrainedModel":
    """The model of a recipe's `model:` section, with the head's options and the blocks it keeps.

    Args:
        section: the recipe's `model:`.
        head: says which Auto class reads it and with what options.
        quantization: what `quantize_base` will be called with once the head is attached; the linear
            weights stay on disk until then. None reads them all.
        path: where the model is, if not where the section says.
        dtype: dtype of the float weights, if not the section's.
    """
    read = bridge.load_model if quantization is None else bridge.load_deferred
    model = read(
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
    model: nn.Module, section: QuantizationSection | None, new_modules: Sequence[str]
) -> list[str]:
    """Put the base's linear layers in int8 as the recipe says, reading those still on disk one by
    one.

    Returns:
        Names of all int8 layers; without a section, of those that the checkpoint had in int8.

    Raises:
        UnsupportedError: as `check_dtype`.
    """
    if section is None:
        check_dtype(model)
        return list(int8_layers(model))
    if has_deferred(model) or int8_layers(model):
        names = quantize_deferred(
            model,
            section.granularity,
            section.skip,
            new_modules=new_modules,
            group_size=section.group_size,
        )
    else:
        names = quantize_linears(
            model, section.granularity, [*section.skip, *new_modules], group_size=section.group_size
        )
    compute_all(model, section.compute)
    check_dtype(model)
    return names


def check_dtype(model: nn.Module) -> None:
    """Refuse int8 layers whose floats are of a dtype that the CPU kernels do not take, where the
    model can run on nothing else: the first step would fail.

    Raises:
        UnsupportedError: with the dtype.
    """
    if torch.cuda.is_available() or implementation_report()["int8_linear"] == "reference":
        return
    dtypes = {layer.float_dtype for layer in int8_layers(model).values()}
    wrong = sorted(str(dtype).removeprefix("torch.") for dtype in dtypes - KERNEL_DTYPES)
    if wrong:
        raise UnsupportedError(
            "quantization: the floats of an int8 model on the CPU must be float32 or bfloat16; got"
            f" {wrong[0]}. Write model: {{dtype: bfloat16}}, or leave quantization out"
        )


def load_quantized(
    path: str,
    auto_class: str,
    granularity: Granularity | str = "per_channel",
    skip: Sequence[str] = (),
    *,
    group_size: int | None = None,
    compute: Compute = "w8a16",
    dtype: str = "float32",
    options: Mapping[str, Any] | None = None,
) -> "PreTrainedModel":
    """A transformers model with its linear layers in int8, quantized one by one as they are read.

    The same as `from_pretrained` and then `ftrt.quantize_linears`, bit for bit, but at no time is
    more in memory than the int8 model and one float tensor. LLM.int8 checkpoints, as bitsandbytes
    writes them, are read as they are. In eval mode.

    Args:
        path: a model folder with safetensors files, or `asset:NAME`.
        auto_class: name of the transformers Auto class, say "AutoModelForCausalLM".
        granularity: `PerChannel()`, `PerGroup(n)`, "per_channel", or "per_group" with group_size.
        skip: names, or last parts of names, of layers or modules to leave in float.
        group_size: input features per scale, for "per_group".
        compute: "w8a16" or "w8a8", as for `ftrt.quantize_linears`.
        dtype: dtype of the float weights.
        options: further keyword arguments of `from_pretrained` (say, `num_labels`).

    Raises:
        CheckpointError: the folder is missing, incomplete, corrupt, or not safetensors.
        UnsupportedError: the checkpoint is quantized, and not as LLM.int8.
        ConfigError: as `ftrt.quantize_linears`.
    """
    model = bridge.load_deferred(path, auto_class, dtype=dtype, options=options)
    quantize_deferred(model, granularity, skip, group_size=group_size, compute=compute)
    return model
