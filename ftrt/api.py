"""The contracts a plugin implements: methods, heads, loss terms, signal sources, data transforms.

A plugin module returns classes from its hooks (`ftrt.hookspecs`). ftrt validates the recipe's
section against the class's `Config`, builds the object with it, and drives it; nothing here is
subclassed by ftrt itself.
"""

__all__ = [
    "Encoded",
    "Head",
    "LinearAdapter",
    "LinearMethod",
    "LossTerm",
    "Method",
    "ModelMethod",
    "PeftMethod",
    "PluginConfig",
    "Setting",
    "SignalSource",
    "Transform",
]

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from ftrt.errors import PluginError, UnsupportedError
from ftrt.setting import Setting

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class PluginConfig(BaseModel):
    """Base of a plugin's `Config`: unknown keys, infinities and NaN are errors; final."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Method(ABC):
    """How a model is fine-tuned. Derive from `LinearMethod`, `PeftMethod` or `ModelMethod`.

    Attributes:
        name: what a recipe calls it, `method: {name: ...}`.
        source: the paper or document that defines it.
        Config: the options a recipe may give beside the name.
        supports_quantized_base: False refuses an int8 base before any weight is read.
        supports_gradient_checkpointing: False refuses it before any weight is read.
        mergeable: False makes `ftrt merge` and `merge_and_unload` refuse by name.
        starts_as_base: False says that an untrained adapter changes the outputs already.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    Config: ClassVar[type[PluginConfig]]
    supports_quantized_base: ClassVar[bool] = True
    supports_gradient_checkpointing: ClassVar[bool] = True
    mergeable: ClassVar[bool] = True
    starts_as_base: ClassVar[bool] = True

    def __init__(self, config: Any) -> None:
        self.config = config

    def check_setting(self, setting: Setting) -> None:
        """Refuse what does not work with this method, and name what does.

        Called when the recipe has been read, and once more, with `setting.model`, before weights
        are read.

        Raises:
            ftrt.errors.UnsupportedError: the method and the setting do not go together.
        """

    def param_groups(self, model: nn.Module) -> list[dict[str, Any]] | None:
        """Optimizer groups covering every trainable parameter, or None.

        A group is `{"params": [...], "lr": ...}`, or `{"params": [...], "lr_ratio": ...}` for a
        multiple of the run's learning rate.
        """
        return None

    def on_step(self, model: nn.Module, step: int, total_steps: int) -> None:
        """Called after optimizer step `step` (1-based) of `total_steps`, while its gradients are
        still there; rank schedules live here.
        """

    def finish(self, model: nn.Module) -> None:
        """Called once when training has ended and the best weights are in place, before saving."""

    def training_state(self, model: nn.Module) -> dict[str, Tensor]:
        """What a resumed run needs and the adapter's own files lack; saved in each checkpoint."""
        return {}

    def load_training_state(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Take back what `training_state` returned, after the adapter has been loaded."""

    def report(self, model: nn.Module) -> dict[str, Any]:
        """What `ftrt.json` says of the trained method (a rank budget, say), as JSON values."""
        return {}


class ModelMethod(Method):
    """A method that decides which of the model's own parameters train (full, partial,
    layer-wise).
    """

    @abstractmethod
    def prepare(self, model: nn.Module, new_modules: Sequence[str]) -> None:
        """Set `requires_grad` on the parameters of `model`, in place.

        Args:
            model: the model with its head.
            new_modules: names of modules the head added; they start untrained, so they must train.
        """


class LinearAdapter(nn.Module):
    """The trained part beside one frozen linear layer. It never owns the base: that is handed to
    `forward`.

    Everything in `state_dict()` is saved with the adapter. Build parameters in float32 on the
    base's device.
    """

    def forward(self, base: nn.Module, x: Tensor) -> Tensor:
        """Return the adapted output.

        Args:
            base: the frozen linear layer, float or int8; call it, do not read its weight here.
            x: (..., in_features).

        Returns:
            (..., out_features); equal to `base(x)` before the first training step.
        """
        raise PluginError(f"{type(self).__name__}: must define forward(base, x); it has none")

    def delta_weight(self) -> Tensor:
        """What merging adds to the base's weight, (out_features, in_features), float32."""
        raise UnsupportedError(
            f"{type(self).__name__}.delta_weight: merging needs the adapter's effect as a weight,"
            f" and this adapter"
            " defines none; keep it as an adapter, or set `mergeable = False` on its method"
        )


