"""Filtering, transforming and renaming rows, and what is said when the columns do not fit."""

import pytest

from ftrt.api import PluginConfig, Transform
from ftrt.data.columns import apply_transforms, keep_where, map_columns
from ftrt.data.rows import Origin, Row, Rows
from ftrt.errors import ConfigError, DataError

HEAD = {"text": "what to classify", "label": "the class"}
NONE = frozenset()


def rows_of(*values):
    rows = [Row(value, Origin("f.csv", number)) for number, value in enumerate(values, 2)]
    return Rows("f.csv", tuple(dict.fromkeys(name for row in rows for name in row)), rows)


def message(error, function, *args, **kwargs):
    with pytest.raises(error) as caught:
        function(*args, **kwargs)
    return str(caught.value)


def test_mapping_renames_and_leaves_other_columns_out():
    rows = rows_of({"review": "good", "label": "1", "id": "7"})
    mapped = map_columns(rows, HEAD, NONE, {"text": "review"})
    assert mapped.rows == [{"text": "good", "label": "1"}]
    assert mapped.columns == ("text", "label")
    assert str(mapped.rows[0].origin) == "f.csv:2"
    assert rows.rows[0] == {"review": "good", "label": "1", "id": "7"}


def test_one_file_column_may_serve_two_head_columns():
    mapped = map_columns(rows_of({"a": "x"}), HEAD, NONE, {"text": "a", "label": "a"})
    assert mapped.rows == [{"text": "x", "label": "x"}]


def test_missing_column_names_the_files_columns_and_the_nearest():
    assert message(
        DataError, map_columns, rows_of({"texts": "a", "label": "1"}), HEAD, NONE, {}
    ) == (
        "f.csv: must have the column 'text' (what to classify); got columns texts, label; did you"
        " mean 'texts'?; or name it with data.columns, say {text: YOUR_COLUMN}"
    )


def test_missing_column_without_a_near_one_lists_them():
    assert message(DataError, map_columns, rows_of({"q": "a", "label": "1"}), HEAD, NONE, {}) == (
        "f.csv: must have the column 'text' (what to classify); got columns q, label; or name it"
        " with data.columns, say {text: YOUR_COLUMN}"
    )


def test_mapping_to_a_column_the_file_lacks_is_an_error_even_where_optional():
    rows = rows_of({"review": "a", "label": "1"})
    assert message(DataError, map_columns, rows, HEAD, frozenset({"text"}), {"text": "reveiw"}) == (
        "f.csv: must have the column 'reveiw' that data.columns gives for 'text'; got columns"
        " review, label; did you mean 'review'?"
    )


def test_mapping_a_column_the_head_lacks_is_a_config_error():
    assert message(ConfigError, map_columns, rows_of({"a": "x"}), HEAD, NONE, {"txt": "a"}) == (
        "data.columns: the keys must be columns of the head (text, label); got 'txt'; did you mean"
        " 'text'?"
    )


def test_optional_columns_may_be_absent_or_empty():
    rows = rows_of({"text": "a", "label": ""}, {"text": "b", "label": "1"})
    mapped = map_columns(rows, HEAD, frozenset({"label"}), {})
    assert mapped.rows == [{"text": "a"}, {"text": "b", "label": "1"}]
    assert map_columns(rows_of({"text": "a"}), HEAD, frozenset({"label"}), {}).rows == [
        {"text": "a"}
    ]


def test_file_with_none_of_the_optional_columns_is_an_error():
    everything = frozenset(HEAD)
    assert message(DataError, map_columns, rows_of({"a": "x"}), HEAD, everything, {}) == (
        "f.csv: must have a column the head reads (text, label); got columns a; name one with"
        " data.columns, say {text: YOUR_COLUMN}"
    )


EMPTY = [None, "", "  \n", [], {}, float("nan")]


@pytest.mark.parametrize("value", EMPTY)
def test_empty_value_in_a_needed_column_is_a_bad_row(value):
    rows = rows_of({"text": "a", "label": 0}, {"text": value, "label": 1})
    assert message(DataError, map_columns, rows, HEAD, NONE, {}) == (
        f"f.csv:3: a column the head needs must hold a value; got {value!r} in 'text'; mend it, or"
        " drop such rows with data.on_bad_row: skip"
    )
    mapped = map_columns(rows, HEAD, NONE, {}, on_bad_row="skip")
    assert mapped.rows == [{"text": "a", "label": 0}]
    assert mapped.skipped == ["1 row skipped: a column the head needs must hold a value (f.csv:3)"]
    assert mapped.skipped_rows == 1


