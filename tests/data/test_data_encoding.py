"""Encoded splits give back what the head made, compactly, and name the row that it refuses."""

import pickle

import pytest
import torch
from torch.utils.data import DataLoader

from ftrt.api import Encoded, Head, PluginConfig
from ftrt.data import encode_split
from ftrt.data.encoding import EncodedSplit
from ftrt.data.rows import Origin, Row
from ftrt.errors import DataError, PluginError


class WordHead(Head):
    """One id a word: its number; a label that is no number is refused."""

    name = "words"
    Config = PluginConfig
    auto_class = "AutoModel"
    task_type = "SEQ_CLS"
    columns = {"text": "numbers", "label": "a number"}  # noqa: RUF012

    def encode(self, row, tokenizer, max_length, *, labelled=True):
        ids = [int(word) for word in row["text"].split()]
        features = {
            "input_ids": ids[:max_length],
            "attention_mask": [1] * min(len(ids), max_length),
        }
        if labelled:
            if not str(row["label"]).isdigit():
                raise DataError(f"label: must be a number; got {row['label']!r}")
            features["labels"] = int(row["label"])
        return Encoded(features, max(0, len(ids) - max_length))

    def collate(self, features, tokenizer):
        return {"labels": torch.tensor([one["labels"] for one in features])}

    def predict(self, model, tokenizer, rows, *, max_length):
        return []


HEAD = WordHead(PluginConfig())
ROWS = [
    Row({"text": "1 2 3", "label": "0"}, Origin("f.csv", 2)),
    Row({"text": "200 70000 5 -3000000000", "label": "1"}, Origin("f.csv", 3)),
    Row({"text": "7", "label": "1"}, Origin("f.csv", 4)),
]


def test_features_come_back_as_the_head_made_them():
    split = encode_split(HEAD, ROWS, None, max_length=8)
    expected = [HEAD.encode(row, None, 8).features for row in ROWS]
    assert len(split) == 3 and [split[index] for index in range(3)] == expected
    assert split[-1] == expected[-1]
    assert split.lengths == [3, 4, 1] and split.tokens == 8
    assert split.truncated_rows == split.truncated_tokens == 0
    with pytest.raises(IndexError):
        split[3]


def test_truncation_is_counted_in_rows_and_tokens():
    split = encode_split(HEAD, ROWS, None, max_length=2)
    assert (split.truncated_rows, split.truncated_tokens) == (2, 3)
    assert split.lengths == [2, 2, 1] and split.tokens == 5


def test_split_feeds_a_data_loader():
    split = encode_split(HEAD, ROWS, None, max_length=8)
    loader = DataLoader(split, batch_size=2, collate_fn=lambda rows: HEAD.collate(rows, None))
    assert [batch["labels"].tolist() for batch in loader] == [[0, 1], [1]]


def test_refused_row_is_named_with_its_place():
    rows = [*ROWS, Row({"text": "1", "label": "x"}, Origin("f.csv", 9))]
    with pytest.raises(DataError) as caught:
        encode_split(HEAD, rows, None, max_length=8)
    assert str(caught.value) == "f.csv:9: label: must be a number; got 'x'"


def test_refused_row_made_in_memory_is_named_by_its_number():
    with pytest.raises(DataError) as caught:
        encode_split(HEAD, [{"text": "1", "label": "x"}], None, max_length=8)
    assert str(caught.value) == "row 1: label: must be a number; got 'x'"


def test_unlabelled_rows_need_no_answer():
    split = encode_split(HEAD, [{"text": "1 2"}], None, max_length=8, labelled=False)
    assert split[0] == {"input_ids": [1, 2], "attention_mask": [1, 1]}


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ([{"input_ids": [1]}], "head 'words': encode must return at least input_ids, labels; got"
         " input_ids"),
        ([{"input_ids": [1], "labels": 0}, {"input_ids": [1], "labels": 0, "more": 1}],
         "head 'words': encode must return the same features for every row, input_ids, labels; got"
         " input_ids, labels, more"),
    ],
)  # fmt: skip
def test_head_that_leaves_out_a_feature_is_a_plugin_error(features, message, monkeypatch):
    queue = iter(features)
    monkeypatch.setattr(HEAD, "encode", lambda *_, **__: Encoded(next(queue)), raising=False)
    with pytest.raises(PluginError) as caught:
        encode_split(HEAD, ROWS[: len(features)], None, max_length=8)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "values",
    [
        [[0.5], [1.5]],
        [[1], [0.5], [2]],
        [3, 4],
        ["a", "b"],
        [[1], "a"],
        [[[1, 2]], [[3]]],
        [[], [1], []],
        [[2**63], [1]],
        [[-128, 127], [128], [-(2**31)], [2**40], [0]],
        [None, [1]],
    ],
)
def test_every_kind_of_feature_comes_back_unchanged(values):
    split = EncodedSplit(Encoded({"input_ids": [1], "extra": value}) for value in values)
    assert [split[index]["extra"] for index in range(len(values))] == values


def test_masks_take_a_byte_a_token():
    split = EncodedSplit(Encoded({"input_ids": [1] * 1000}) for _ in range(1000))
    assert len(pickle.dumps(split)) < 1_100_000