class LinearMethod(Method):
    """A method that puts one `LinearAdapter` beside each targeted linear layer.

    ftrt wraps the adapters as a real `PeftModel`: saving, reloading, several adapters at once,
    disabling and merging are PEFT's. A `Config` field `targets` (default "all-linear") chooses the
    layers.
    """

    @abstractmethod
    def adapter(self, linear: nn.Module) -> LinearAdapter:
        """Build the adapter of one layer.

        Args:
            linear: `nn.Linear` or `ftrt.nn.Int8Linear`, frozen. It has `in_features` and
                `out_features`; `ftrt.nn.dense_weight(linear)` is its (out_features, in_features)
                float weight.
        """


class PeftMethod(Method):
    """A method PEFT already has: it only says which `PeftConfig` does it."""

    @abstractmethod
    def peft_config(self, model: nn.Module) -> "PeftConfig":
        """The config for `model`. ftrt fills in task type, modules to save, and "all-linear"
        targets.
        """


@dataclass(frozen=True)
class Encoded:
    """One training example as lists of ints, ready to be padded by `Head.collate`.

    Attributes:
        features: model inputs by name; must hold `input_ids` and `labels`.
        truncated_tokens: how many tokens `max_length` cut off; 0 where nothing was lost.
    """

    features: Mapping[str, Any]
    truncated_tokens: int = 0


