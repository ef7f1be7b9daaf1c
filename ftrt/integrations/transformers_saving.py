"""Writing a model with int8 layers as an LLM.int8 checkpoint: a transformers folder that
bitsandbytes, and `ftrt.load_model`, read.
"""

__all__ = ["save_llm_int8"]

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from ftrt.quantization.int8_linear import Int8Linear
from ftrt.quantization.llm_int8 import format_config, layer_bytes, layer_tensors
from ftrt.quantization.shards import INDEX_FILE, WEIGHTS_FILE

# A file this large is put together in memory before it is written.
SHARD_BYTES = 1 << 30


@dataclass(frozen=True)
class _Part:
    """Tensors that are made when their file is written: a module's own, with their full names."""

    size_bytes: int
    make: Callable[[], dict[str, Tensor]]


def save_llm_int8(model: PreTrainedModel, folder: Path, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Write config and weights; int8 layers in LLM.int8's form, all else as it is.

    One file at a time is put together, so memory grows by `shard_bytes` or the largest layer.

    Args:
        model: without adapters; its int8 layers have one scale for each output feature.
        folder: exists.
        shard_bytes: size of one file of weights, at most, unless one layer alone is larger.

    Raises:
        UnsupportedError: a layer has scales for groups.
        OSError, safetensors.SafetensorError: the disk refuses.
    """
    files = _grouped(list(_parts(model)), shard_bytes)
    places: dict[str, str] = {}
    for number, parts in enumerate(files, start=1):
        name = WEIGHTS_FILE
        if len(files) > 1:
            name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        tensors = {key: tensor for part in parts for key, tensor in part.make().items()}
        save_file(tensors, folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, name)
    if len(files) > 1:
        total = sum(part.size_bytes for parts in files for part in parts)
        tree = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / INDEX_FILE).write_text(json.dumps(tree, indent=2), encoding="utf-8")
    _save_config(model, folder)


def _save_config(model: PreTrainedModel, folder: Path) -> None:
    config: Any = copy.deepcopy(model.config)
    floats = [name for name, module in model.named_modules() if type(module) is nn.Linear]
    config.quantization_config = format_config(floats)
    config.architectures = [type(model).__name__]
    config.dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


def _grouped(parts: list[_Part], limit: int) -> list[list[_Part]]:
    groups: list[list[_Part]] = [[]]
    size = 0
    for part in parts:
        if groups[-1] and size + part.size_bytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(part)
        size += part.size_bytes
    return groups


def _parts(model: PreTrainedModel) -> Iterator[_Part]:
    tied: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    seen: set[int] = set()
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        if isinstance(module, Int8Linear):
            yield _Part(layer_bytes(module), _layer_maker(prefix, module))
            continue
        own = {**module._parameters, **module._buffers}
        for leaf, tensor in own.items():
            name = prefix + leaf
            is_kept = tensor is not None and leaf not in module._non_persistent_buffers_set
            if tensor is None or not is_kept or id(tensor) in seen or _is_tied(model, tied, name):
                continue
            seen.add(id(tensor))
            yield _Part(tensor.nbytes, _tensor_maker(name, tensor))


def _layer_maker(prefix: str, layer: Int8Linear) -> Callable[[], dict[str, Tensor]]:
    return lambda: {prefix + key: tensor for key, tensor in layer_tensors(layer).items()}


def _tensor_maker(name: str, tensor: Tensor) -> Callable[[], dict[str, Tensor]]:
    # a view of another tensor would be refused as shared memory
    return lambda: {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)}


def _is_tied(model: nn.Module, tied: dict[str, str], name: str) -> bool:
    source = tied.get(name)
    return source is not None and model.get_parameter(source) is model.get_parameter(name)
