"""Rows as token ids in compact arrays: what the trainer draws from."""

__all__ = ["EncodedSplit", "encode_split"]

from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch.utils.data import Dataset

from ftrt.data.rows import origin_of
from ftrt.errors import DataError, PluginError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ftrt.api import Encoded, Head

# array's signed integers of 1, 2, 4 and 8 bytes
INTEGER_CODES = "bhiq"


class _IntegerLists:
    """Lists of ints end to end in one array, each value as wide as the largest so far needs.

    256 tokens as a Python list take 2 KiB and more; as token ids 1 KiB, as an attention mask 256 B.
    """

    def __init__(self) -> None:
        self._values = array(INTEGER_CODES[0])
        self._ends = array("q")

    def append(self, values: Any) -> bool:
        """Store a list of ints; False, and nothing stored, where `values` is something else."""
        if not isinstance(values, list):
            return False
        for code in INTEGER_CODES[INTEGER_CODES.index(self._values.typecode) :]:
            try:
                new = array(code, values)
            except OverflowError:
                continue
            except TypeError:
                return False
            if code != self._values.typecode:
                self._values = array(code, self._values)
            self._values.extend(new)
            self._ends.append(len(self._values))
            return True
        return False

    def __getitem__(self, index: int) -> list[int]:
        start = self._ends[index - 1] if index else 0
        return self._values[start : self._ends[index]].tolist()


class EncodedSplit(Dataset[dict[str, Any]]):
    """One split's features by index, for a `DataLoader` whose collate function is the head's.

    Attributes:
        lengths: tokens of each example, in order.
        truncated_rows: examples that `max_length` cut.
        truncated_tokens: how many tokens that cost.
    """

    def __init__(self, encoded: Iterable["Encoded"]) -> None:
        self.lengths: list[int] = []
        self.truncated_rows = 0
        self.truncated_tokens = 0
        self._columns: dict[str, _IntegerLists | list[Any]] = {}
        for example in encoded:
            self._append(example)

    @property
    def tokens(self) -> int:
        """Tokens of all examples together, without padding."""
        return sum(self.lengths)

    def summary(self) -> dict[str, int]:
        """Counts for the run report."""
        return {
            "rows": len(self),
            "tokens": self.tokens,
            "truncated_rows": self.truncated_rows,
            "truncated_tokens": self.truncated_tokens,
        }

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        place = range(len(self))[index]
        return {name: column[place] for name, column in self._columns.items()}

    def _append(self, example: "Encoded") -> None:
        for name, value in example.features.items():
            column = self._columns.setdefault(name, _IntegerLists())
            if isinstance(column, _IntegerLists) and not column.append(value):
                column = [column[place] for place in range(len(self))]
                self._columns[name] = column
            if isinstance(column, list):
                column.append(value)
        self.lengths.append(len(example.features["input_ids"]))
        self.truncated_rows += example.truncated_tokens > 0
        self.truncated_tokens += example.truncated_tokens


def encode_split(
    head: "Head",
    rows: Sequence[Mapping[str, Any]],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_length: int,
    labelled: bool = True,
) -> EncodedSplit:
    """Every row through `head.encode`, in order.

    Args:
        head: fitted to the training rows.
        rows: as `load_splits` gives them, or plain mappings.
        tokenizer: the model's.
        max_length: tokens per example.
        labelled: False where the answers are not known.

    Raises:
        DataError: the head refuses a row; the message starts with the row's place.
        PluginError: the head leaves out a feature.
    """

    def encode_all() -> Iterable["Encoded"]:
        expected: set[str] = {"input_ids", "labels"} if labelled else {"input_ids"}
        for index, row in enumerate(rows):
            try:
                example = head.encode(row, tokenizer, max_length, labelled=labelled)
            except DataError as error:
                raise DataError(f"{origin_of(row, index)}: {error}") from error
            _check_features(head, example, expected, exact=index > 0)
            expected = set(example.features)
            yield example

    return EncodedSplit(encode_all())


def _check_features(head: "Head", example: "Encoded", expected: set[str], *, exact: bool) -> None:
    got = set(example.features)
    if expected <= got and (got == expected or not exact):
        return
    same = "the same features for every row, " if exact else "at least "
    raise PluginError(
        f"head {head.name!r}: encode must return {same}{', '.join(sorted(expected))}; got"
        f" {', '.join(sorted(got)) or 'none'}"
    )
