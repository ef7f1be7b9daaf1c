"""A row of data that remembers where it stood, and the account of rows that could not be used."""

__all__ = ["BadRows", "OnBadRow", "Origin", "Row", "Rows", "check_names", "list_names", "origin_of"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from ftrt.errors import DataError

OnBadRow = Literal["raise", "skip"]

# offending rows named for each reason; the rest are only counted
SHOWN_ROWS = 5
SHOWN_COLUMNS = 20


class Origin(NamedTuple):
    """Where a row stood, from 1: reads `file:12` for a line, `file: row 12` for a record."""

    file: str
    number: int
    unit: Literal["line", "row"] = "line"

    def __str__(self) -> str:
        return f"{self.file}:{'' if self.unit == 'line' else ' row '}{self.number}"


class Row(dict[str, Any]):
    """One row's values by column: a plain dict to whoever reads it, with the place it came from."""

    __slots__ = ("origin",)

    def __init__(self, values: Mapping[str, Any], origin: Origin) -> None:
        super().__init__(values)
        self.origin = origin


def origin_of(row: Mapping[str, Any], index: int) -> str:
    """Where `row` stood, or its place in its list (from 1) where it was made in memory."""
    return str(row.origin) if isinstance(row, Row) else f"row {index + 1}"


@dataclass(frozen=True)
class Rows:
    """What was read from one file.

    Attributes:
        file: the file's name, for messages.
        columns: every column that any row has, in order of appearance.
        rows: the usable rows, in the file's order.
        skipped: one line for each reason that cost rows, with counts and the first places.
        skipped_rows: how many rows those are.
    """

    file: str
    columns: tuple[str, ...]
    rows: list[Row]
    skipped: list[str] = field(default_factory=list)
    skipped_rows: int = 0


def list_names(columns: Sequence[str]) -> str:
    """Column names for a message; a very wide file shows its first ones."""
    return ", ".join(columns[:SHOWN_COLUMNS]) + (", ..." if len(columns) > SHOWN_COLUMNS else "")


def check_names(file: str, columns: Sequence[str]) -> None:
    """Refuse a file that names a column twice: one of the two would be lost."""
    for name in columns:
        if columns.count(name) > 1:
            times = f"{name!r} {columns.count(name)} times"
            raise DataError(f"{file}: each column must be named once; got {times}")


class BadRows:
    """Raises at the first bad row, or keeps count of them, as `data.on_bad_row` says."""

    def __init__(self, on_bad_row: OnBadRow) -> None:
        self._raises = on_bad_row == "raise"
        self._places: dict[str, list[Origin]] = {}
        self._counts: dict[str, int] = {}

    def add(self, origin: Origin, must: str, got: str) -> None:
        """Account for a row that breaks `must`.

        Raises:
            DataError: bad rows are to be raised.
        """
        if self._raises:
            fix = "mend it, or drop such rows with data.on_bad_row: skip"
            raise DataError(f"{origin}: {must}; got {got}; {fix}")
        self._counts[must] = self._counts.get(must, 0) + 1
        places = self._places.setdefault(must, [])
        if len(places) < SHOWN_ROWS:
            places.append(origin)

    @property
    def count(self) -> int:
        """How many rows were skipped."""
        return sum(self._counts.values())

    def summary(self) -> list[str]:
        """One line a reason: how many rows, which rule they break, the first of them."""
        return [self._line(must, count) for must, count in self._counts.items()]

    def _line(self, must: str, count: int) -> str:
        places = self._places[must]
        more = ", ..." if count > len(places) else ""
        rows = "1 row" if count == 1 else f"{count} rows"
        return f"{rows} skipped: {must} ({', '.join(map(str, places))}{more})"
