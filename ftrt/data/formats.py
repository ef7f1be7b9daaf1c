"""Read a data file by its suffix into rows that know their line."""

__all__ = ["SUFFIXES", "read_rows"]

from pathlib import Path

from ftrt.data.delimited import read_delimited
from ftrt.data.jsonl import read_json_lines, read_json_list
from ftrt.data.parquet import read_parquet
from ftrt.data.rows import BadRows, OnBadRow, Row, Rows
from ftrt.errors import DataError, suggest

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")


def read_rows(path: Path, *, on_bad_row: OnBadRow) -> Rows:
    """Read every row of a file.

    Args:
        path: JSON lines (.jsonl, .ndjson), a JSON list of objects (.json), .csv or .tsv with a
            header (all values strings), or .parquet; text is UTF-8, a byte-order mark is allowed.
        on_bad_row: "raise" stops at the first bad row; "skip" leaves such rows out and counts.

    Raises:
        DataError: the file is missing, unreadable, of an unknown kind, or without a usable row; or
            a row is bad and `on_bad_row` is "raise".
    """
    bad = BadRows(on_bad_row)
    try:
        _check_path(path)
        columns, rows = _read(path, bad)
    except OSError as error:
        raise DataError(f"{path}: the data file must be readable; got {error.strerror}") from None
    if not rows:
        raise DataError(f"{path}: must hold at least one usable row; got {_nothing(path, bad)}")
    return Rows(str(path), tuple(columns), rows, bad.summary(), bad.count)


def _read(path: Path, bad: BadRows) -> tuple[list[str], list[Row]]:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return read_parquet(path)
    if path.stat().st_size == 0:
        return [], []
    if suffix in (".csv", ".tsv"):
        return read_delimited(path, bad, delimiter="\t" if suffix == ".tsv" else ",")
    rows = list(read_json_list(path, bad) if suffix == ".json" else read_json_lines(path, bad))
    return list(dict.fromkeys(name for row in rows for name in row)), rows


def _nothing(path: Path, bad: BadRows) -> str:
    if bad.count:
        return "; ".join(bad.summary())
    return "an empty file" if path.stat().st_size == 0 else "none"


def _check_path(path: Path) -> None:
    if path.is_dir():
        names = sorted(p.name for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
        inside = f"; it holds {', '.join(names[:5])}" if names else ""
        raise DataError(f"{path}: the data must be a file; got a folder{inside}")
    if not path.exists():
        raise DataError(f"{path}: the data file must exist; got {_absence(path)}")
    if path.suffix.lower() not in SUFFIXES:
        got = repr(path.suffix) if path.suffix else "none"
        raise DataError(f"{path}: the suffix must be one of {', '.join(SUFFIXES)}; got {got}")


def _absence(path: Path) -> str:
    if not path.parent.is_dir():
        return f"no folder {path.parent}"
    near = suggest(path.name, (p.name for p in path.parent.iterdir() if p.is_file()))
    return "no such file" + (near if "did you mean" in near else "")
