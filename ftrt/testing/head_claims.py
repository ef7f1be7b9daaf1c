"""What a task head claims: functions that return or raise `AssertionError`."""

__all__ = ["COMMON_CLAIMS", "CONTRACT_CLAIMS", "Subject"]

import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ftrt.api import Encoded, Head
from ftrt.errors import DataError
from ftrt.testing.claims import require_config
from ftrt.testing.toy_task_models import ToyClassifier, ToyLanguageModel

UNSEEN_LABEL = "a label never seen"
IGNORED_LABEL = -100
# batches of other sizes sum in another order
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Subject:
    """The head under test and what it is tried on."""

    head_class: type[Head]
    options: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    tokenizer: Any
    model: Any
    max_length: int

    def head(self) -> Head:
        """A fresh head with the options."""
        return self.head_class(self.head_class.Config.model_validate(dict(self.options)))

    def fitted(self) -> Head:
        """A fresh head that has seen the rows, attached to the model if the caller gave one."""
        head = self.head()
        head.fit(copy.deepcopy(list(self.rows)))
        if self.model is not None:
            head.attach(self.model, self.tokenizer)
        return head

    def model_for(self, head: Head) -> nn.Module:
        """The caller's model, or a toy one for the head's task."""
        if self.model is not None:
            model: nn.Module = self.model
            return model.eval()
        torch.manual_seed(0)
        if head.task_type == "CAUSAL_LM":
            return ToyLanguageModel(len(self.tokenizer)).eval()
        if head.task_type == "SEQ_CLS":
            classes = head.model_options().get("num_labels")
            if not isinstance(classes, int):
                raise AssertionError(
                    "model_options() must hold num_labels after fit(rows), or pass model=; got"
                    f" {head.model_options()}"
                )
            return ToyClassifier(len(self.tokenizer), classes).eval()
        raise AssertionError(
            f"there is no toy model for task_type {head.task_type!r}; pass model= to check_head"
        )

    def encoded(self, head: Head) -> list[Encoded]:
        """The rows, encoded with labels."""
        rows = copy.deepcopy(list(self.rows))
        return [head.encode(row, self.tokenizer, self.max_length) for row in rows]

    def unanswered(self) -> list[dict[str, Any]]:
        """The rows without the columns that hold answers."""
        return [
            {key: row[key] for key in row if key not in self.head_class.answer_columns}
            for row in copy.deepcopy(list(self.rows))
        ]


def declares_the_task(subject: Subject) -> None:
    """Name, Auto class, task type, columns and metric are as the contract says."""
    head = subject.head_class
    for attribute in ("name", "auto_class", "task_type", "metric"):
        value = getattr(head, attribute, None)
        if not (isinstance(value, str) and value):
            raise AssertionError(f"`{attribute}` must be text; got {value!r}")
    if not head.auto_class.startswith("AutoModel"):
        raise AssertionError(f"`auto_class` must name an Auto class; got {head.auto_class!r}")
    columns = getattr(head, "columns", None)
    if not (isinstance(columns, Mapping) and columns):
        raise AssertionError(f"`columns` must say what each column holds; got {columns!r}")
    stray = sorted(set(head.optional_columns) - set(columns))
    if stray:
        raise AssertionError(f"`optional_columns` must be among `columns`; got also {stray}")


def validates_options(subject: Subject) -> None:
    """Options come back from JSON as they were, and unknown ones are refused."""
    require_config(subject.head_class, subject.options)


def comes_back_from_its_state(subject: Subject) -> None:
    """A head that loads another's state, through JSON, encodes as that one does."""
    head = subject.fitted()
    again = subject.head()
    again.load_state(json.loads(json.dumps(head.state())))
    if again.state() != head.state() or again.model_options() != head.model_options():
        raise AssertionError(
            f"load_state(state()) must restore the head; got {again.state()} for {head.state()}"
        )
    if subject.encoded(again) != subject.encoded(head):
        raise AssertionError("a restored head must encode rows as before; it does not")


def encodes_rows(subject: Subject) -> None:
    """Features hold token ids and labels within max_length, the same on each call."""
    head = subject.fitted()
    for row in copy.deepcopy(list(subject.rows)):
        before = copy.deepcopy(row)
        encoded = head.encode(row, subject.tokenizer, subject.max_length)
        if row != before:
            raise AssertionError(f"encode must not change the row; got {row} for {before}")
        ids = encoded.features.get("input_ids")
        if not (isinstance(ids, list) and ids and all(type(token) is int for token in ids)):
            raise AssertionError(f"features['input_ids'] must be a list of ints; got {ids!r}")
        if len(ids) > subject.max_length:
            raise AssertionError(
                f"a row must have at most max_length tokens, {subject.max_length}; got {len(ids)}"
            )
        if "labels" not in encoded.features:
            raise AssertionError("features must hold 'labels' when labelled; they do not")
        if head.encode(row, subject.tokenizer, subject.max_length) != encoded:
            raise AssertionError("encode must give the same for the same row; it does not")


def counts_truncated_tokens(subject: Subject) -> None:
    """`truncated_tokens` is what a shorter max_length cuts off."""
    head = subject.fitted()
    full = [len(item.features["input_ids"]) for item in subject.encoded(head)]
    longest = max(range(len(full)), key=full.__getitem__)
    row, length = copy.deepcopy(subject.rows[longest]), full[longest]
    whole = head.encode(row, subject.tokenizer, length)
    if whole.truncated_tokens != 0:
        raise AssertionError(
            f"a row that fits has 0 truncated tokens; got {whole.truncated_tokens}"
        )
    cut = head.encode(row, subject.tokenizer, length - 1)
    kept = len(cut.features["input_ids"])
    if kept > length - 1 or cut.truncated_tokens != length - kept:
        raise AssertionError(
            f"{length} tokens at max_length {length - 1} must be cut and counted; got {kept} tokens"
            f" and truncated_tokens={cut.truncated_tokens}"
        )