def test_absent_key_in_a_needed_column_is_a_bad_row():
    rows = rows_of({"text": "a", "label": 0}, {"label": 1})
    assert message(DataError, map_columns, rows, HEAD, NONE, {}).startswith(
        "f.csv:3: a column the head needs must hold a value; got no key 'text'"
    )


@pytest.mark.parametrize("value", [0, False, 0.0, "0"])
def test_zero_and_false_are_values(value):
    assert (
        map_columns(rows_of({"text": "a", "label": value}), HEAD, NONE, {}).rows[0]["label"]
        is value
    )


def test_row_with_nothing_but_empty_optional_columns_is_bad():
    rows = rows_of({"text": "a"}, {"text": ""})
    assert message(DataError, map_columns, rows, HEAD, frozenset(HEAD), {}).startswith(
        "f.csv:3: a column the head needs must hold a value; got nothing in text"
    )


def test_all_rows_bad_is_an_error_when_skipping():
    rows = rows_of({"text": "", "label": 0})
    assert message(DataError, map_columns, rows, HEAD, NONE, {}, on_bad_row="skip") == (
        "f.csv: must hold at least one usable row; got 1 row skipped: a column the head needs must"
        " hold a value (f.csv:2)"
    )


@pytest.mark.parametrize(
    ("held", "wanted"),
    [("1", 1), (1, "1"), (1.0, 1), (True, "true"), (True, 1), (False, "false"), ("x", "x")],
)
def test_where_compares_as_text(held, wanted):
    rows = rows_of({"a": held}, {"a": "other"}, {"b": held})
    assert keep_where(rows, {"a": wanted}).rows == [{"a": held}]


def test_where_needs_every_condition():
    rows = rows_of({"a": "1", "b": "1"}, {"a": "1", "b": "2"})
    assert keep_where(rows, {"a": 1, "b": 2}).rows == [{"a": "1", "b": "2"}]


def test_where_on_an_unknown_column_is_an_error():
    assert message(DataError, keep_where, rows_of({"source": "a"}), {"sourse": "a"}) == (
        "f.csv: data.where needs the column 'sourse'; got columns source; did you mean 'source'?"
    )


def test_where_that_keeps_nothing_shows_the_values_there_are():
    rows = rows_of(*({"source": str(number)} for number in range(7)))
    assert message(DataError, keep_where, rows, {"source": "imdb"}) == (
        "f.csv: data.where must keep at least one row; got none of 7 with source = 'imdb'; source"
        " has the values '0', '1', '2', '3', '4', ..."
    )


class Plain(Transform):
    Config = PluginConfig

    def __init__(self):
        super().__init__(PluginConfig())


class Upper(Plain):
    name = "upper"

    def __call__(self, row):
        row["text"] = row["text"].upper()
        return row


class DropShort(Plain):
    name = "drop_short"

    def __call__(self, row):
        return row if len(row["text"]) > 1 else None


class AddColumn(Plain):
    name = "add"

    def __call__(self, row):
        return {"made": row["text"]}


class Fails(Plain):
    name = "fails"

    def __call__(self, row):
        return {"text": row["txt"]}


class Wrong(Plain):
    name = "wrong"

    def __call__(self, row):
        return "text"


def test_transforms_apply_in_order_and_count_what_they_drop():
    rows = rows_of({"text": "ab"}, {"text": "c"})
    changed, dropped = apply_transforms(rows, [Upper(), DropShort(), AddColumn()])
    assert changed.rows == [{"made": "AB"}] and changed.columns == ("made",)
    assert str(changed.rows[0].origin) == "f.csv:2"
    assert dropped == {"upper": 0, "drop_short": 1, "add": 0}
    assert rows.rows[0] == {"text": "ab"}


def test_transform_that_raises_is_named_with_the_row():
    assert message(DataError, apply_transforms, rows_of({"text": "a"}), [Fails()]) == (
        "f.csv:2: transform 'fails' must return a row or None; it raised KeyError: 'txt'"
    )


def test_transform_that_returns_no_row_is_named():
    assert message(DataError, apply_transforms, rows_of({"text": "a"}), [Wrong()]) == (
        "f.csv:2: transform 'wrong' must return a row or None; got str"
    )


def test_transform_that_drops_everything_is_an_error():
    assert message(DataError, apply_transforms, rows_of({"text": "a"}), [DropShort()]) == (
        "f.csv: transform 'drop_short' must leave at least one row; got none of 1"
    )
