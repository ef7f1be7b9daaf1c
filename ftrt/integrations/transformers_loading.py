"""Reading a transformers model without its linear weights, which stay on disk for the time being.

`from_pretrained` does all it does otherwise (renames, prefixes, tied weights, fresh modules,
buffers that no file holds), on the meta device, with a quantizer of ftrt's that is asked what
becomes of each tensor: it reads what stays in float and leaves linear weights where they are
(`ftrt.quantization.deferred`).
"""

__all__ = ["is_quantized", "load_deferred"]

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, cast

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import (
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ftrt.errors import CheckpointError, FtrtError
from ftrt.quantization.deferred import FloatSource, Int8Source, WeightSource, defer
from ftrt.quantization.llm_int8 import is_llm_int8, stored_layers
from ftrt.quantization.output_head import output_head_names
from ftrt.quantization.shards import Shards

# ftrt's key in transformers' tables of quantizers.
QUANTIZER = "ftrt_deferred"
# So many tensors are named in a message or a log line.
SHOWN = 4

logger = logging.getLogger(__name__)


def is_quantized(folder: Path) -> bool:
    """Whether the model's config.json says that its weights are quantized."""
    try:
        tree = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # whoever reads the config next says what is wrong with it
        return False
    parts = [tree, tree.get("text_config")] if isinstance(tree, dict) else []
    return any(isinstance(part, dict) and part.get("quantization_config") for part in parts)


def load_deferred(
    folder: Path, auto_class: str, *, dtype: torch.dtype, settings: Mapping[str, Any]
) -> PreTrainedModel:
    """The model of a folder with its linear weights deferred; in eval mode.

    Deferred are the weights of plain `nn.Linear` layers, except the output head's and shared ones,
    and all that the checkpoint has in int8. Where transformers splits or joins tensors to make a
    weight, that weight is read at once.

    Args:
        folder: the model folder.
        auto_class: name of the transformers Auto class.
        dtype: of the float weights.
        settings: further keyword arguments of `from_pretrained`.

    Raises:
        CheckpointError: files are missing or corrupt, or tensors do not fit the model.
        UnsupportedError: the checkpoint is quantized, and not as LLM.int8.
        Exception: whatever transformers raises for a config it cannot use.
    """
    _register()
    config, rest = transformers.AutoConfig.from_pretrained(
        folder, local_files_only=True, return_unused_kwargs=True, **settings
    )
    is_int8 = is_llm_int8(_quantization_of(config), str(folder))
    _forget_quantization(config)
    shards = Shards(folder)
    stored = stored_layers(shards)
    if is_int8 and not stored:
        raise CheckpointError(
            f"{folder}: config.json says load_in_8bit, and its files must hold int8 weights; they"
            " hold none"
        )
    skeleton = _skeleton(auto_class, config)
    session = _Session(shards, dtype, _deferrable(skeleton), set(stored))
    options = {**rest, "generation_config": _generation_config(folder)}
    kind: Any = type(skeleton)
    try:
        model, report = kind.from_pretrained(
            None,
            config=skeleton.config,
            state_dict=session.entries(),
            dtype=dtype,
            quantization_config=_DeferredConfig(session),
            local_files_only=True,
            output_loading_info=True,
            **{key: value for key, value in options.items() if value is not None},
        )
    except Exception:
        # transformers gathers what its converters raise and reports only that there was something
        if session.fault is not None:
            raise session.fault from None
        raise
    if session.fault is not None:
        raise session.fault
    session.check(folder, model, report)
    # as the file path of from_pretrained leaves them
    model.config.name_or_path = model.name_or_path = str(folder)
    model._is_hf_initialized = True
    return cast(PreTrainedModel, model)


class _Lazy:
    """A tensor of a file, in the place of the slices that transformers reads from; it casts itself
    when it is read. A converter of transformers that computes with it reads it.
    """

    def __init__(self, shards: Shards, name: str, dtype: torch.dtype | None = None) -> None:
        self.shards, self.name, self.target = shards, name, dtype

    def __getitem__(self, index: object) -> Self:
        return self

    def to(self, device: object = None, dtype: torch.dtype | None = None) -> "_Lazy":
        """The same, to be cast to `dtype`; the device is always the CPU."""
        return _Lazy(self.shards, self.name, dtype)

    def read(self) -> Tensor:
        """The tensor itself."""
        tensor = self.shards.read(self.name)
        is_cast = self.target is not None and tensor.is_floating_point()
        return tensor.to(self.target) if is_cast else tensor

    def __getattr__(self, name: str) -> Any:
        return getattr(self.read(), name)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Read whatever is lazy among the arguments, then compute."""
        return function(*_read_all(args), **_read_all(kwargs or {}))


def _read_all(value: Any) -> Any:
    if isinstance(value, _Lazy):
        return value.read()
    if isinstance(value, (list, tuple)):
        return type(value)(_read_all(item) for item in value)
    if isinstance(value, dict):
        return {key: _read_all(item) for key, item in value.items()}
    return value


class _Session:
    """One reading of one checkpoint: what to defer, and what was found on the way."""

    def __init__(
        self, shards: Shards, dtype: torch.dtype, deferrable: set[str], stored: set[str]
    ) -> None:
        self.shards = shards
        self.dtype = dtype
        self.deferrable = deferrable
        self.stored = stored
        self.fault: FtrtError | None = None
        self.mismatched: list[str] = []
        self.loaded = 0

    def __deepcopy__(self, memo: object) -> Self:
        # transformers copies configs; the open files and the findings are one
        return self

    def entries(self) -> dict[str, Any]:
        """What `from_pretrained` takes for the state dict: every tensor, unread."""
        hidden = {f"{layer}{end}" for layer in self.stored for end in (".SCB", ".weight_format")}
        return {n: _Lazy(self.shards, n) for n in self.shards.names() if n not in hidden}

    def place(self, model: nn.Module, name: str, value: Any, missing: Any) -> dict[str, Tensor]:
        """Decide about one tensor: {name: tensor} to put into the model, or {} if it is deferred
        or has the wrong shape.
        """
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        reference = getattr(module, leaf)
        if not isinstance(value, _Lazy):
            return self._fitting(name, value, reference)
        source = self._source(module, name, value, reference)
        if source is None:
            return self._fitting(name, value.read(), reference)
        shape = self._file_shape(source)
        # a Conv1D holds the transposed weight
        expected = tuple(reference.shape)[:: -1 if isinstance(module, Conv1D) else 1]
        if shape != expected:
            return self._mismatch(name, shape, expected)
        reference._is_hf_initialized = True
        defer(module, source)
        self.loaded += 1
        if missing is not None:
            missing.discard(name)
        return {}

    def check(self, folder: Path, model: nn.Module, report: Mapping[str, Any]) -> None:
        """Raise for tensors that do not fit; log those that are missing or left over."""
        if self.mismatched:
            raise CheckpointError(
                f"{folder}: every tensor must have the model's shape;"
                f" {'; '.join(self.mismatched[:SHOWN])}"
                + (
                    f" and {len(self.mismatched) - SHOWN} more"
                    if len(self.mismatched) > SHOWN
                    else ""
                )
            )
        if not self.loaded:
            raise CheckpointError(
                f"{folder}: its files must hold the weights of {type(model).__name__}; none of"
                f" their {len(self.shards.names())} tensors has a place in it"
            )
        self._log(folder, model, report)

    def _log(self, folder: Path, model: Any, report: Mapping[str, Any]) -> None:
        """Say what is missing or left over; of the head, where that is expected, in a whisper."""
        prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
        for key, text in (
            ("missing_keys", "start untrained, since the checkpoint lacks them"),
            ("unexpected_keys", "of the checkpoint have no place in the model"),
        ):
            names = sorted(report.get(key) or ())
            for level, is_backbone in ((logging.INFO, True), (logging.DEBUG, False)):
                some = [name for name in names if name.startswith(prefix) == is_backbone]
                if some:
                    more = f" and {len(some) - SHOWN} more" if len(some) > SHOWN else ""
                    logger.log(level, "%s: %s%s %s", folder, ", ".join(some[:SHOWN]), more, text)

    def _source(
        self, module: nn.Module, name: str, value: _Lazy, reference: Tensor
    ) -> WeightSource | None:
        dtype = self._dtype(value.target, reference)
        layer = value.name.removesuffix(".weight")
        if layer in self.stored:
            if type(module) is not nn.Linear and not isinstance(module, Conv1D):
                raise CheckpointError(
                    f"{value.shards.file(value.name)}: {value.name} is int8 and must belong to a"
                    f" linear layer; {name} is part of {type(module).__name__}"
                )
            return Int8Source(self.shards, layer, dtype)
        if type(module) is nn.Linear and name in self.deferrable:
            return FloatSource(self.shards, value.name, dtype)
        return None

    def _dtype(self, wanted: torch.dtype | None, reference: Tensor) -> torch.dtype:
        # transformers asks for the model's dtype unless a layer is to be kept in another one; a
        # parameter that its own module made in another dtype keeps that
        if wanted is None or wanted == self.dtype:
            return reference.dtype if reference.is_floating_point() else self.dtype
        return wanted

    def _fitting(self, name: str, tensor: Tensor, reference: Tensor) -> dict[str, Tensor]:
        if tensor.shape != reference.shape:
            return self._mismatch(name, tuple(tensor.shape), tuple(reference.shape))
        self.loaded += 1
        if tensor.is_floating_point() and reference.is_floating_point():
            tensor = tensor.to(self._dtype(tensor.dtype, reference))
        elif not reference.is_floating_point():
            tensor = tensor.to(reference.dtype)
        return {name: tensor}

    def _mismatch(
        self, name: str, shape: tuple[int, ...], expected: tuple[int, ...]
    ) -> dict[str, Tensor]:
        self.mismatched.append(f"{name} is {shape} in the file, {expected} in the model")
        return {}

    def _file_shape(self, source: WeightSource) -> tuple[int, ...]:
        name = source.name if isinstance(source, FloatSource) else f"{source.layer}.weight"
        return self.shards.shape(name)


class _DeferOperation(ConversionOps):
    """The last step of transformers for each tensor: put it into the model, or leave it on disk."""

    def __init__(self, session: _Session) -> None:
        self.session = session

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str] | None = None,
        target_patterns: list[str] | None = None,
        model: Any = None,
        missing_keys: Any = None,
        **context: Any,
    ) -> dict[str, Any]:
        """{parameter name: tensor} of what is to be put into the model."""
        placed: dict[str, Any] = {}
        for name, values in input_dict.items():
            if self.session.fault is not None:
                return {}
            value = values[0] if isinstance(values, list) else values
            try:
                placed |= self.session.place(model, name, value, missing_keys)
            except FtrtError as error:
                self.session.fault = error
        return placed


class _DeferredConfig(QuantizationConfigMixin):
    """Carries the session through `from_pretrained`; leaves no trace on the model."""

    def __init__(self, session: _Session) -> None:
        self.quant_method = QUANTIZER  # type: ignore[assignment]
        self.session = session


class _DeferringQuantizer(HfQuantizer):
    """What transformers asks about each tensor while it reads."""

    quantization_config: _DeferredConfig

    def param_needs_quantization(
        self, model: PreTrainedModel, param_name: str, **context: Any
    ) -> bool:
        return True

    def get_quantize_ops(self) -> ConversionOps:
        return _DeferOperation(self.quantization_config.session)

    def _process_model_after_weight_loading(
        self, model: PreTrainedModel, **context: Any
    ) -> PreTrainedModel:
        for module in model.modules():
            for name in ("hf_quantizer", "is_quantized", "quantization_method"):
                module.__dict__.pop(name, None)
            if isinstance(module, PreTrainedModel):
                _forget_quantization(module.config)
        return model

    def is_serializable(self) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return True


def _register() -> None:
    if QUANTIZER not in AUTO_QUANTIZER_MAPPING:
        register_quantizer(QUANTIZER)(_DeferringQuantizer)
        register_quantization_config(QUANTIZER)(_DeferredConfig)


def _skeleton(auto_class: str, config: Any) -> PreTrainedModel:
    # initialising on the meta device must not move the generator that fresh modules draw from
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model: PreTrainedModel = getattr(transformers, auto_class).from_config(config)
    return model


def _deferrable(skeleton: nn.Module) -> set[str]:
    heads = output_head_names(skeleton)
    uses: dict[int, int] = {}
    for module in skeleton.modules():
        for parameter in module._parameters.values():
            uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    return {
        f"{name}.weight"
        for name, module in skeleton.named_modules()
        if type(module) is nn.Linear and name not in heads and uses[id(module.weight)] == 1
    }


def _quantization_of(config: Any) -> dict[str, Any] | None:
    found = getattr(config, "quantization_config", None)
    if found is None:
        found = getattr(config.get_text_config(decoder=True), "quantization_config", None)
    return (
        found if found is None or isinstance(found, dict) else cast(dict[str, Any], found.to_dict())
    )


def _forget_quantization(config: Any) -> None:
    for part in (config, config.get_text_config(decoder=True)):
        for name in ("quantization_config", "_is_quantized"):
            part.__dict__.pop(name, None)


def _generation_config(folder: Path) -> Any:
    if not (folder / "generation_config.json").is_file():
        return None
    return transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)