def encodes_rows_without_answers(subject: Subject) -> None:
    """Rows to be answered are encoded, with no labels."""
    head = subject.fitted()
    for row in [*subject.unanswered(), *copy.deepcopy(list(subject.rows))]:
        encoded = head.encode(row, subject.tokenizer, subject.max_length, labelled=False)
        if "labels" in encoded.features:
            raise AssertionError("labelled=False must give no 'labels'; it does")


def refuses_a_label_never_seen(subject: Subject) -> None:
    """A label that training did not have is a `DataError` that says which."""
    if "label" not in subject.head_class.columns:
        return
    row = {**subject.rows[0], "label": UNSEEN_LABEL}
    try:
        subject.fitted().encode(row, subject.tokenizer, subject.max_length)
    except DataError as error:
        if UNSEEN_LABEL not in str(error):
            raise AssertionError(
                f"the error must name the label {UNSEEN_LABEL!r}; got {error}"
            ) from error
        return
    raise AssertionError("a label never seen in training must be a DataError; it is accepted")


def pads_batches(subject: Subject) -> None:
    """`collate` pads to the longest row, masks the padding and keeps ids and labels."""
    head = subject.fitted()
    features = [item.features for item in subject.encoded(head)]
    for chosen in (features, features[:1]):
        given = copy.deepcopy(chosen)
        _require_batch(head.collate(given, subject.tokenizer), chosen)
        if given != chosen:
            raise AssertionError("collate must not change the features; it does")
    if len({len(item["input_ids"]) for item in features}) == 1:
        raise AssertionError("pass rows of unequal length to check_head; all have the same")
    unlabelled = [{k: v for k, v in item.items() if k != "labels"} for item in features]
    if "labels" in head.collate(unlabelled, subject.tokenizer):
        raise AssertionError("collate must give no 'labels' for features without; it does")


def _require_batch(batch: Mapping[str, Tensor], features: Sequence[Mapping[str, Any]]) -> None:
    shape = (len(features), max(len(item["input_ids"]) for item in features))
    for key in ("input_ids", "attention_mask"):
        if key not in batch or tuple(batch[key].shape) != shape:
            found = tuple(batch[key].shape) if key in batch else "nothing"
            raise AssertionError(f"collate must give {key} of shape {shape}; got {found}")
    for index, item in enumerate(features):
        mask = batch["attention_mask"][index].bool()
        if batch["input_ids"][index][mask].tolist() != list(item["input_ids"]):
            raise AssertionError(
                f"row {index}: the attended tokens must be the row's; got"
                f" {batch['input_ids'][index][mask].tolist()} for {list(item['input_ids'])}"
            )
        labels = batch["labels"][index]
        expected = torch.as_tensor(item["labels"])
        if labels.dim() and labels.shape == mask.shape:
            if bool((labels[~mask] != IGNORED_LABEL).any()):
                raise AssertionError(f"row {index}: labels of padding must be -100; they are not")
            labels = labels[mask]
        if not torch.equal(labels, expected.to(labels.dtype)):
            raise AssertionError(
                f"row {index}: labels must be the row's; got {labels.tolist()} for"
                f" {expected.tolist()}"
            )


def measures_its_metric(subject: Subject) -> None:
    """`metrics` holds the metric that selects the best checkpoint, and finite floats."""
    head = subject.fitted()
    if not head.needs_logits:
        if head.metric != "loss":
            raise AssertionError(f"without logits the metric must be 'loss'; got {head.metric!r}")
        return
    batch = head.collate([item.features for item in subject.encoded(head)], subject.tokenizer)
    labels = batch.pop("labels")
    with torch.no_grad():
        logits = subject.model_for(head)(**batch).logits
    scores = head.metrics(logits.float().numpy(), labels.numpy())
    if head.metric != "loss" and head.metric not in scores:
        raise AssertionError(f"metrics must hold {head.metric!r}; got {sorted(scores)}")
    for name, value in scores.items():
        if type(value) is not float or not math.isfinite(value):
            raise AssertionError(f"metric {name!r} must be a finite float; got {value!r}")


def answers_each_row_in_order(subject: Subject) -> None:
    """`predict` gives one JSON-able dict a row, in the rows' order, and leaves the rows alone."""
    head = subject.fitted()
    model = subject.model_for(head)
    rows = subject.unanswered()
    before = copy.deepcopy(rows)

    def predict(items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return head.predict(model, subject.tokenizer, items, max_length=subject.max_length)

    answers = predict(rows)
    if len(answers) != len(rows) or not all(isinstance(answer, dict) for answer in answers):
        raise AssertionError(f"predict must give a dict a row, {len(rows)}; got {len(answers)}")
    json.dumps(answers)
    if rows != before:
        raise AssertionError("predict must not change the rows; it does")
    alone = [predict([row])[0] for row in rows]
    for index, (together, single) in enumerate(zip(answers, alone, strict=True)):
        if not _is_near(together, single):
            raise AssertionError(
                f"row {index}: the answer must be the row's own, whatever rows stand beside it; got"
                f" {together} for {single}"
            )
    if predict([]) != []:
        raise AssertionError("predict of no rows must give no answers; it does")


def _is_near(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_is_near(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_is_near, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, abs_tol=TOLERANCE)
    return bool(one == other)


CONTRACT_CLAIMS = (declares_the_task, validates_options)
COMMON_CLAIMS = (
    comes_back_from_its_state,
    encodes_rows,
    counts_truncated_tokens,
    encodes_rows_without_answers,
    refuses_a_label_never_seen,
    pads_batches,
    measures_its_metric,
    answers_each_row_in_order,
)
