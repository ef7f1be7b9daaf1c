"""When two rows say the same: a digest of a row's inputs, blind to case, width and spacing."""

__all__ = ["ANSWER_COLUMNS", "input_columns", "seeded_order", "text_key"]

import hashlib
import json
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

# what a model is asked for, by the usual column names; a row's other columns are its input
ANSWER_COLUMNS = frozenset({"label", "labels", "response", "completion", "answer"})

KEY_BYTES = 16


def input_columns(columns: Iterable[str], answers: Collection[str]) -> tuple[str, ...]:
    """The columns that make up a row's text: all but the answers, or all if that leaves none."""
    names = tuple(columns)
    return tuple(name for name in names if name not in answers) or names


def text_key(row: Mapping[str, Any], columns: Sequence[str]) -> bytes:
    """A 16-byte digest of the row's input after NFKC, case folding and folding of white space.

    A row that has none of `columns` is keyed by all it has.
    """
    inputs = {name: row[name] for name in columns if name in row} or dict(row)
    text = json.dumps(_normalised(inputs), ensure_ascii=False, sort_keys=True, default=repr)
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=KEY_BYTES).digest()


def _normalised(value: Any) -> Any:
    if isinstance(value, str):
        # case folding can undo NFKC (Unicode 3.13, definition D146), hence twice
        folded = unicodedata.normalize("NFKC", value).casefold()
        return " ".join(unicodedata.normalize("NFKC", folded).split())
    if isinstance(value, Mapping):
        return {str(key): _normalised(inner) for key, inner in value.items()}
    return [_normalised(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def seeded_order(keys: Iterable[bytes], seed: int) -> list[bytes]:
    """`keys` in an order that depends on the seed and each key alone.

    Not a shuffle by place: the same text falls the same way on every platform and Python, wherever
    it stands in the file, and new rows do not move the old ones.
    """
    salt = f"ftrt split {seed}\0".encode()
    return sorted(keys, key=lambda key: hashlib.blake2b(salt + key, digest_size=KEY_BYTES).digest())
