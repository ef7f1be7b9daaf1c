"""Every format read into rows with their places, and every way a file or a line can be bad."""

import csv
import json
import os

import pyarrow
import pytest
from pyarrow import parquet

from ftrt.data.formats import read_rows
from ftrt.data.rows import Origin, Row
from ftrt.errors import DataError


@pytest.fixture
def write(tmp_path):
    def write_file(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return path

    return write_file


def fails(path, on_bad_row="raise"):
    with pytest.raises(DataError) as caught:
        read_rows(path, on_bad_row=on_bad_row)
    return str(caught.value)


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.JSONL"])
def test_json_lines_keep_values_order_and_line_numbers(write, name):
    read = read_rows(write(name, '{"a": 1}\n\n{"a": null, "b": [2]}\r\n'), on_bad_row="raise")
    assert read.rows == [{"a": 1}, {"a": None, "b": [2]}]
    assert [row.origin.number for row in read.rows] == [1, 3]
    assert read.columns == ("a", "b")
    assert read.skipped == [] and read.skipped_rows == 0


def test_json_list_counts_records(write):
    path = write("a.json", '[{"a": "x"},\n {"a": "y"}]')
    read = read_rows(path, on_bad_row="raise")
    assert read.rows == [{"a": "x"}, {"a": "y"}]
    assert str(read.rows[1].origin) == f"{path}: row 2"


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_byte_order_mark_is_accepted(write, name):
    content = {"a.jsonl": '{"é": "1"}', "a.json": '[{"é": "1"}]', "a.csv": "é\n1\n"}[name]
    read = read_rows(write(name, b"\xef\xbb\xbf" + content.encode()), on_bad_row="raise")
    assert read.rows == [{"é": "1"}]


def test_csv_follows_rfc_4180(write):
    path = write("a.csv", 'text,label\r\n"a, ""b""\r\nc",1\r\n\r\nd,"2"\r\n')
    read = read_rows(path, on_bad_row="raise")
    assert read.rows == [{"text": 'a, "b"\r\nc', "label": "1"}, {"text": "d", "label": "2"}]
    # the second record starts on line 5: a quoted field spans two lines, and line 4 is blank
    assert [str(row.origin) for row in read.rows] == [f"{path}:2", f"{path}:5"]


def test_tsv_splits_at_tabs(write):
    read = read_rows(write("a.tsv", "text\tlabel\na, b\t1\n"), on_bad_row="raise")
    assert read.rows == [{"text": "a, b", "label": "1"}]


def test_csv_field_may_be_longer_than_pythons_limit_which_stays_as_it_was(write):
    before = csv.field_size_limit()
    read = read_rows(write("a.csv", f"text\n{'x' * 300_000}\n"), on_bad_row="raise")
    assert len(read.rows[0]["text"]) == 300_000
    assert csv.field_size_limit() == before


def test_parquet_gives_python_values(tmp_path):
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"text": ["a", None], "ids": [[1, 2], []], "n": [1.5, float("nan")]})
    parquet.write_table(table, path)
    read = read_rows(path, on_bad_row="raise")
    assert read.columns == ("text", "ids", "n")
    assert read.rows[0] == {"text": "a", "ids": [1, 2], "n": 1.5}
    assert str(read.rows[1].origin) == f"{path}: row 2"


def test_rows_are_plain_dicts_to_json_and_pickle():
    import pickle

    row = Row({"a": 1}, Origin("f", 3))
    again = pickle.loads(pickle.dumps(row))
    assert json.dumps(row) == '{"a": 1}' and again == {"a": 1} and str(again.origin) == "f:3"


def test_missing_file_names_the_nearest(write):
    path = write("train.jsonl", "{}")
    wrong = path.with_name("trian.jsonl")
    assert fails(wrong) == (
        f"{wrong}: the data file must exist; got no such file; did you mean 'train.jsonl'?"
    )


def test_missing_folder_is_said(tmp_path):
    path = tmp_path / "no" / "train.jsonl"
    assert fails(path) == f"{path}: the data file must exist; got no folder {tmp_path / 'no'}"


def test_folder_lists_the_data_files_in_it(write):
    folder = write("train.jsonl", "{}").parent
    assert fails(folder) == f"{folder}: the data must be a file; got a folder; it holds train.jsonl"


@pytest.mark.parametrize(
    ("name", "got"), [("a.txt", "'.txt'"), ("a", "none"), ("a.csv.gz", "'.gz'")]
)
def test_unknown_suffix_lists_the_known(write, name, got):
    path = write(name, "x")
    assert fails(path) == (
        f"{path}: the suffix must be one of .jsonl, .ndjson, .json, .csv, .tsv, .parquet; got {got}"
    )


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv"])
def test_empty_file_is_said(write, name):
    path = write(name, "")
    assert fails(path) == f"{path}: must hold at least one usable row; got an empty file"


