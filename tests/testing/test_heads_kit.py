"""`check_head` passes a right head and names what is wrong with a broken one."""

from types import MappingProxyType

import pytest
import torch

from ftrt import Encoded, Head, PluginConfig
from ftrt.errors import DataError
from ftrt.testing import check_head
from ftrt.testing.toy_tokenizer import ToyTokenizer

ROWS = [
    {"text": "a good film", "label": "pos"},
    {"text": "bad", "label": "neg"},
    {"text": "not so good, and far too long", "label": "neg"},
]


class NoOptions(PluginConfig):
    """No options."""


class Labels(Head):
    """A classifier's head, right in every respect."""

    name = "labels"
    Config = NoOptions
    auto_class = "AutoModelForSequenceClassification"
    task_type = "SEQ_CLS"
    columns = MappingProxyType({"text": "the text", "label": "its class"})
    metric = "accuracy"
    greater_is_better = True
    labels = ()

    def fit(self, rows):
        self.labels = sorted({row["label"] for row in rows})

    def state(self):
        return {"labels": list(self.labels)}

    def load_state(self, state):
        self.labels = list(state["labels"])

    def model_options(self):
        return {"num_labels": len(self.labels)}

    def encode(self, row, tokenizer, max_length, *, labelled=True):
        ids = tokenizer(row["text"])["input_ids"]
        features = {"input_ids": ids[:max_length], "attention_mask": [1] * len(ids[:max_length])}
        if labelled:
            if row["label"] not in self.labels:
                raise DataError(f"column 'label': never seen; got {row['label']!r}")
            features["labels"] = list(self.labels).index(row["label"])
        return Encoded(features, max(0, len(ids) - max_length))

    def collate(self, features, tokenizer):
        inputs = [{k: v for k, v in row.items() if k != "labels"} for row in features]
        batch = tokenizer.pad(inputs)
        if all("labels" in row for row in features):
            batch["labels"] = torch.tensor([row["labels"] for row in features])
        return batch

    def metrics(self, logits, labels):
        return {"accuracy": float((logits.argmax(-1) == labels).mean())}

    def predict(self, model, tokenizer, rows, *, max_length):
        if not rows:
            return []
        encoded = [self.encode(r, tokenizer, max_length, labelled=False).features for r in rows]
        with torch.no_grad():
            scores = model(**self.collate(encoded, tokenizer)).logits.softmax(-1)
        return [{"label": self.labels[s.index(max(s))], "scores": s} for s in scores.tolist()]


def test_a_right_head_passes():
    check_head(Labels, None, ROWS)
    check_head(Labels, {}, ROWS, tokenizer=ToyTokenizer(), max_length=64)


class ForgetsState(Labels):
    def load_state(self, state):
        """Nothing."""


class StateIsNoJson(Labels):
    def state(self):
        return {"labels": set(self.labels)}


class CountsNothing(Labels):
    def encode(self, row, tokenizer, max_length, *, labelled=True):
        encoded = super().encode(row, tokenizer, max_length, labelled=labelled)
        return Encoded(encoded.features, 0)


class NeverCuts(Labels):
    def encode(self, row, tokenizer, max_length, *, labelled=True):
        return super().encode(row, tokenizer, 10**6, labelled=labelled)


class ChangesRows(Labels):
    def encode(self, row, tokenizer, max_length, *, labelled=True):
        row["text"] = row["text"] + " !"
        return super().encode(row, tokenizer, max_length, labelled=labelled)


class EncodesTensors(Labels):
    def encode(self, row, tokenizer, max_length, *, labelled=True):
        encoded = super().encode(row, tokenizer, max_length, labelled=labelled)
        ids = torch.tensor(encoded.features["input_ids"])
        return Encoded({**encoded.features, "input_ids": ids}, encoded.truncated_tokens)


class NeedsAnswers(Labels):
    def encode(self, row, tokenizer, max_length, *, labelled=True):
        row["label"]
        return super().encode(row, tokenizer, max_length, labelled=labelled)


class LabelsAlways(Labels):
    def encode(self, row, tokenizer, max_length, *, labelled=True):
        encoded = super().encode(row, tokenizer, max_length, labelled=labelled)
        return Encoded({"labels": 0, **encoded.features}, encoded.truncated_tokens)


class TakesAnyLabel(Labels):
    def encode(self, row, tokenizer, max_length, *, labelled=True):
        if labelled and row["label"] not in self.labels:
            row = {**row, "label": self.labels[0]}
        return super().encode(row, tokenizer, max_length, labelled=labelled)


class HidesTheLabel(Labels):
    def encode(self, row, tokenizer, max_length, *, labelled=True):
        try:
            return super().encode(row, tokenizer, max_length, labelled=labelled)
        except DataError:
            raise DataError("bad label") from None


class RaisesKeyError(Labels):
    def encode(self, row, tokenizer, max_length, *, labelled=True):
        if labelled and row["label"] not in self.labels:
            raise KeyError(row["label"])
        return super().encode(row, tokenizer, max_length, labelled=labelled)


class MasksNothing(Labels):
    def collate(self, features, tokenizer):
        batch = super().collate(features, tokenizer)
        return {**batch, "attention_mask": torch.ones_like(batch["attention_mask"])}


class SwapsLabels(Labels):
    def collate(self, features, tokenizer):
        batch = super().collate(features, tokenizer)
        if "labels" in batch:
            batch["labels"] = batch["labels"].flip(0)
        return batch


class NoMask(Labels):
    def collate(self, features, tokenizer):
        batch = super().collate(features, tokenizer)
        del batch["attention_mask"]
        return batch


