"""The file format of LLM.int8 checkpoints: what bitsandbytes writes and transformers reads.

A linear layer `X` stands as `X.weight`, (out_features, in_features) int8 row by row ("CB");
`X.SCB`, (out_features) float32, the largest |weight| of each row; and `X.weight_format`, a uint8 0
for row-major. The weight is CB · SCB / 127, so `scale` is SCB / 127 and nothing is converted.

Source: Dettmers et al. 2022, https://arxiv.org/abs/2208.07339, section 2.1.
"""

__all__ = [
    "format_config",
    "is_llm_int8",
    "layer_bytes",
    "layer_tensors",
    "read_layer",
    "stored_layers",
]

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ftrt.errors import CheckpointError, UnsupportedError
from ftrt.quantization.affine import QMAX
from ftrt.quantization.int8_linear import Int8Linear
from ftrt.quantization.shards import Shards

ABSMAX_SUFFIX = ".SCB"
FORMAT_SUFFIX = ".weight_format"
ROW_MAJOR = 0
METHOD = "bitsandbytes"
# The activations beyond which bitsandbytes computes a column in float16, its own default.
THRESHOLD = 6.0
# What a 4-bit layer has beside its weight.
FOUR_BIT_PARTS = ("quant_state.bitsandbytes__nf4", "quant_state.bitsandbytes__fp4", "quant_map")


def is_llm_int8(config: Mapping[str, Any] | None, where: str) -> bool:
    """Whether a model's `quantization_config` says LLM.int8; False for a float model.

    Args:
        config: that section of config.json, or None.
        where: the model folder, for messages.

    Raises:
        UnsupportedError: the model is quantized in another way.
    """
    if not config:
        return False
    method = config.get("quant_method")
    if config.get("load_in_4bit"):
        kind = config.get("bnb_4bit_quant_type", "fp4")
        raise _four_bit(where, str(kind))
    if config.get("load_in_8bit") and method in (None, METHOD):
        return True
    raise UnsupportedError(
        f"{where}: the model must be float or LLM.int8; its config says quant_method"
        f" {method!r}. Start from the model before it was quantized"
    )


def stored_layers(shards: Shards) -> list[str]:
    """Names of the layers that a checkpoint holds in int8, as the files name them.

    Raises:
        UnsupportedError: a layer is 4-bit, or in a layout other than row-major.
        CheckpointError: an int8 weight has no SCB, or an SCB no int8 weight.
    """
    names = shards.names()
    for name in names:
        found = next((part for part in FOUR_BIT_PARTS if name.endswith(f".{part}")), None)
        if found is not None:
            kind = "fp4" if found.endswith("fp4") else "nf4"
            raise _four_bit(str(shards.file(name)), kind)
    layers = [n.removesuffix(".weight") for n in names if _is_int8_weight(shards, n)]
    scaled = {n.removesuffix(ABSMAX_SUFFIX) for n in names if n.endswith(ABSMAX_SUFFIX)}
    alone = [layer for layer in layers if layer not in scaled]
    if alone:
        raise CheckpointError(
            f"{shards.file(f'{alone[0]}.weight')}: an int8 weight must have its row maxima beside"
            f" it; {alone[0]}{ABSMAX_SUFFIX} is missing. Fetch the model again"
        )
    empty = sorted(scaled - set(layers))
    if empty:
        raise CheckpointError(
            f"{shards.file(empty[0] + ABSMAX_SUFFIX)}: {empty[0]}.weight must be int8; got"
            f" {_described(shards, f'{empty[0]}.weight')}"
        )
    return layers


