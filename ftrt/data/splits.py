"""Divide rows into training, validation and test so that no text stands in two of them."""

__all__ = ["Amount", "Partition", "parse_amount", "split"]

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from ftrt.data.rows import Row
from ftrt.data.texts import ANSWER_COLUMNS, input_columns, seeded_order, text_key
from ftrt.errors import ConfigError, DataError

NUMBER = re.compile(r"[+-]?\d{1,18}(\.\d*)?|[+-]?\.\d+")


@dataclass(frozen=True)
class Amount:
    """How much of the training file a split takes: a percentage of its texts, or a number."""

    written: str
    percent: Decimal | None = None
    texts: int = 0

    def of(self, total: int) -> int:
        """Texts out of `total`, rounded down."""
        return self.texts if self.percent is None else int(total * self.percent / 100)


@dataclass(frozen=True)
class Partition:
    """The three splits and the account of what was moved or left out.

    Attributes:
        train: rows in seeded order.
        validation: rows, or None where none were asked for.
        test: rows; empty where none were asked for.
        counts: JSON-able numbers, see `split`.
    """

    train: list[Row]
    validation: list[Row] | None
    test: list[Row]
    counts: dict[str, int]


def parse_amount(value: str | int, where: str) -> Amount | None:
    """The share or row count that a recipe's split asks for, or None where `value` names a file.

    Raises:
        ConfigError: neither a share, a count nor a possible file name.
    """
    text = str(value).strip()
    number = text.removesuffix("%").strip()
    is_share = text.endswith("%")
    if not is_share and not NUMBER.fullmatch(number):
        if text:
            return None
    elif is_share and NUMBER.fullmatch(number) and 0 < Decimal(number) < 100:
        return Amount(text, percent=Decimal(number))
    elif not is_share and "." not in number and int(number) >= 1:
        return Amount(text, texts=int(number))
    raise ConfigError(
        f"{where}: must be a share between 0% and 100% such as 10%, a row count of at least 1, or a"
        f" file; got {value!r}"
    )


def split(
    train: Sequence[Row],
    *,
    validation: Amount | Sequence[Row] | None,
    test: Amount | Sequence[Row] | None,
    seed: int = 0,
    limit: int | None = None,
    answers: frozenset[str] = ANSWER_COLUMNS,
) -> Partition:
    """Divide `train`, or guard given splits against it; a text never stands in two splits.

    Two rows have the same text when their input columns agree after NFKC, case folding and folding
    of white space. Drawn splits count texts, hold each text once (the first of its rows) and take
    all its rows away from training; training keeps its own repeats. Given splits stay as they are,
    but for validation rows whose text is in test; training loses the texts of both.

    Args:
        train: rows to divide.
        validation: an amount to draw from `train`, rows of its own, or None.
        test: the same for test; it is drawn first.
        seed: decides which texts are drawn, and the order of all rows but the given ones.
        limit: at most this many training rows are kept, after the splits.
        answers: columns that are not part of the text.

    Returns:
        The splits; `counts` has, in rows: `repeats` (of a text already seen in `train`),
        `train_in_test`, `train_in_validation`, `validation_in_test` and `drawn_repeats` (left out
        for their text), `over_limit` (left out by `limit`); and in texts: `conflicting` (with more
        than one answer in `train`).

    Raises:
        DataError: a split is empty; the message has the numbers.
    """
    given_test = [] if test is None or isinstance(test, Amount) else list(test)
    given_validation = (
        [] if validation is None or isinstance(validation, Amount) else list(validation)
    )
    key = _key_function([train, given_validation, given_test], answers)
    groups = _group(train, key)
    counts = _repetition(groups, train, answers)

    in_test = {key(row) for row in given_test}
    counts["train_in_test"] = _remove(groups, in_test)
    clean = [row for row in given_validation if key(row) not in in_test]
    _require_validation(clean, given_validation)
    counts["validation_in_test"] = len(given_validation) - len(clean)
    counts["train_in_validation"] = _remove(groups, {key(row) for row in clean})
    _require_training(groups, len(train), counts)

    draws = [value if isinstance(value, Amount) else None for value in (test, validation)]
    drawn_test, drawn_validation, rest, counts["drawn_repeats"] = _draw(groups, draws, seed)
    kept = rest[:limit]
    counts["over_limit"] = len(rest) - len(kept)
    return Partition(
        kept,
        None if validation is None else clean + drawn_validation,
        given_test + drawn_test,
        counts,
    )


Key = Callable[[Mapping[str, Any]], bytes]


def _key_function(splits: Sequence[Sequence[Row]], answers: frozenset[str]) -> Key:
    columns = dict.fromkeys(name for rows in splits for row in rows for name in row)
    inputs = input_columns(columns, answers)
    return lambda row: text_key(row, inputs)


def _group(rows: Sequence[Row], key: Key) -> dict[bytes, list[Row]]:
    groups: dict[bytes, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def _repetition(
    groups: Mapping[bytes, list[Row]], rows: Sequence[Row], answers: frozenset[str]
) -> dict[str, int]:
    conflicting = sum(
        len({_answer(row, answers) for row in group}) > 1 for group in groups.values()
    )
    return {"repeats": len(rows) - len(groups), "conflicting": conflicting}


def _answer(row: Row, answers: frozenset[str]) -> str:
    return repr(sorted((name, repr(value)) for name, value in row.items() if name in answers))


def _remove(groups: dict[bytes, list[Row]], keys: set[bytes]) -> int:
    return sum(len(groups.pop(key, ())) for key in keys)


def _draw(
    groups: Mapping[bytes, list[Row]], amounts: Sequence[Amount | None], seed: int
) -> tuple[list[Row], list[Row], list[Row], int]:
    """Rows of test, validation and training, and how many repeats the first two left out."""
    in_test, in_validation = _sizes(len(groups), amounts)
    drawn = in_test + in_validation
    order = seeded_order(groups, seed)
    test = [groups[key][0] for key in order[:in_test]]
    validation = [groups[key][0] for key in order[in_test:drawn]]
    train = [row for key in order[drawn:] for row in groups[key]]
    repeats = sum(len(groups[key]) - 1 for key in order[:drawn])
    return test, validation, train, repeats


def _sizes(texts: int, amounts: Sequence[Amount | None]) -> list[int]:
    sizes = [0 if amount is None else amount.of(texts) for amount in amounts]
    for name, amount, size in zip(("test", "validation"), amounts, sizes, strict=True):
        if amount is not None and size == 0:
            raise DataError(
                f"data.{name}: must get at least one text; got {amount.written} of {texts} texts;"
                " ask for a larger share, or a row count"
            )
    if any(sizes) and sum(sizes) >= texts:
        raise DataError(
            f"data.train: must keep at least one text; got {texts} texts to divide, of which test"
            f" takes {sizes[0]} and validation {sizes[1]}; ask for less, or give more data"
        )
    return sizes


def _require_training(groups: Mapping[bytes, list[Row]], read: int, counts: dict[str, int]) -> None:
    if not groups:
        raise DataError(
            f"data.train: must keep at least one row; got {read} rows, of which"
            f" {counts['train_in_test']} have a text that is in test and"
            f" {counts['train_in_validation']} one that is in validation"
        )


def _require_validation(clean: Sequence[Row], given: Sequence[Row]) -> None:
    if given and not clean:
        raise DataError(
            f"data.validation: must keep at least one row; got {len(given)} rows, all with a text"
            " that is in test"
        )
