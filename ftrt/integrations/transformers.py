"""Reading and writing models and tokenizers with transformers."""

__all__ = [
    "FLOAT_DTYPES",
    "check_length",
    "first_line",
    "float_dtype",
    "keep_layers",
    "load_deferred",
    "load_model",
    "load_tokenizer",
    "model_folder",
    "quiet",
    "read_config",
    "save",
    "set_seed",
]

import contextlib
import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from ftrt.data.assets import ASSETS, asset_name, converted_dir, is_asset, resolve
from ftrt.data.cache import build_once
from ftrt.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    FtrtError,
    UnsupportedError,
    suggest,
)
from ftrt.integrations import transformers_loading
from ftrt.quantization.deferred import materialize

# What the weights of a model may be in, apart from int8.
FLOAT_DTYPES = ("float32", "bfloat16", "float16")

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' load reports and progress bars; what matters is raised as an error."""
    verbosity = transformers_logging.get_verbosity()
    had_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings():
            # deprecations inside transformers and peft are theirs to mend, not the user's
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if had_bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def float_dtype(name: str) -> torch.dtype:
    """The torch dtype of that name, one of `FLOAT_DTYPES`.

    Raises:
        ConfigError: none of them.
    """
    if name not in FLOAT_DTYPES:
        raise ConfigError(f"dtype: must be one of {', '.join(FLOAT_DTYPES)}; got {name!r}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def load_model(
    path: str,
    auto_class: str,
    *,
    dtype: str = "float32",
    options: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
) -> PreTrainedModel:
    """Read a pretrained model; the layers that an LLM.int8 checkpoint has in int8 become
    `Int8Linear`.

    Args:
        path: a model folder or `asset:NAME`; never a hub name, nothing is downloaded from a hub.
        auto_class: name of the transformers Auto class, say "AutoModelForCausalLM".
        dtype: dtype of the float weights.
        options: further keyword arguments of `from_pretrained` (say, `num_labels`).
        config: values of the model's config to change (say, `attention_probs_dropout_prob`).

    Raises:
        ConfigError: `config` names a key that the model's config does not have; or there is no such
            dtype or Auto class.
        CheckpointError: the folder is missing, incomplete or corrupt, or holds a model of another
            task.
        UnsupportedError: the checkpoint is quantized, and not as LLM.int8.
    """
    weights, folder = float_dtype(dtype), _checked_folder(path)
    _check_auto_class(auto_class)
    settings = {**_fresh_options(folder, options or {}), **_config_changes(folder, config or {})}
    with _reading(folder, auto_class):
        if transformers_loading.is_quantized(folder):
            model = transformers_loading.load_deferred(
                folder, auto_class, dtype=weights, settings=settings
            )
            materialize(model)
        else:
            model = getattr(transformers, auto_class).from_pretrained(
                folder, dtype=weights, local_files_only=True, **settings
            )
    return model


def load_deferred(
    path: str,
    auto_class: str,
    *,
    dtype: str = "float32",
    options: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
) -> PreTrainedModel:
    """Read a pretrained model as `load_model` does, but leave its linear weights on disk until
    `ftrt.quantization.deferred` says what becomes of them. The arguments are `load_model`'s.

    Raises:
        CheckpointError: as `load_model`; also where the weights are not safetensors.
    """
    weights, folder = float_dtype(dtype), _checked_folder(path)
    _check_auto_class(auto_class)
    settings = {**_fresh_options(folder, options or {}), **_config_changes(folder, config or {})}
    with _reading(folder, auto_class):
        return transformers_loading.load_deferred(
            folder, auto_class, dtype=weights, settings=settings
        )


def _check_auto_class(name: str) -> None:
    if not hasattr(transformers, name):
        known = [known for known in dir(transformers) if known.startswith("AutoModel")]
        raise ConfigError(
            "auto_class: must be the name of a transformers Auto class, say AutoModelForCausalLM;"
            f" got {name!r}{suggest(name, known)}"
        )


def read_config(path: str) -> dict[str, Any]:
    """What the `config.json` of a model folder or asset says; its weights are not read.

    Empty where it is no JSON object: whoever reads the model next says what is wrong with it.

    Raises:
        CheckpointError: there is no such folder or file.
    """
    file = _checked_folder(path) / "config.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _checked_folder(path: str) -> Path:
    folder = model_folder(path)
    if not (folder / "config.json").is_file():
        raise CheckpointError(_not_a_model(folder))
    return folder


@contextlib.contextmanager
def _reading(folder: Path, auto_class: str) -> Iterator[None]:
    """Turn whatever a broken folder raises into a `CheckpointError` that names it."""
    try:
        with quiet():
            yield
    except FtrtError:
        raise
    # transformers, safetensors and tokenizers each raise their own types for a broken folder
    except Exception as error:
        if isinstance(error, MemoryError):
            raise
        raise CheckpointError(
            f"{folder}: must be a model that {auto_class} reads; {type(error).__name__}:"
            f" {first_line(error)}"
        ) from error


