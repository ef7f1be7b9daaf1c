"""From a recipe's data section to training, validation and test rows."""

__all__ = ["Splits", "load_rows", "load_splits", "read_prediction_rows"]

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftrt.data.assets import is_asset, resolve
from ftrt.data.catalog import ASSETS, Asset, find_asset
from ftrt.data.columns import apply_transforms, keep_where, map_columns
from ftrt.data.formats import SUFFIXES, read_rows
from ftrt.data.rows import OnBadRow, Row, Rows
from ftrt.data.splits import Partition, parse_amount, split
from ftrt.data.texts import ANSWER_COLUMNS
from ftrt.errors import ConfigError, DataError
from ftrt.recipe import DataSection

if TYPE_CHECKING:
    from ftrt.api import Transform


@dataclass(frozen=True)
class Splits:
    """Rows ready for a head.

    Attributes:
        train: rows with the head's columns, in seeded order.
        validation: rows, or None where the recipe asks for none.
        test: rows; empty where the recipe asks for none.
        report: JSON values: `files` (by split: what was read, skipped and dropped), `splits`
            (rows of each), and the counts of `ftrt.data.splits.split`.
        fingerprint: sha256 over the rows of all splits in order; file names do not enter.
    """

    train: list[Row]
    validation: list[Row] | None
    test: list[Row]
    report: dict[str, Any]
    fingerprint: str


def load_splits(
    section: DataSection,
    *,
    columns: Mapping[str, str],
    optional: frozenset[str],
    transforms: Sequence["Transform"] = (),
    answers: frozenset[str] = ANSWER_COLUMNS,
) -> Splits:
    """Read, filter, transform, map and divide what the section names; deterministic.

    Args:
        section: the recipe's `data`.
        columns: the head's columns, each with what it holds.
        optional: those of them that a row may lack.
        transforms: applied in order to every file's rows, before the columns are mapped.
        answers: head columns that are not part of a row's text, see `split`.

    Raises:
        ConfigError: the section cannot be followed.
        DataError: the data does not fit it.
    """
    if section.train is None:
        raise ConfigError(
            f"data.train: must name a file ({', '.join(SUFFIXES)}) or a data set ({_datasets()});"
            " got nothing"
        )
    wanted = {"validation": section.validation, "test": section.test}
    amounts = {
        name: parse_amount(value, f"data.{name}")
        for name, value in wanted.items()
        if value is not None
    }
    files: dict[str, dict[str, Any]] = {}

    def read(name: str, source: str) -> list[Row]:
        rows, files[name] = load_rows(
            source, section, columns=columns, optional=optional, transforms=transforms
        )
        return rows

    train = read("train", section.train)
    given = {name: amount or read(name, str(wanted[name])) for name, amount in amounts.items()}
    parts = split(
        train,
        validation=given.get("validation"),
        test=given.get("test"),
        seed=section.seed,
        limit=section.limit,
        answers=answers,
    )
    sizes = {name: len(rows) for name, rows in _named(parts)}
    report = {"files": files, "splits": sizes, **parts.counts}
    return Splits(parts.train, parts.validation, parts.test, report, _fingerprint(_named(parts)))


def load_rows(
    source: str,
    section: DataSection,
    *,
    columns: Mapping[str, str],
    optional: frozenset[str],
    transforms: Sequence["Transform"] = (),
) -> tuple[list[Row], dict[str, Any]]:
    """All rows of one file or `asset:NAME`, with the head's columns, and a JSON-able report.

    The section gives `where`, `columns` and `on_bad_row`; a data-set asset brings defaults for the
    first two.

    Raises:
        ConfigError: the section's `columns` name a column the head does not have.
        DataError: the source cannot be read or does not fit the head.
    """
    asset, raw = _read(source, section.on_bad_row)
    where = {**(asset.where if asset else {}), **section.where}
    kept = keep_where(raw, where)
    changed, dropped = apply_transforms(kept, transforms)
    mapping = {**_default_columns(asset, columns, changed), **section.columns}
    mapped = map_columns(changed, columns, optional, mapping, on_bad_row=section.on_bad_row)
    report = {
        "source": source,
        "read": len(raw.rows) + raw.skipped_rows,
        "skipped": mapped.skipped_rows,
        "skipped_reasons": mapped.skipped,
        "not_where": len(raw.rows) - len(kept.rows),
        "dropped_by_transforms": dropped,
        "rows": len(mapped.rows),
    }
    return mapped.rows, report