def read_layer(shards: Shards, layer: str, scratch: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(qweight, scale) of one layer: (out_features, in_features) int8, (out_features, 1) float32.

    A row of zeros, whose SCB is 0, gets scale 1 as everywhere in ftrt. With `scratch`, (at least
    out_features · in_features) int8, qweight is a view of that.

    Raises:
        UnsupportedError: the layout is not row-major.
        CheckpointError: values that no weight gives.
    """
    file = shards.file(f"{layer}.weight")
    if f"{layer}{FORMAT_SUFFIX}" in shards:
        layout = int(shards.read(f"{layer}{FORMAT_SUFFIX}").item())
        if layout != ROW_MAJOR:
            raise UnsupportedError(
                f"{file}: {layer}{FORMAT_SUFFIX} must be {ROW_MAJOR}, row-major; got {layout}."
                " Save the model again with a newer bitsandbytes"
            )
    qweight = shards.read(f"{layer}.weight", scratch)
    absmax = shards.read(f"{layer}{ABSMAX_SUFFIX}").reshape(-1).float()
    if qweight.dim() != 2 or absmax.numel() != qweight.shape[0]:
        raise CheckpointError(
            f"{file}: {layer}{ABSMAX_SUFFIX} must have one value for each of the rows of"
            f" {layer}.weight; got {absmax.numel()} for {tuple(qweight.shape)}"
        )
    if not bool((torch.isfinite(absmax) & (absmax >= 0)).all()):
        bad = int((~(torch.isfinite(absmax) & (absmax >= 0))).sum())
        raise CheckpointError(
            f"{file}: {layer}{ABSMAX_SUFFIX} must be finite and not negative; got {bad} other"
            f" values of {absmax.numel()}. The checkpoint is damaged"
        )
    if qweight.numel() and int(qweight.min()) < -QMAX:
        raise CheckpointError(
            f"{file}: {layer}.weight must be within -{QMAX}..{QMAX}; got {int(qweight.min())}."
            " The checkpoint is damaged"
        )
    scale = (absmax / QMAX).unsqueeze(1)
    empty = scale == 0
    if bool(empty.any()):
        qweight[empty.squeeze(1)] = 0
    return qweight, torch.where(empty, torch.ones_like(scale), scale)


def layer_tensors(layer: Int8Linear) -> dict[str, Tensor]:
    """The layer's tensors under their names in this format: `weight`, `SCB`, `weight_format`, and
    `bias` where there is one.

    Reading them back gives the same `qweight` and `scale`, bit for bit.

    Raises:
        UnsupportedError: the layer has a scale for each group; the format has one for each row.
    """
    if layer.scale.shape[1] != 1:
        raise UnsupportedError(
            "LLM.int8 format: a layer must have one scale for each output feature; got"
            f" {layer.scale.shape[1]} groups of {layer.group_size}; quantize per_channel"
        )
    tensors = {
        "weight": layer.qweight.detach().cpu().contiguous(),
        "SCB": _absmax(layer.scale.detach().cpu().reshape(-1)),
        "weight_format": torch.tensor(ROW_MAJOR, dtype=torch.uint8),
    }
    if layer.bias is not None:
        tensors["bias"] = layer.bias.detach().cpu().contiguous()
    return tensors


def layer_bytes(layer: Int8Linear) -> int:
    """Size of what `layer_tensors` gives; nothing is made."""
    bias = 0 if layer.bias is None else layer.bias.nbytes
    return layer.in_features * layer.out_features + 4 * layer.out_features + 1 + bias


def format_config(float_linears: Sequence[str]) -> dict[str, Any]:
    """What config.json says of such a model under `quantization_config`.

    Args:
        float_linears: names of the `nn.Linear` layers that stay in float; a reader would otherwise
            look for their int8 weights.
    """
    return {
        "quant_method": METHOD,
        "load_in_8bit": True,
        "load_in_4bit": False,
        "llm_int8_threshold": THRESHOLD,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_skip_modules": list(float_linears),
    }


def _absmax(scale: Tensor) -> Tensor:
    """SCB with SCB / 127 == scale exactly, which the rounded product scale · 127 may miss."""
    product = scale * QMAX
    result = product.clone()
    above, below = torch.tensor(torch.inf), torch.tensor(-torch.inf)
    for candidate in (product, product.nextafter(above), product.nextafter(below)):
        result = torch.where(result / QMAX == scale, result, candidate)
    return result


def _is_int8_weight(shards: Shards, name: str) -> bool:
    return name.endswith(".weight") and shards.dtype(name) == "I8"


def _described(shards: Shards, name: str) -> str:
    return f"{shards.dtype(name)} {shards.shape(name)}" if name in shards else "none"


def _four_bit(where: str, kind: str) -> UnsupportedError:
    return UnsupportedError(
        f"{where}: the model must be float or LLM.int8; its layers are {kind}, 4 bits a weight,"
        " which ftrt does not read. Start from the model before it was quantized, or from an"
        " 8-bit one"
    )