def _fresh_options(folder: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` without the label names where the model was trained on the same labels.

    Its outputs stand in the order of its own names; other names would swap what they mean.
    """
    labels = options.get("label2id")
    if labels is None:
        return dict(options)
    with quiet():
        trained = transformers.AutoConfig.from_pretrained(folder, local_files_only=True).label2id
    if set(trained or ()) != set(labels):
        return dict(options)
    return {k: v for k, v in options.items() if k not in ("num_labels", "id2label", "label2id")}


def _config_changes(folder: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    if not changes:
        return {}
    with quiet():
        known = transformers.AutoConfig.from_pretrained(folder, local_files_only=True).to_dict()
    for key in changes:
        if key not in known:
            raise ConfigError(
                f"model.config: {key!r} must be a key of the model's config{suggest(key, known)}"
            )
    return dict(changes)


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Read the tokenizer of a model folder or asset.

    Raises:
        CheckpointError: there is none, or it is corrupt.
    """
    folder = model_folder(path)
    try:
        with quiet():
            tokenizer: PreTrainedTokenizerBase = transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=True
            )
    except Exception as error:
        raise CheckpointError(
            f"{folder}: must hold a tokenizer; {type(error).__name__}: {first_line(error)}"
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def model_folder(path: str) -> Path:
    """The local folder of a model path or asset, converted from GGUF where the asset ships that.

    Raises:
        CheckpointError: no such folder.
        DataError: the asset cannot be fetched.
    """
    if is_asset(path):
        asset = ASSETS.get(asset_name(path))
        if asset is not None and asset.kind == "gguf":
            return _converted(path)
        return resolve(path)
    folder = Path(path).expanduser()
    if folder.is_file():
        raise CheckpointError(
            f"{path}: model path must be a folder or asset:NAME; a file stands there"
        )
    if not folder.is_dir():
        names = [entry.name for entry in folder.parent.iterdir()] if folder.parent.is_dir() else []
        near = suggest(folder.name, names) if names else ""
        raise CheckpointError(
            f"{path}: model path must be a folder or asset:NAME (nothing is fetched from a hub);"
            f" it does not exist"
            f"{near if 'did you mean' in near else ''}"
        )
    return folder


def _not_a_model(folder: Path) -> str:
    if (folder / "adapter_config.json").is_file():
        return (
            f"{folder}: model path must hold a whole model; it holds an adapter;"
            f" `ftrt merge {folder} OUT` makes a model of it"
        )
    return f"{folder}: a model folder must hold config.json; it does not"


def _converted(path: str) -> Path:
    """Turn a GGUF asset into an ordinary model folder, once."""
    source = resolve(path)
    target = converted_dir(asset_name(path))

    def fill(folder: Path) -> None:
        logger.info("converting %s to a model folder, once (about a minute)", path)
        _convert_gguf(source, folder)

    build_once(target, fill, is_complete=lambda folder: (folder / "config.json").is_file())
    return target


def _convert_gguf(source: Path, folder: Path) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise DataError(
            f"{source.name}: reading GGUF needs the package gguf; pip install 'ftrt[gguf]'"
        )
    with quiet():
        tokenizer = transformers.AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            source.parent,
            gguf_file=source.name,
            dtype=torch.float32,
            # without this the config keeps quant_method: gguf and cannot be saved
            quantization_config=transformers.GgufConfig(dequantize=True),
        )
        tokenizer.save_pretrained(folder)
        model.bfloat16().save_pretrained(folder)


def keep_layers(model: PreTrainedModel, layers: Sequence[int]) -> None:
    """Keep only these transformer blocks of `model`, in this order, in place (a shallower student).

    Raises:
        ConfigError: an index is out of range.
        UnsupportedError: the model has no single list of blocks.
    """
    count = model.config.num_hidden_layers
    stacks = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == count
    ]
    if len(stacks) != 1:
        raise UnsupportedError(
            f"model.layers: needs a model with one list of {count} blocks; {type(model).__name__}"
            f" has {len(stacks)}"
        )
    bad = [index for index in layers if not 0 <= index < count]
    if bad or not layers:
        raise ConfigError(f"model.layers: must name blocks 0..{count - 1}; got {list(layers)}")
    parent, name = stacks[0]
    blocks = getattr(parent, name)
    setattr(parent, name, nn.ModuleList([blocks[index] for index in layers]))
    for position, index in enumerate(layers):
        for module in blocks[index].modules():
            # the key-value cache addresses blocks by position
            if getattr(module, "layer_idx", None) == index:
                module.layer_idx = position
    model.config.num_hidden_layers = len(layers)


def first_line(error: BaseException) -> str:
    """The first non-empty line of an error of another library."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else "no further word"


def set_seed(seed: int) -> None:
    """Seed Python, numpy and torch, so that a fresh head starts the same way each time."""
    transformers.set_seed(seed)


def check_length(model: PreTrainedModel, max_length: int) -> None:
    """Refuse sequences longer than the model has positions for.

    Raises:
        ConfigError: with both numbers.
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    if isinstance(positions, int) and max_length > positions:
        raise ConfigError(
            f"data.max_length: must be at most the {positions} positions of"
            f" {model.config.model_type}; got {max_length}"
        )


def save(model: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write adapter files (for a `PeftModel`) or a whole model, and the tokenizer."""
    with quiet():
        model.save_pretrained(folder)  # type: ignore[operator]
        tokenizer.save_pretrained(folder)
