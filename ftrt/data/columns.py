"""From a file's columns to the head's: keep the rows wanted, change them, name their columns."""

__all__ = ["apply_transforms", "keep_where", "map_columns"]

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ftrt.data.rows import BadRows, OnBadRow, Row, Rows, list_names
from ftrt.errors import ConfigError, DataError, suggest

if TYPE_CHECKING:
    from ftrt.api import Transform

FILLED = "a column the head needs must hold a value"


def keep_where(rows: Rows, where: Mapping[str, str | int]) -> Rows:
    """The rows whose columns equal the given values, compared as text (a CSV holds nothing else).

    Raises:
        DataError: no row has such a column, or no row has these values.
    """
    for column in where:
        if column not in rows.columns:
            raise DataError(
                f"{rows.file}: data.where needs the column {column!r}; got columns"
                f" {list_names(rows.columns)}{_near(column, rows.columns)}"
            )
    wanted = {column: str(value) for column, value in where.items()}
    kept = [row for row in rows.rows if _matches(row, wanted)]
    if not kept:
        conditions = " and ".join(f"{column} = {value!r}" for column, value in wanted.items())
        seen = "; ".join(_values_seen(rows.rows, column) for column in wanted)
        raise DataError(
            f"{rows.file}: data.where must keep at least one row; got none of {len(rows.rows)} with"
            f" {conditions}; {seen}"
        )
    return replace(rows, rows=kept)


def _matches(row: Row, wanted: Mapping[str, str]) -> bool:
    return all(column in row and value in _texts(row[column]) for column, value in wanted.items())


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, bool):
        # a recipe's `true` may arrive as the number 1
        return ("true", "True", "1") if value else ("false", "False", "0")
    if isinstance(value, float) and value.is_integer():
        return str(value), str(int(value))
    return (str(value),)


def _values_seen(rows: Sequence[Row], column: str) -> str:
    values = list(dict.fromkeys(str(row[column])[:40] for row in rows if column in row))
    more = ", ..." if len(values) > 5 else ""
    return f"{column} has the values {', '.join(map(repr, values[:5]))}{more}"


def apply_transforms(rows: Rows, transforms: Sequence["Transform"]) -> tuple[Rows, dict[str, int]]:
    """Rows after every transform in turn, and how many rows each one dropped, by name.

    Raises:
        DataError: a transform raises or returns something else than a row, or no row is left.
    """
    dropped: dict[str, int] = {}
    for transform in transforms:
        kept = [new for row in rows.rows if (new := _transformed(row, transform)) is not None]
        lost = len(rows.rows) - len(kept)
        dropped[transform.name] = dropped.get(transform.name, 0) + lost
        if not kept:
            raise DataError(
                f"{rows.file}: transform {transform.name!r} must leave at least one row;"
                f" got none of {len(rows.rows)}"
            )
        columns = tuple(dict.fromkeys(name for row in kept for name in row))
        rows = replace(rows, rows=kept, columns=columns)
    return rows, dropped


def _transformed(row: Row, transform: "Transform") -> Row | None:
    where = f"{row.origin}: transform {transform.name!r}"
    try:
        changed: Any = transform(dict(row))
    except Exception as error:
        # a plugin's code may raise anything; the user needs the row it raised on
        fault = f"{type(error).__name__}: {error}"
        raise DataError(f"{where} must return a row or None; it raised {fault}") from error
    if changed is None:
        return None
    if not isinstance(changed, dict):
        raise DataError(f"{where} must return a row or None; got {type(changed).__name__}")
    return Row(changed, row.origin)


def map_columns(
    rows: Rows,
    head_columns: Mapping[str, str],
    optional: frozenset[str],
    mapping: Mapping[str, str],
    *,
    on_bad_row: OnBadRow = "raise",
) -> Rows:
    """Rows with the head's column names and no other column.

    A column that is null, blank or an empty list is left out of its row where it is optional, and
    makes the row a bad one where it is not.

    Args:
        rows: what was read.
        head_columns: the head's columns, each with what it holds.
        optional: those of them that may be absent.
        mapping: the head's column -> the file's column; a head column not in it keeps its name.
        on_bad_row: what to do with a row that lacks a value it needs.

    Raises:
        ConfigError: `mapping` names a column the head does not have.
        DataError: the file lacks a column the head needs, or a row is bad, or none is left.
    """
    sources = _sources(rows, head_columns, optional, mapping)
    bad = BadRows(on_bad_row)
    mapped = [new for row in rows.rows if (new := _mapped(row, sources, optional, bad)) is not None]
    if not mapped:
        raise DataError(
            f"{rows.file}: must hold at least one usable row; got {'; '.join(bad.summary())}"
        )
    return Rows(
        rows.file,
        tuple(sources),
        mapped,
        [*rows.skipped, *bad.summary()],
        rows.skipped_rows + bad.count,
    )


def _sources(
    rows: Rows,
    head_columns: Mapping[str, str],
    optional: frozenset[str],
    mapping: Mapping[str, str],
) -> dict[str, str]:
    for column in mapping:
        if column not in head_columns:
            raise ConfigError(
                f"data.columns: the keys must be columns of the head ({', '.join(head_columns)});"
                f" got {column!r}{_near(column, head_columns)}"
            )
    sources = {column: mapping.get(column, column) for column in head_columns}
    for column, source in sources.items():
        if source not in rows.columns and (column not in optional or column in mapping):
            raise DataError(_missing(rows, column, source, head_columns[column]))
    present = {column: source for column, source in sources.items() if source in rows.columns}
    if not present:
        raise DataError(
            f"{rows.file}: must have a column the head reads ({', '.join(head_columns)}); got"
            f" columns {list_names(rows.columns)}; name one with data.columns, say"
            f" {_example(head_columns)}"
        )
    return present


def _missing(rows: Rows, column: str, source: str, description: str) -> str:
    got = f"got columns {list_names(rows.columns)}{_near(source, rows.columns)}"
    if source != column:
        given = f"that data.columns gives for {column!r}"
        return f"{rows.file}: must have the column {source!r} {given}; {got}"
    return (
        f"{rows.file}: must have the column {column!r} ({description}); {got}"
        f"; or name it with data.columns, say {_example([column])}"
    )


def _example(columns: Sequence[str] | Mapping[str, str]) -> str:
    return f"{{{next(iter(columns))}: YOUR_COLUMN}}"


def _mapped(
    row: Row, sources: Mapping[str, str], optional: frozenset[str], bad: BadRows
) -> Row | None:
    values = {}
    for column, source in sources.items():
        value = row.get(source)
        if not _is_empty(value):
            values[column] = value
        elif column not in optional:
            got = f"no key {source!r}" if source not in row else f"{value!r} in {source!r}"
            bad.add(row.origin, FILLED, got)
            return None
    if not values:
        bad.add(row.origin, FILLED, f"nothing in {', '.join(sources.values())}")
        return None
    return Row(values, row.origin)


def _is_empty(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, float):
        # a missing value in a numeric Parquet column written by other tools
        return math.isnan(value)
    return value is None or (isinstance(value, (list, dict)) and not value)


def _near(name: str, known: Sequence[str] | Mapping[str, str]) -> str:
    hint = suggest(name, known)
    return hint if "did you mean" in hint else ""