@pytest.mark.parametrize(
    ("name", "content"), [("a.csv", "text,label\n"), ("a.json", "[]"), ("a.jsonl", "\n \n")]
)
def test_file_without_rows_is_said(write, name, content):
    path = write(name, content)
    assert fails(path) == f"{path}: must hold at least one usable row; got none"


def test_file_without_permission_is_said(write, monkeypatch):
    path = write("a.jsonl", "{}")

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "open", refuse)
    assert fails(path) == f"{path}: the data file must be readable; got Permission denied"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_without_permission_is_said_by_the_system(write):
    path = write("a.csv", "a\n1\n")
    path.chmod(0)
    assert fails(path) == f"{path}: the data file must be readable; got Permission denied"


def test_corrupt_parquet_is_said(write):
    path = write("a.parquet", b"PAR1 but no more")
    assert fails(path).startswith(
        f"{path}: must be a readable Parquet file; got Parquet magic bytes"
    )


def test_truncated_parquet_is_said(tmp_path):
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"a": list(range(1000))}), path)
    path.write_bytes(path.read_bytes()[:-200])
    assert fails(path).startswith(f"{path}: must be a readable Parquet file; got ")


def test_empty_parquet_is_said(tmp_path):
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"a": pyarrow.array([], pyarrow.string())}), path)
    assert fails(path) == f"{path}: must hold at least one usable row; got none"


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_column_named_twice_is_an_error(write, name):
    mark = "," if name == "a.csv" else "\t"
    path = write(name, f"text{mark}text\na{mark}b\n")
    assert fails(path) == f"{path}: each column must be named once; got 'text' 2 times"


def test_json_file_of_lines_points_to_jsonl(write):
    path = write("a.json", '{"a": 1}\n{"a": 2}\n')
    assert fails(path) == (
        f"{path}:2: the file must hold one JSON list of objects; got text that is not JSON"
        " (Extra data at column 1); one object a line belongs in a .jsonl file"
    )


@pytest.mark.parametrize(
    ("content", "got"),
    [
        ("3", "a number"),
        ('{"a": 1}', "an object; one object a line belongs in a .jsonl file"),
    ],
)
def test_json_that_is_no_list_is_said(write, content, got):
    path = write("a.json", content)
    assert fails(path) == f"{path}: the file must hold one JSON list of objects; got {got}"


def test_cut_off_json_list_is_said_with_its_line(write):
    path = write("a.json", '[{"a": 1},\n {"a": "x')
    assert fails(path) == (
        f"{path}:2: the file must hold one JSON list of objects; got JSON that is cut off"
        " (Unterminated string starting at at column 8)"
    )


def test_json_list_in_another_encoding_is_said(write):
    path = write("a.json", '[{"a": "é"}]'.encode("latin-1"))
    assert fails(path) == (
        f"{path}: text must be UTF-8; got byte 0xe9 at offset 8 of the file; save the file as UTF-8"
    )


FIX = "; mend it, or drop such rows with data.on_bad_row: skip"
GOOD = b'{"a": "ok"}\n'
BAD_LINES = [
    (b'{"a": "x', "a line must be one JSON object; got JSON that is cut off (Unterminated string"
     " starting at at column 7)"),
    (b'{"a": 1', "a line must be one JSON object; got JSON that is cut off (Expecting ',' delimiter"
     " at column 8)"),
    (b"a: 1", "a line must be one JSON object; got text that is not JSON (Expecting value at column"
     " 1)"),
    (b"[1]", "a line must be one JSON object; got a list"),
    (b"3", "a line must be one JSON object; got a number"),
    (b"null", "a line must be one JSON object; got null"),
    (b'"x"', "a line must be one JSON object; got a string"),
    (b"true", "a line must be one JSON object; got a boolean"),
    (b'{"a": NaN}', "a line must be one JSON object; got NaN, which is not JSON; write null"),
    (b"[" * 200_000, "a line must be one JSON object; got values nested too deeply"),
    (b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", "a line must be one JSON object; got values nested"
     " too deeply"),
    (b'{"a": "\xe9"}', "text must be UTF-8; got byte 0xe9 at offset 19 of the file"),
    (b'{"a": "\0"}', "text must not hold NUL bytes; got one at offset 19 of the file"),
    (b'{"a": "\\ud800"}', "text must be valid Unicode; got half of a surrogate pair, written"
     " \\ud800 to \\udfff"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "message"), BAD_LINES)
