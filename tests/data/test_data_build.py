"""A recipe's data section to splits: what stands in the report, and what the fingerprint sees."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ftrt import data
from ftrt.api import PluginConfig, Transform
from ftrt.data import assets, load_rows, load_splits, read_prediction_rows
from ftrt.data.catalog import ASSETS
from ftrt.errors import ConfigError, DataError
from ftrt.recipe import DataSection

HEAD = {"text": "what to classify", "label": "the class"}
FTRT = Path(data.__file__).parents[2]


@pytest.fixture
def write(tmp_path):
    def write_file(name, rows):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write_file


def examples(number, prefix="text"):
    return [{"text": f"{prefix} {n}", "label": n % 2} for n in range(number)]


def load(section, transforms=(), **columns):
    return load_splits(
        DataSection(**section), columns=HEAD, optional=frozenset(), transforms=transforms, **columns
    )


def message(error, section, transforms=()):
    with pytest.raises(error) as caught:
        load(section, transforms)
    return str(caught.value)


class Tag(Transform):
    name = "tag"
    Config = PluginConfig

    def __call__(self, row):
        if row["text"].endswith(" 3"):
            return None
        return {"body": row["text"] + "!", "label": row["label"]}


def test_whole_path_from_file_to_splits_and_report(write):
    rows = [*examples(40), {"text": "TEXT  0", "label": 1}, {"text": "", "label": 0}]
    path = write("train.jsonl", [{**row, "lang": "en"} for row in rows] + [{"lang": "de"}])
    splits = load(
        {
            "train": path,
            "validation": "10%",
            "test": 5,
            "where": {"lang": "en"},
            "columns": {"text": "body"},
            "limit": 20,
            "on_bad_row": "skip",
        },
        [Tag(PluginConfig())],
    )
    assert len(splits.train) == 20 and len(splits.validation) == 4 and len(splits.test) == 5
    assert all(set(row) == {"text", "label"} for row in splits.train)
    assert all(row["text"].endswith("!") for row in splits.train + splits.test)
    report = json.loads(json.dumps(splits.report))
    assert report["files"] == {
        "train": {
            "source": path,
            "read": 43,
            "skipped": 0,
            "skipped_reasons": [],
            "not_where": 1,
            "dropped_by_transforms": {"tag": 1},
            "rows": 41,
        }
    }
    assert report["splits"] == {"train": 20, "validation": 4, "test": 5}
    assert report["repeats"] == report["conflicting"] == 1
    assert report["over_limit"] + report["drawn_repeats"] == 41 - 20 - 4 - 5


def test_skipped_rows_are_counted_over_reading_and_mapping(write):
    path = write("train.jsonl", [*examples(5), {"text": " ", "label": 0}])
    with open(path, "a") as file:
        file.write("not json\n")
    splits = load({"train": path, "validation": None, "on_bad_row": "skip"})
    assert splits.report["files"]["train"]["skipped"] == 2
    assert splits.report["files"]["train"]["read"] == 7
    assert splits.report["files"]["train"]["skipped_reasons"] == [
        f"1 row skipped: a line must be one JSON object ({path}:7)",
        f"1 row skipped: a column the head needs must hold a value ({path}:6)",
    ]
    assert splits.validation is None and splits.test == []


def test_splits_from_files_share_no_text_with_training(write):
    splits = load(
        {
            "train": write("train.jsonl", examples(10)),
            "validation": write("validation.jsonl", examples(3, "TEXT")),
            "test": write("test.jsonl", examples(2, "  text")),
        }
    )
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [7, 1, 2]
    assert splits.report["train_in_test"] == 2 and splits.report["train_in_validation"] == 1
    assert list(splits.report["files"]) == ["train", "validation", "test"]


def test_origins_survive_to_the_splits(write):
    path = write("train.jsonl", examples(4))
    splits = load({"train": path, "validation": 1})
    for row in splits.train + splits.validation:
        assert str(row.origin) == f"{path}:{int(row['text'].split()[1]) + 1}"


def test_fingerprint_sees_rows_and_not_names(write):
    def fingerprint(path, **section):
        return load({"train": path, **section}).fingerprint

    rows = examples(20)
    first = fingerprint(write("a.jsonl", rows))
    assert first == fingerprint(write("b.jsonl", rows))
    assert first == fingerprint(write("c.jsonl", rows[::-1]))
    assert first != fingerprint(write("d.jsonl", [*rows[:-1], {"text": "text 19", "label": 9}]))
    assert first != fingerprint(write("a.jsonl", rows), validation="20%")
    assert first != fingerprint(write("a.jsonl", rows), seed=1)
    assert len(first) == 64


def test_splits_do_not_depend_on_the_hash_seed(write):
    path = write("train.jsonl", examples(30))
    program = (
        "import sys; from ftrt.data import load_splits; from ftrt.recipe import DataSection\n"
        "splits = load_splits(DataSection(train=sys.argv[1], test=4),"
        " columns={'text': '', 'label': ''}, optional=frozenset())\n"
        "print(splits.fingerprint)"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program, path],
            env={**os.environ, "PYTHONPATH": str(FTRT), "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert outputs == {load({"train": path, "test": 4}).fingerprint}


def test_train_must_be_named():
    assert message(ConfigError, {}) == (
        "data.train: must name a file (.jsonl, .ndjson, .json, .csv, .tsv, .parquet) or a data set"
        " (asset:rotten-tomatoes, asset:imdb, asset:hsk-en-zh); got nothing"
    )


def test_model_asset_is_no_data_set(monkeypatch, tmp_path):
    monkeypatch.setenv("FTRT_CACHE_DIR", str(tmp_path))
    assert message(DataError, {"train": "asset:all-MiniLM-L6-v2"}) == (
        "asset:all-MiniLM-L6-v2: must be a data set (asset:rotten-tomatoes, asset:imdb,"
        " asset:hsk-en-zh); got a model"
    )
    assert list(tmp_path.iterdir()) == []


def test_wrong_amount_is_a_config_error_before_reading():
    assert message(ConfigError, {"train": "no.csv", "test": "150%"}) == (
        "data.test: must be a share between 0% and 100% such as 10%, a row count of at least 1, or"
        " a file; got '150%'"
    )


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"review": "a"}, {"text": "a"}),
        ({"text": "a"}, {"text": "a"}),
        ({"review": "a", "text": "b", "stars": 3}, {"text": "a", "label": 3}),
        ({"text": "a", "label": None}, {"text": "a"}),
    ],
)
def test_rows_to_predict_need_no_answer_and_may_use_the_heads_names(write, row, expected):
    rows = read_prediction_rows(
        write("new.jsonl", [row]), columns=HEAD, mapping={"text": "review", "label": "stars"}
    )
    assert rows == [expected] and rows[0].origin.number == 1


def test_rows_to_predict_are_transformed_as_in_training(write):
    path = write("new.jsonl", [{"text": "a", "label": 1}])
    rows = read_prediction_rows(
        path, columns=HEAD, mapping={"text": "body"}, transforms=[Tag(PluginConfig())]
    )
    assert rows == [{"text": "a!", "label": 1}]


def test_rows_to_predict_without_input_are_refused(write):
    path = write("new.jsonl", [{"review": "a"}])
    with pytest.raises(DataError) as caught:
        read_prediction_rows(path, columns=HEAD, mapping={}, optional=frozenset())
    assert str(caught.value).startswith(
        f"{path}: must have the column 'text' (what to classify); got columns review"
    )


def test_asset_brings_its_filter_and_the_recipe_adds_to_it(publish):
    publish()
    splits = load({"train": "asset:toy", "validation": None})
    assert sorted(row["text"] for row in splits.train) == ["bad", "good"]
    splits = load({"train": "asset:toy", "validation": None, "where": {"label": 1}})
    assert splits.train == [{"text": "good", "label": "1"}]
    splits = load({"train": "asset:toy", "validation": None, "where": {"source": "b"}})
    assert splits.train == [{"text": "other", "label": "1"}]


def test_asset_brings_its_columns_and_the_recipes_win(publish):
    publish(columns={"label": "source", "prompt": "text"}, where={})
    splits = load({"train": "asset:toy", "validation": None, "columns": {"text": "source"}})
    assert splits.report["files"]["train"]["source"] == "asset:toy"
    assert {row["text"] for row in splits.train} == {"a", "b"}


def test_nested_fields_become_columns(publish, tmp_path, monkeypatch):
    records = [{"translation": {"en": "Hello"}, "chinese": "你好", "hsk_level": 1, "topic": "t"}]
    path = tmp_path / "sentences.json"
    path.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    monkeypatch.setattr("ftrt.data.build.resolve", lambda source: path)
    head = {"prompt": "", "response": ""}
    rows, _ = load_rows("asset:hsk-en-zh", DataSection(), columns=head, optional=frozenset())
    assert rows == [{"prompt": "Hello", "response": "你好"}]
    everything = {name: "" for name in ASSETS["hsk-en-zh"].fields}
    rows, _ = load_rows("asset:hsk-en-zh", DataSection(), columns=everything, optional=frozenset())
    assert rows == [{"english": "Hello", "chinese": "你好", "level": 1, "topic": "t"}]


@pytest.mark.asset
def test_rotten_tomatoes_for_real():
    try:
        path = assets.fetch("rotten-tomatoes")
    except DataError as error:
        pytest.skip(str(error))
    member = ASSETS["rotten-tomatoes"].members[0]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == member.sha256
    splits = load({"train": "asset:rotten-tomatoes", "validation": "10%", "test": 1000})
    assert splits.report["files"]["train"]["rows"] == 8530
    assert len(splits.test) == 1000 and {row["label"] for row in splits.test} == {"0", "1"}
    assert sum(splits.report["splits"].values()) + splits.report["drawn_repeats"] == 8530