class PopsLabels(Labels):
    def collate(self, features, tokenizer):
        batch = super().collate(features, tokenizer)
        for row in features:
            row.pop("labels", None)
        return batch


class OtherMetric(Labels):
    metric = "f1"


class NumpyMetric(Labels):
    def metrics(self, logits, labels):
        return {"accuracy": (logits.argmax(-1) == labels).mean()}


class MetricWithoutLogits(Labels):
    needs_logits = False


class SortsAnswers(Labels):
    def predict(self, model, tokenizer, rows, *, max_length):
        ordered = sorted(rows, key=lambda row: len(row["text"]))
        return super().predict(model, tokenizer, ordered, max_length=max_length)


class DropsAnswers(Labels):
    def predict(self, model, tokenizer, rows, *, max_length):
        return super().predict(model, tokenizer, rows, max_length=max_length)[:2]


class TensorAnswers(Labels):
    def predict(self, model, tokenizer, rows, *, max_length):
        answers = super().predict(model, tokenizer, rows, max_length=max_length)
        return [{"scores": torch.tensor(answer["scores"])} for answer in answers]


class SeesPadding(Labels):
    def predict(self, model, tokenizer, rows, *, max_length):
        if not rows:
            return []
        encoded = [self.encode(r, tokenizer, max_length, labelled=False).features for r in rows]
        batch = self.collate(encoded, tokenizer)
        batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
        with torch.no_grad():
            return [{"scores": s} for s in model(**batch).logits.softmax(-1).tolist()]


class FailsOnNothing(Labels):
    def predict(self, model, tokenizer, rows, *, max_length):
        return super().predict(model, tokenizer, rows or ROWS, max_length=max_length)


class NoAutoClass(Labels):
    auto_class = "BertForSequenceClassification"


class StrayColumn(Labels):
    optional_columns = frozenset({"pair"})


class OtherTask(Labels):
    task_type = "TOKEN_CLS"


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (ForgetsState, r"load_state\(state\(\)\) must restore the head; got {'labels': \[\]} for"),
        (StateIsNoJson, "comes back from its state: must not raise; raised TypeError"),
        (
            CountsNothing,
            r"at max_length 15 must be cut and counted; got 15 tokens and truncated_tokens=0",
        ),
        (
            NeverCuts,
            r"at max_length 15 must be cut and counted; got 16 tokens and truncated_tokens=0",
        ),
        (ChangesRows, "encode must not change the row; got {'text': 'a good film !'"),
        (EncodesTensors, r"features\['input_ids'\] must be a list of ints; got tensor"),
        (NeedsAnswers, "encodes rows without answers: must not raise; raised KeyError: 'label'"),
        (LabelsAlways, "labelled=False must give no 'labels'; it does"),
        (TakesAnyLabel, "a label never seen in training must be a DataError; it is accepted"),
        (HidesTheLabel, "the error must name the label 'a label never seen'; got bad label"),
        (RaisesKeyError, "refuses a label never seen: must not raise; raised KeyError"),
        (MasksNothing, r"row 0: the attended tokens must be the row's; got \["),
        (SwapsLabels, "row 0: labels must be the row's; got 0 for 1"),
        (NoMask, r"collate must give attention_mask of shape \(3, \d+\); got nothing"),
        (PopsLabels, "collate must not change the features; it does"),
        (OtherMetric, r"metrics must hold 'f1'; got \['accuracy'\]"),
        (NumpyMetric, "metric 'accuracy' must be a finite float; got np.float64"),
        (MetricWithoutLogits, "without logits the metric must be 'loss'; got 'accuracy'"),
        (SortsAnswers, "the answer must be the row's own, whatever rows stand beside it; got"),
        (DropsAnswers, "predict must give a dict a row, 3; got 2"),
        (TensorAnswers, "answers each row in order: must not raise; raised TypeError"),
        (SeesPadding, "the answer must be the row's own, whatever rows stand beside it; got"),
        (FailsOnNothing, "predict of no rows must give no answers; it does"),
        (NoAutoClass, "`auto_class` must name an Auto class; got 'BertForSeq"),
        (StrayColumn, r"`optional_columns` must be among `columns`; got also \['pair'\]"),
        (OtherTask, "no toy model for task_type 'TOKEN_CLS'; pass model= to check_head"),
        (dict, "must be a class that derives from Head"),
    ],
)
def test_broken_heads_are_caught(head, message):
    rows = [dict(row) for row in ROWS]
    with pytest.raises(AssertionError, match=message):
        check_head(head, None, rows)


def test_rows_that_prove_nothing_are_refused():
    with pytest.raises(AssertionError, match="rows must be two or more; got 1"):
        check_head(Labels, None, ROWS[:1])
    same = [{"text": "one", "label": "a"}, {"text": "two", "label": "b"}]
    with pytest.raises(AssertionError, match="pass rows of unequal length to check_head; all"):
        check_head(Labels, None, same)


def test_toy_tokenizer_tells_offsets_segments_and_turns():
    tokenizer = ToyTokenizer()
    text = "Hi, you <|im_end|>"
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    pieces = [text[start:stop] for start, stop in encoded["offset_mapping"]]
    assert pieces == ["Hi", ",", " ", "you", " ", "<|im_end|>"]
    assert tokenizer.decode(encoded["input_ids"]) == text
    pair = tokenizer("a b c", "d", truncation=True, max_length=6)
    assert len(pair["input_ids"]) == 6
    assert pair.sequence_ids(0) == [None, 0, 0, None, 1, None]