def test_bad_json_line_is_named_with_its_number_and_reason(write, line, message):
    path = write("a.jsonl", GOOD + line + b"\n" + GOOD)
    assert fails(path) == f"{path}:2: {message}{FIX}"


@pytest.mark.parametrize(("line", "message"), BAD_LINES)
def test_bad_json_line_is_skipped_and_counted_when_asked(write, line, message):
    path = write("a.jsonl", GOOD + line + b"\n" + GOOD)
    read = read_rows(path, on_bad_row="skip")
    assert [row.origin.number for row in read.rows] == [1, 3]
    assert read.skipped == [f"1 row skipped: {message.partition(';')[0]} ({path}:2)"]
    assert read.skipped_rows == 1


def test_utf16_file_is_recognised(write):
    path = write("a.jsonl", '{"a": 1}\n'.encode("utf-16"))
    assert fails(path).startswith(
        f"{path}:1: text must be UTF-8; got byte 0xff at offset 0 of the file, which is how UTF-16"
    )


def test_skipping_names_five_rows_and_counts_the_rest(write):
    path = write("a.jsonl", GOOD + b"x\n" * 12 + b"[]\n")
    read = read_rows(path, on_bad_row="skip")
    places = ", ".join(f"{path}:{line}" for line in range(2, 7))
    assert read.skipped == [f"13 rows skipped: a line must be one JSON object ({places}, ...)"]
    assert read.skipped_rows == 13


def test_file_of_bad_rows_only_is_an_error_when_skipping(write):
    path = write("a.jsonl", "x\ny\n")
    assert fails(path, "skip") == (
        f"{path}: must hold at least one usable row; got 2 rows skipped: a line must be one JSON"
        f" object ({path}:1, {path}:2)"
    )


def test_bad_record_of_a_json_list_is_named(write):
    path = write("a.json", '[{"a": 1}, 2]')
    assert fails(path) == f"{path}: row 2: a record must be a JSON object; got a number{FIX}"


BAD_RECORDS = [
    (b"a\n", "a record must have as many fields as the header; got 1 for the 2 columns text,"
     " label"),
    (b"a,b,c\n", "a record must have as many fields as the header; got 3 for the 2 columns text,"
     " label"),
    (b'"a"b,1\n', "quotes must follow RFC 4180; got ',' expected after '\"'"),
    (b"\xe9,1\n", "text must be UTF-8; got byte 0xe9 at offset 16 of the file"),
    (b"a\0,1\n", "text must not hold NUL bytes; got one at offset 17 of the file"),
]  # fmt: skip


@pytest.mark.parametrize(("record", "message"), BAD_RECORDS)
def test_bad_csv_record_is_named_with_its_line_and_reason(write, record, message):
    path = write("a.csv", b"text,label\nx,0\n\n" + record + b"y,1\n")
    assert fails(path) == f"{path}:4: {message}{FIX}"


@pytest.mark.parametrize(("record", "message"), BAD_RECORDS)
def test_bad_csv_record_is_skipped_and_counted_when_asked(write, record, message):
    path = write("a.csv", b"text,label\nx,0\n\n" + record + b"y,1\n")
    read = read_rows(path, on_bad_row="skip")
    assert [row["text"] for row in read.rows] == ["x", "y"]
    assert read.skipped == [f"1 row skipped: {message.partition(';')[0]} ({path}:4)"]


def test_bad_byte_inside_a_quoted_field_is_reported_at_the_record(write):
    path = write("a.csv", b'text,label\n"a\nb\xff",1\nc,2\n')
    read = read_rows(path, on_bad_row="skip")
    assert [row["text"] for row in read.rows] == ["c"]
    assert read.skipped == [f"1 row skipped: text must be UTF-8 ({path}:2)"]


@pytest.mark.parametrize("on_bad_row", ["raise", "skip"])
def test_quote_that_is_never_closed_is_always_an_error(write, on_bad_row):
    path = write("a.csv", 'text,label\na,0\n"b,1\nc,2\n')
    assert fails(path, on_bad_row) == (
        f"{path}:3: quotes must follow RFC 4180; got a quote that is still open at the end of the"
        " file (line 4); close it, and double the quotes inside a quoted field"
    )


def test_header_that_is_not_text_is_always_an_error(write):
    path = write("a.csv", b"te\xffxt,label\na,0\n")
    assert fails(path, "skip") == (
        f"{path}:1: text must be UTF-8; got byte 0xff at offset 2 of the file in the line that"
        " names the columns"
    )
