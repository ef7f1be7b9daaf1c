"""A teacher held in memory, run on each micro-batch beside the student."""

__all__ = ["OnlineTeacher", "register_signals"]

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

import ftrt
from ftrt import Head, PluginConfig, SignalSource, hookimpl
from ftrt.errors import UnsupportedError, UsageError

ftrt_hookspec = 1


class OnlineConfig(PluginConfig):
    """Options of the teacher `online`."""

    path: str = Field(description="A transformers model folder, an ftrt run folder, or asset:NAME.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="Dtype of the teacher's weights."
    )


class OnlineTeacher(SignalSource):
    """Runs the teacher without gradient on the micro-batch that the student sees.

    The teacher reads the student's token ids, so both need one vocabulary; a classifier's logits
    are put in the order of the student's labels.
    """

    name: ClassVar[str] = "online"
    Config: ClassVar[type[PluginConfig]] = OnlineConfig

    def __init__(self, config: OnlineConfig) -> None:
        super().__init__(config)
        self._teacher: nn.Module | None = None
        self._order: Tensor | None = None
        self._inputs: frozenset[str] = frozenset()

    def bind(self, head: Head | None, student: nn.Module) -> None:
        """Load the teacher and compare its vocabulary and labels with the student's."""
        teacher, _ = ftrt.load_model(self.config.path, head=head, dtype=self.config.dtype)
        _require_trained_head(self.config.path, teacher, head)
        _require_same_vocabulary(self.config.path, student, teacher)
        self._order = _label_order(self.config.path, student, teacher, head)
        self._inputs = frozenset(inspect.signature(_innermost(teacher).forward).parameters)
        self._teacher = teacher.eval().requires_grad_(False)

    def __call__(self, batch: Mapping[str, Any], *, hidden_states: bool) -> Mapping[str, Any]:
        """`logits`, and `hidden_states` if asked, on the device of the batch."""
        teacher = self._teacher
        if teacher is None:
            raise UsageError(f"teacher {self.config.path}: bind(head, student) must come first")
        inputs = {key: value for key, value in batch.items() if key in self._inputs}
        inputs.pop("labels", None)
        device = batch["labels"].device
        if next(teacher.parameters()).device != device:
            teacher.to(device)
        if "use_cache" in self._inputs:
            inputs["use_cache"] = False
        with torch.no_grad():
            output = teacher(**inputs, output_hidden_states=hidden_states)
        logits = output["logits"]
        if self._order is not None:
            logits = logits[..., self._order.to(device)]
        signal = {"logits": logits}
        return {**signal, "hidden_states": output["hidden_states"]} if hidden_states else signal


def _innermost(model: nn.Module) -> nn.Module:
    base: Any = getattr(model, "get_base_model", None)
    return model if base is None else _innermost(base())


def _require_trained_head(path: str, teacher: nn.Module, head: Head | None) -> None:
    """Refuse a folder whose output layer transformers had to make up.

    A PEFT teacher brings its classifier in the adapter, whatever its base was saved as.
    """
    if head is None or hasattr(teacher, "peft_config"):
        return
    config: Any = _innermost(teacher).config
    saved = (config.architectures or [None])[0]
    if saved is None:
        return
    is_classifier = saved.endswith("ForSequenceClassification")
    if saved.endswith("Model") or (head.task_type == "SEQ_CLS" and not is_classifier):
        raise UnsupportedError(
            f"teacher {path}: must be trained for the student's task; got a {saved} without an"
            f" output layer for {head.task_type}; train it first, and give its run folder"
        )


def _require_same_vocabulary(path: str, student: nn.Module, teacher: nn.Module) -> None:
    sizes = [_vocabulary_size(model) for model in (student, teacher)]
    if sizes[0] != sizes[1]:
        raise UnsupportedError(
            f"teacher {path}: must have the student's vocabulary, for it reads the same token ids;"
            f" got {sizes[1]} tokens, the student has {sizes[0]}; choose a teacher of the same"
            " tokenizer"
        )


def _vocabulary_size(model: nn.Module) -> int:
    embeddings: Any = getattr(_innermost(model), "get_input_embeddings", None)
    if embeddings is None:
        raise UnsupportedError(
            f"teacher: {type(model).__name__} must have input embeddings to compare vocabularies;"
            " got none"
        )
    return int(embeddings().num_embeddings)


def _label_order(
    path: str, student: nn.Module, teacher: nn.Module, head: Head | None
) -> Tensor | None:
    """Teacher indices in the student's order, None where the order is the same or has no names."""
    if head is None or head.task_type != "SEQ_CLS":
        return None
    ours, theirs = _labels(student), _labels(teacher)
    if ours == theirs:
        return None
    if sorted(ours) != sorted(theirs):
        raise UnsupportedError(
            f"teacher {path}: must have the student's labels; got {theirs}, the student has {ours};"
            " if they mean the same, rename them under id2label in the teacher's config.json"
        )
    return torch.tensor([theirs.index(label) for label in ours])


def _labels(model: nn.Module) -> list[str]:
    names: Mapping[int, str] = _innermost(model).config.id2label  # type: ignore[assignment,union-attr]
    return [names[index] for index in sorted(names)]


@hookimpl
def register_signals() -> list[type[SignalSource]]:
    """Offer `online`."""
    return [OnlineTeacher]
