"""Class labels: how values of a file become names, and in which order they stand."""

__all__ = ["label_name", "learn_labels", "order_labels"]

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ftrt.errors import DataError

# Few-shot sets have few rows a class; free text taken for a label has a class a row.
_FEWEST_ROWS_TO_JUDGE = 20
_MOST_LABELS_PER_ROW = 0.5


def label_name(value: Any) -> str | None:
    """The name of a label value, the same for 1, 1.0 and "1"; None where there is no label.

    Raises:
        DataError: the value is a list or a mapping.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, (list, tuple, dict)):
        raise DataError(
            f"column 'label': must hold one label; got {type(value).__name__} {value!r}"
        )
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() or None


def order_labels(names: Iterable[str]) -> list[str]:
    """Distinct names in order: by number where all look like numbers, else by text."""
    distinct = sorted(set(names))
    if all(_is_number(name) for name in distinct):
        return sorted(distinct, key=float)
    return distinct


def learn_labels(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The ordered label names of training rows; rows without a label are passed over.

    Raises:
        DataError: fewer than two classes, or nearly as many as rows.
    """
    names = [name for row in rows if (name := label_name(row.get("label"))) is not None]
    labels = order_labels(names)
    if len(labels) < 2:
        raise DataError(
            "head 'sequence_classification': the training rows must hold at least two labels; got"
            f" {labels} in {len(rows)} rows; check data.columns and data.where"
        )
    if len(names) > _FEWEST_ROWS_TO_JUDGE and len(labels) > _MOST_LABELS_PER_ROW * len(names):
        raise DataError(
            "head 'sequence_classification': labels must repeat to be classes; got"
            f" {len(labels)} labels in {len(names)} rows, {labels[0][:40]!r} among them; map the"
            " right column to label, or list the classes under head.labels"
        )
    return labels


def _is_number(name: str) -> bool:
    try:
        return math.isfinite(float(name))
    except ValueError:
        return False