class Head(ABC):
    """What the model is trained to output, and how rows become batches and outputs become answers.

    Attributes:
        name: what a recipe calls it, `head: {name: ...}`.
        auto_class: the transformers Auto class that reads a model for this task.
        task_type: PEFT's task type, say "SEQ_CLS" or "CAUSAL_LM".
        columns: the columns a row may have, with what each one holds; those in `optional_columns`
            may be absent.
        answer_columns: the columns that hold what is to be predicted; rows to predict lack them,
            and two rows that differ only here count as duplicates when data is split.
        metric: the validation metric that selects the best checkpoint, a key of `metrics()` or
            "loss".
        greater_is_better: whether a larger `metric` is better.
        needs_logits: False evaluates by loss alone and never gathers logits.
    """

    name: ClassVar[str]
    Config: ClassVar[type[PluginConfig]]
    auto_class: ClassVar[str]
    task_type: ClassVar[str]
    columns: ClassVar[Mapping[str, str]]
    optional_columns: ClassVar[frozenset[str]] = frozenset()
    answer_columns: ClassVar[frozenset[str]] = frozenset({"label"})
    metric: ClassVar[str] = "loss"
    greater_is_better: ClassVar[bool] = False
    needs_logits: ClassVar[bool] = True

    def __init__(self, config: Any) -> None:
        self.config = config

    def fit(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Learn from the training rows what the head needs before the model is read (say, the label
        set).

        Raises:
            ftrt.errors.DataError: the rows cannot be used for this task.
        """

    def state(self) -> dict[str, Any]:
        """What `fit` learnt, as JSON values; saved in `ftrt.json`."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` returned."""

    def row_from_text(self, text: str) -> dict[str, Any]:
        """The row that `ftrt predict --text` means; the first of `columns` by default."""
        return {next(iter(self.columns)): text}

    def model_options(self) -> dict[str, Any]:
        """Keyword arguments of the Auto class's `from_pretrained` (say, `num_labels`)."""
        return {}

    def attach(
        self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase | None"
    ) -> "PreTrainedModel":
        """Return `model` with this head on it; raise `UnsupportedError` where the model cannot
        carry it.
        """
        return model

    def new_modules(self, model: nn.Module) -> list[str]:
        """Names of the modules this head brings that no pretraining has seen: trained and saved
        whole.
        """
        return []

    @abstractmethod
    def encode(
        self,
        row: Mapping[str, Any],
        tokenizer: "PreTrainedTokenizerBase",
        max_length: int,
        *,
        labelled: bool = True,
    ) -> Encoded:
        """Turn one row into token ids; with `labelled=False` the row may lack its answer and gets
        no labels.

        Raises:
            ftrt.errors.DataError: the row's values do not fit (a label never seen in training,
                say).
        """

    @abstractmethod
    def collate(
        self, features: Sequence[Mapping[str, Any]], tokenizer: "PreTrainedTokenizerBase"
    ) -> dict[str, Tensor]:
        """Pad encoded rows to the longest of the batch: `input_ids`, `attention_mask` (batch,
        tokens), `labels`.
        """

    def metrics(self, logits: Any, labels: Any) -> dict[str, float]:
        """Metrics over a whole split from numpy logits and labels; called only where
        `needs_logits`.
        """
        return {}

    @abstractmethod
    def predict(
        self,
        model: nn.Module,
        tokenizer: "PreTrainedTokenizerBase",
        rows: Sequence[Mapping[str, Any]],
        *,
        max_length: int,
    ) -> list[dict[str, Any]]:
        """Answers for `rows`, one JSON-able dict each, in order; `model` is in eval mode."""


class LossTerm(ABC):
    """A term added to the student's own loss while training: weight(step) * total / count.

    Attributes:
        name: what a recipe calls it, `losses: [{name: ...}]`.
        source: the paper that defines it.
        needs_signal: whether `signal` is a teacher's output (the recipe's `teacher:` is then
            required).
        needs_hidden_states: asks the student, and the teacher, for hidden states.
        needs_logits: whether the student's logits are read; False lets a language model compute its
            own loss without making them.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    Config: ClassVar[type[PluginConfig]]
    needs_signal: ClassVar[bool] = False
    needs_hidden_states: ClassVar[bool] = False
    needs_logits: ClassVar[bool] = True

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def __call__(
        self, student: Mapping[str, Any], signal: Mapping[str, Any] | None, batch: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor | int]:
        """Return (total, count): the sum over items and how many items were summed.

        The sum and the count are kept apart so that gradient accumulation divides by the items of
        the whole batch and keeps the same objective. Items are what the labels mark: examples, or
            tokens whose label is
        not -100 after the shift.

        Args:
            student: the student's outputs by name, `logits` among them if `needs_logits`.
            signal: the teacher's outputs by name, without gradient; None unless `needs_signal`.
            batch: the model inputs, `labels` among them.
        """


class SignalSource(ABC):
    """Where a teacher's outputs come from: a model in memory, or stored outputs.

    Attributes:
        name: what a recipe calls it, `teacher: {name: ...}`.
    """

    name: ClassVar[str]
    Config: ClassVar[type[PluginConfig]]

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def bind(self, head: Head | None, student: nn.Module) -> None:
        """Make ready for this run; refuse a teacher whose outputs do not fit the student's.

        Raises:
            ftrt.errors.UnsupportedError: labels or vocabularies differ.
        """

    @abstractmethod
    def __call__(self, batch: Mapping[str, Any], *, hidden_states: bool) -> Mapping[str, Any]:
        """The teacher's outputs for one micro-batch, without gradient: `logits`, `hidden_states` if
        asked.
        """


class Transform(ABC):
    """A change to rows between reading and splitting, `data: {transforms: [{name: ...}]}`."""

    name: ClassVar[str]
    Config: ClassVar[type[PluginConfig]]

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def __call__(self, row: dict[str, Any]) -> dict[str, Any] | None:
        """Return the changed row, or None to drop it. Same row in, same row out: no hidden
        state.
        """


def count_trainable(model: nn.Module) -> tuple[int, int]:
    """(trainable, all) parameter counts; an int8 layer counts one parameter a quantized value."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    quantized = sum(b.numel() for b in model.buffers() if b.dtype == torch.int8)
    return trainable, trainable + frozen + quantized
