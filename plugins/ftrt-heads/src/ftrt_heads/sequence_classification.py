"""One label for a text, or for a pair of texts."""

__all__ = ["SequenceClassification", "register_heads"]

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from ftrt import Encoded, Head, PluginConfig, hookimpl
from ftrt.errors import DataError, UnsupportedError, UsageError, suggest
from ftrt_heads.classifier import classification_modules, matched_order, with_classifier
from ftrt_heads.labels import label_name, learn_labels
from ftrt_heads.scores import classification_scores
from ftrt_heads.tokens import encode_rows, pad_token_id, require_vocabulary, text_of
from ftrt_heads.truncation import encode_texts

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ftrt_hookspec = 1

_ROWS_PER_BATCH = 32


class SequenceClassificationConfig(PluginConfig):
    """Options of `sequence_classification`."""

    labels: list[str] | None = Field(
        None, description="The classes in the order of the logits; learnt from the rows if absent."
    )
    truncation: Literal["head", "head_tail"] = Field(
        "head", description="Which tokens of a long text stay: the first, or the first and last."
    )

    @field_validator("labels", mode="before")
    @classmethod
    def _name_labels(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        names = [label_name(label) for label in value]
        if len(set(names)) < len(names) or len(names) < 2 or None in names:
            raise ValueError(f"must be two or more different labels; got {value}")
        return names


class SequenceClassification(Head):
    """Classifies texts with the architecture's own classifier, on encoders and decoders alike."""

    name: ClassVar[str] = "sequence_classification"
    Config: ClassVar[type[PluginConfig]] = SequenceClassificationConfig
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    task_type: ClassVar[str] = "SEQ_CLS"
    columns: ClassVar[Mapping[str, str]] = {
        "text": "the text to classify",
        "text_pair": "a second text, for tasks about two",
        "label": "its class: a word or a number",
    }
    optional_columns: ClassVar[frozenset[str]] = frozenset({"text_pair"})
    metric: ClassVar[str] = "accuracy"
    greater_is_better: ClassVar[bool] = True

    def __init__(self, config: SequenceClassificationConfig) -> None:
        super().__init__(config)
        self.labels: list[str] | None = config.labels

    def fit(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Learn the label set, unless the recipe lists it."""
        learnt = learn_labels(rows) if self.config.labels is None else self.config.labels
        if self.config.labels is not None:
            named = {label_name(row.get("label")) for row in rows}
            seen = [label for label in learnt if label in named]
            if len(seen) < 2:
                raise DataError(
                    f"{self._where}: the training rows must hold at least two of the labels"
                    f" {learnt}; got {seen} in {len(rows)} rows; check data.columns"
                )
        self.labels = learnt

    def state(self) -> dict[str, Any]:
        """The labels in the order of the logits."""
        return {"labels": self.labels}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take back the labels."""
        self.labels = None if state["labels"] is None else list(state["labels"])

    def model_options(self) -> dict[str, Any]:
        """`num_labels` and the names; empty while the labels are not known."""
        if self.labels is None:
            return {}
        return {
            "num_labels": len(self.labels),
            "id2label": dict(enumerate(self.labels)),
            "label2id": {label: index for index, label in enumerate(self.labels)},
        }

    def attach(
        self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase | None"
    ) -> "PreTrainedModel":
        """`model` as a classifier of these labels; a bare backbone gets one put around it."""
        if self.labels is None and model.base_model is model:
            raise UsageError(
                f"{self._where}: a model without a classifier needs the labels; list them under"
                " head.labels, or call fit(rows) first"
            )
        classifier = with_classifier(model, self.labels or [])
        self.labels = matched_order(classifier, self.labels)
        if tokenizer is not None:
            require_vocabulary(classifier, tokenizer, self._where)
            # a decoder's classifier reads the last token that is not this one
            classifier.config.get_text_config().pad_token_id = pad_token_id(tokenizer)
        elif classifier.config.get_text_config().pad_token_id is None:
            raise UnsupportedError(
                f"{self._where}: {type(classifier).__name__} must know the padding token to find a"
                " text's last one; got none; set model.config.pad_token_id"
            )
        return classifier

    def new_modules(self, model: nn.Module) -> list[str]:
        """The modules beside the backbone: `classifier`, `score`, whatever the architecture has."""
        return classification_modules(model)

    def encode(
        self,
        row: Mapping[str, Any],
        tokenizer: "PreTrainedTokenizerBase",
        max_length: int,
        *,
        labelled: bool = True,
    ) -> Encoded:
        """Token ids of the text or the pair, and the label's index."""
        texts: tuple[str, ...] = (text_of(row, "text"),)
        if row.get("text_pair") is not None:
            texts = (*texts, text_of(row, "text_pair"))
        has_tail = self.config.truncation == "head_tail"
        features, truncated = encode_texts(tokenizer, texts, max_length, has_tail=has_tail)
        if labelled:
            return Encoded({**features, "labels": self._label_index(row)}, truncated)
        return Encoded(features, truncated)

    def collate(
        self, features: Sequence[Mapping[str, Any]], tokenizer: "PreTrainedTokenizerBase"
    ) -> dict[str, Tensor]:
        """Pad to the longest text of the batch; `labels` is (batch)."""
        pad_token_id(tokenizer)
        inputs = [{key: f[key] for key in f if key != "labels"} for f in features]
        padded = tokenizer.pad(
            {key: [item[key] for item in inputs] for key in inputs[0]}, return_tensors="pt"
        )
        batch: dict[str, Tensor] = dict(padded)
        if all("labels" in f for f in features):
            batch["labels"] = torch.tensor([f["labels"] for f in features])
        return batch

    def metrics(self, logits: Any, labels: Any) -> dict[str, float]:
        """Accuracy, macro F1, and for each class its F1 and support."""
        values = np.asarray(logits[0] if isinstance(logits, tuple) else logits)
        return classification_scores(values, np.asarray(labels), self._known())

    def predict(
        self,
        model: nn.Module,
        tokenizer: "PreTrainedTokenizerBase",
        rows: Sequence[Mapping[str, Any]],
        *,
        max_length: int,
    ) -> list[dict[str, Any]]:
        """`label`, its `probability`, and `scores` of all labels, one dict a row, in order."""
        names = self._known()
        encoded = encode_rows(self, rows, tokenizer, max_length)
        order = sorted(range(len(rows)), key=lambda index: len(encoded[index]["input_ids"]))
        device = next(model.parameters()).device
        answers: list[dict[str, Any]] = [{} for _ in rows]
        for start in range(0, len(order), _ROWS_PER_BATCH):
            chosen = order[start : start + _ROWS_PER_BATCH]
            batch = self.collate([encoded[index] for index in chosen], tokenizer)
            with torch.no_grad():
                logits = model(**{key: value.to(device) for key, value in batch.items()}).logits
            for index, scores in zip(chosen, logits.float().softmax(-1).tolist(), strict=True):
                best = max(range(len(names)), key=scores.__getitem__)
                answers[index] = {
                    "label": names[best],
                    "probability": scores[best],
                    "scores": dict(zip(names, scores, strict=True)),
                }
        return answers

    @property
    def _where(self) -> str:
        return f"head {self.name!r}"

    def _known(self) -> list[str]:
        if self.labels is None:
            raise UsageError(
                f"{self._where}: must know its labels; list them under head.labels, or call"
                " fit(rows) first"
            )
        return self.labels

    def _label_index(self, row: Mapping[str, Any]) -> int:
        known = self._known()
        label = label_name(row.get("label"))
        if label is None:
            raise DataError(
                f"column 'label': must hold one of {known[:20]}; got {row.get('label')!r}"
            )
        if label not in known:
            near = suggest(label, known)
            raise DataError(
                f"column 'label': must be a label seen in training, one of {known[:20]}; got"
                f" {label!r}{near if 'did you mean' in near else ''}"
            )
        return known.index(label)


@hookimpl
def register_heads() -> list[type[Head]]:
    """Offer `sequence_classification`."""
    return [SequenceClassification]