def read_prediction_rows(
    source: str | Path,
    *,
    columns: Mapping[str, str],
    mapping: Mapping[str, str],
    optional: frozenset[str] | None = None,
    transforms: Sequence["Transform"] = (),
    on_bad_row: OnBadRow = "raise",
    answers: frozenset[str] = ANSWER_COLUMNS,
) -> list[Row]:
    """Rows of a file to be answered, with the head's columns; the answers need not be there.

    Args:
        source: a file or `asset:NAME`; every row of it is read.
        columns: the head's columns.
        mapping: the training recipe's `data.columns`; a file that has the head's own name instead
            is taken as well.
        optional: columns a row may lack beside the answers; None for all, the head then judges.
        transforms: the training recipe's, so that the model sees rows as in training.
        on_bad_row: what to do with a row that cannot be used.
        answers: the head's columns that hold what is asked for.

    Raises:
        ConfigError, DataError: as `load_rows`.
    """
    asset, raw = _read(str(source), on_bad_row)
    rows, _ = apply_transforms(raw, transforms)
    named = {
        head: name
        for head, name in mapping.items()
        if name in rows.columns or (head not in rows.columns and head not in answers)
    }
    named = {**_default_columns(asset, columns, rows), **named}
    optional = frozenset(columns) if optional is None else optional | answers
    return map_columns(rows, columns, optional, named, on_bad_row=on_bad_row).rows


def _read(source: str, on_bad_row: OnBadRow) -> tuple[Asset | None, Rows]:
    asset = _dataset(source) if is_asset(source) else None
    rows = read_rows(resolve(source), on_bad_row=on_bad_row)
    return asset, rows if asset is None else _select_fields(rows, asset.fields)


def _dataset(source: str) -> Asset:
    asset = find_asset(source)
    if asset.kind != "dataset":
        raise DataError(f"{source}: must be a data set ({_datasets()}); got a {asset.kind}")
    return asset


def _datasets() -> str:
    return ", ".join(f"asset:{asset.name}" for asset in ASSETS.values() if asset.kind == "dataset")


def _select_fields(rows: Rows, fields: Mapping[str, str]) -> Rows:
    if not fields:
        return rows
    selected = [
        Row({name: _at(row, path) for name, path in fields.items()}, row.origin)
        for row in rows.rows
    ]
    return replace(rows, rows=selected, columns=tuple(fields))


def _at(record: Any, path: str) -> Any:
    for key in path.split("."):
        record = record.get(key) if isinstance(record, Mapping) else None
    return record


def _default_columns(asset: Asset | None, columns: Mapping[str, str], rows: Rows) -> dict[str, str]:
    """The asset's own mapping, where the head has the column and no transform has made it."""
    own = asset.columns if asset else {}
    return {
        head: source for head, source in own.items() if head in columns and head not in rows.columns
    }


def _named(parts: Partition) -> list[tuple[str, list[Row]]]:
    return [("train", parts.train), ("validation", parts.validation or []), ("test", parts.test)]


def _fingerprint(splits: Iterable[tuple[str, Sequence[Row]]]) -> str:
    digest = hashlib.sha256()
    for name, rows in splits:
        digest.update(f"{name} {len(rows)}\n".encode())
        for row in rows:
            text = json.dumps(row, sort_keys=True, ensure_ascii=False, default=repr)
            digest.update(text.encode("utf-8") + b"\n")
    return digest.hexdigest()
