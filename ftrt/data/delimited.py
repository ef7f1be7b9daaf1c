"""CSV and TSV with a header row, quoted as RFC 4180 says."""

__all__ = ["read_delimited"]

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ftrt.data.jsonl import BOM, byte_fault
from ftrt.data.rows import BadRows, Origin, Row, check_names, list_names
from ftrt.errors import DataError

FIELDS = "a record must have as many fields as the header"
QUOTING = "quotes must follow RFC 4180"
# the largest that a C long holds everywhere; Python's own 128 KiB is shorter than some documents
FIELD_LIMIT = 2**31 - 1


class _Lines:
    """Decoded lines for `csv.reader`, with the first byte fault met since the last `take_fault`."""

    def __init__(self, lines: Iterator[bytes]) -> None:
        self._lines = lines
        self._offset = 0
        self._fault: tuple[str, str] | None = None
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        for raw in self._lines:
            self.number += 1
            self._fault = self._fault or byte_fault(raw, self._offset)
            text = raw.removeprefix(BOM if self._offset == 0 else b"")
            self._offset += len(raw)
            yield text.decode("utf-8", "replace")

    def take_fault(self) -> tuple[str, str] | None:
        fault, self._fault = self._fault, None
        return fault


def read_delimited(path: Path, bad: BadRows, *, delimiter: str) -> tuple[list[str], list[Row]]:
    """The header and the rows of a delimited file; values are strings, blank lines are passed over.

    Raises:
        DataError: no header, a column named twice, or a quote that is never closed: the rows after
            it cannot be told apart, so that one is raised under `skip` as well.
    """
    with _any_field_size(), path.open("rb") as file:
        lines = _Lines(iter(file))
        records = _records(path, lines, delimiter, bad)
        header = next(records, None)
        if header is None:
            raise DataError(f"{path}: the first line must name the columns; got an empty file")
        columns = header[1]
        check_names(str(path), columns)
        rows = []
        for origin, record in records:
            if len(record) == len(columns):
                rows.append(Row(dict(zip(columns, record, strict=True)), origin))
            else:
                got = f"{len(record)} for the {len(columns)} columns {list_names(columns)}"
                bad.add(origin, FIELDS, got)
        return columns, rows


def _records(
    path: Path, lines: _Lines, delimiter: str, bad: BadRows
) -> Iterator[tuple[Origin, list[str]]]:
    """Each non-blank record with the line it starts on; faulty ones go to `bad`."""
    reader = csv.reader(iter(lines), delimiter=delimiter, strict=True)
    is_header = True
    while True:
        origin = Origin(str(path), lines.number + 1)
        fault = None
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            record, fault = [], (QUOTING, _quoting_fault(error, origin, lines.number))
        fault = lines.take_fault() or fault
        if fault and is_header:
            raise DataError(
                f"{origin}: {fault[0]}; got {fault[1]} in the line that names the columns"
            )
        if fault:
            bad.add(origin, *fault)
        elif record:
            is_header = False
            yield origin, record


def _quoting_fault(error: csv.Error, origin: Origin, last_line: int) -> str:
    if "unexpected end of data" in str(error):
        raise DataError(
            f"{origin}: {QUOTING}; got a quote that is still open at the end of the file"
            f" (line {last_line}); close it, and double the quotes inside a quoted field"
        ) from None
    span = f" in lines {origin.number} to {last_line}" if last_line > origin.number else ""
    return f"{error}{span}"


@contextmanager
def _any_field_size() -> Iterator[None]:
    """Lift `csv`'s limit, which is the process's, and put it back."""
    before = csv.field_size_limit(FIELD_LIMIT)
    try:
        yield
    finally:
        csv.field_size_limit(before)
