"""Putting a classification head on a model, and finding it there."""

__all__ = ["classification_modules", "matched_order", "with_classifier"]

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ftrt.errors import UnsupportedError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WHERE = "head 'sequence_classification'"


def with_classifier(model: "PreTrainedModel", labels: Sequence[str]) -> "PreTrainedModel":
    """`model` if it classifies sequences, else a classifier around the same backbone object.

    Only the classifier's own modules are built; the backbone's weights are neither copied nor
    changed. They are initialised as the model's architecture prescribes.

    Raises:
        UnsupportedError: the model has another head, or its architecture has no classifier.
    """
    if type(model).__name__.endswith("ForSequenceClassification"):
        return model
    if model.base_model is not model:
        raise UnsupportedError(
            f"{WHERE}: the model must classify sequences or be a bare backbone; got"
            f" {type(model).__name__}; read it with AutoModelForSequenceClassification"
        )
    return _around(model, labels)


def _around(backbone: "PreTrainedModel", labels: Sequence[str]) -> "PreTrainedModel":
    import transformers

    auto_class: Any = transformers.AutoModelForSequenceClassification
    config = copy.deepcopy(backbone.config)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    try:
        with torch.device("meta"):
            model: PreTrainedModel = auto_class.from_config(config, dtype=backbone.dtype)
    except ValueError as error:
        raise UnsupportedError(
            f"{WHERE}: transformers must have a classifier for {config.model_type!r}; it has none"
        ) from error
    built = getattr(model, model.base_model_prefix)
    if type(built) is not type(backbone):
        raise UnsupportedError(
            f"{WHERE}: {type(model).__name__} is built on {type(built).__name__}; got a"
            f" {type(backbone).__name__}; read it with AutoModelForSequenceClassification"
        )
    setattr(model, model.base_model_prefix, backbone)
    for name in classification_modules(model):
        fresh = model.get_submodule(name).to_empty(device=backbone.device)
        for module in fresh.modules():
            model._init_weights(module)  # type: ignore[no-untyped-call]
    model.train(backbone.training)
    return model


def classification_modules(model: nn.Module) -> list[str]:
    """Names of the children with parameters beside the backbone ("classifier", "score")."""
    base: Any = getattr(model, "get_base_model", None)
    inner: Any = model if base is None else base()
    return [
        name
        for name, child in inner.named_children()
        if name != inner.base_model_prefix and any(True for _ in child.parameters())
    ]


def matched_order(model: "PreTrainedModel", labels: Sequence[str] | None) -> list[str]:
    """The labels in the order of the model's logits; the model is given the names if it has none.

    A model that was trained on the same labels in another order keeps its own.

    Raises:
        UnsupportedError: the model has another number of labels, or other names for them.
    """
    config = model.config
    names: Any = config.id2label
    theirs = [str(names[index]) for index in sorted(names)]
    is_unnamed = theirs == [f"LABEL_{index}" for index in range(len(theirs))]
    if labels is None or sorted(labels) == sorted(theirs):
        return theirs
    if len(labels) != len(theirs):
        raise UnsupportedError(
            f"{WHERE}: the model must have one output for each label; got {len(theirs)} outputs"
            f" {theirs[:10]} for {len(labels)} labels {list(labels)[:10]}"
        )
    if not is_unnamed:
        raise UnsupportedError(
            f"{WHERE}: the model must have the labels of the training rows; got {theirs[:10]} for"
            f" {list(labels)[:10]}; list the model's names under head.labels, or start from a model"
            " without a classifier"
        )
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    return list(labels)
