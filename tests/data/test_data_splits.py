"""No text in two splits, the same splits everywhere, and numbers in every refusal."""

import os
import random
import subprocess
import sys
from decimal import Decimal

import pytest

from ftrt.data.rows import Origin, Row
from ftrt.data.splits import Amount, parse_amount, split
from ftrt.data.texts import input_columns, seeded_order, text_key
from ftrt.errors import ConfigError, DataError

TEN_PERCENT = Amount("10%", percent=Decimal(10))


def rows_of(*texts, label="0", file="f.jsonl"):
    return [Row({"text": t, "label": label}, Origin(file, n)) for n, t in enumerate(texts, 1)]


def count(number):
    return Amount(str(number), texts=number)


def texts(rows):
    return [row["text"] for row in rows]


def normal(rows):
    return {text_key(row, ("text",)) for row in rows}


@pytest.mark.parametrize(
    ("value", "of_1000"),
    [("10%", 100), (" 2.5 % ", 25), ("0.1%", 1), ("99%", 990), (7, 7), ("7", 7), ("0.15%", 1)],
)
def test_amounts_are_shares_or_counts(value, of_1000):
    assert parse_amount(value, "data.test").of(1000) == of_1000


@pytest.mark.parametrize("value", ["test.jsonl", "asset:imdb", "./10", "ten", "5%.csv", "1e3"])
def test_other_strings_name_files(value):
    assert parse_amount(value, "data.test") is None


@pytest.mark.parametrize(
    "value", ["0%", "100%", "110%", "-5%", "x%", "%", "0", 0, -3, "0.1", ".1", "1.", "", " "]
)
def test_wrong_amount_says_what_is_allowed(value):
    with pytest.raises(ConfigError) as caught:
        parse_amount(value, "data.validation")
    assert str(caught.value) == (
        "data.validation: must be a share between 0% and 100% such as 10%, a row count of at least"
        f" 1, or a file; got {value!r}"
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Good  film\n", "good film"),
        ("Ｇｏｏｄ", "good"),
        ("Straße", "STRASSE"),
        ("ﬁlm", "film"),
        ("e\u0301", "é"),
        ("\u00a0a", "a"),
    ],
)
def test_texts_are_the_same_but_for_case_width_and_space(one, other):
    assert text_key({"text": one}, ["text"]) == text_key({"text": other}, ["text"])


def test_texts_differ_by_word_or_punctuation():
    keys = {text_key({"text": t}, ["text"]) for t in ("good film", "goodfilm", "good film.", "bad")}
    assert len(keys) == 4


def test_chat_messages_compare_by_content():
    one = {"messages": [{"role": "user", "content": "Hi  there"}]}
    other = {"messages": [{"content": "hi there", "role": "user"}]}
    assert text_key(one, ["messages"]) == text_key(other, ["messages"])


def test_answers_are_not_part_of_the_text():
    assert input_columns(["text", "label"], {"label"}) == ("text",)
    assert input_columns(["label"], {"label"}) == ("label",)


def test_counts_are_exact_and_every_row_has_its_place():
    rows = rows_of(*(f"text {n}" for n in range(100)))
    parts = split(rows, validation=count(7), test=TEN_PERCENT)
    assert [len(part) for part in (parts.train, parts.validation, parts.test)] == [83, 7, 10]
    everything = texts(parts.train) + texts(parts.validation) + texts(parts.test)
    assert sorted(everything) == sorted(texts(rows))


def test_without_splits_all_rows_train():
    parts = split(rows_of("a", "b", "a"), validation=None, test=None)
    assert sorted(texts(parts.train)) == ["a", "a", "b"]
    assert parts.validation is None and parts.test == []


def test_rows_come_in_a_seeded_order_not_the_files():
    rows = rows_of(*(f"text {n}" for n in range(50)))
    first, again, other = (
        texts(split(rows, validation=None, test=None, seed=seed).train) for seed in (0, 0, 1)
    )
    assert first == again != other and first != texts(rows) and sorted(first) == sorted(other)


def test_a_text_falls_the_same_way_wherever_it_stands():
    rows = rows_of(*(f"text {n}" for n in range(60)))
    backwards = split(rows[::-1], validation=count(9), test=count(9))
    forwards = split(rows, validation=count(9), test=count(9))
    assert texts(backwards.test) == texts(forwards.test)
    assert texts(backwards.train) == texts(forwards.train)


def test_limit_cuts_training_alone_and_smaller_limits_are_nested():
    rows = rows_of(*(f"text {n}" for n in range(50)))
    whole = split(rows, validation=count(5), test=count(5))
    ten = split(rows, validation=count(5), test=count(5), limit=10)
    assert texts(ten.train) == texts(whole.train)[:10]
    assert ten.counts["over_limit"] == 30 and whole.counts["over_limit"] == 0
    assert (ten.validation, ten.test) == (whole.validation, whole.test)


def test_drawn_splits_hold_a_text_once_and_training_keeps_its_repeats():
    rows = rows_of(*("a", "b", "c", "d") * 3)
    parts = split(rows, validation=count(1), test=count(1))
    assert len(parts.validation) == len(parts.test) == 1 and len(parts.train) == 6
    assert parts.counts["repeats"] == 8 and parts.counts["drawn_repeats"] == 4
    assert parts.test[0].origin.number <= 4


def test_repeats_with_another_answer_are_counted():
    rows = rows_of("a", "b", "c") + rows_of("A ", label="1") + rows_of("B")
    counts = split(rows, validation=None, test=None).counts
    assert counts["repeats"] == 2 and counts["conflicting"] == 1


@pytest.mark.parametrize("seed", range(20))
def test_no_text_stands_in_two_splits_of_random_data(seed):
    rng = random.Random(seed)

    def some(number):
        words = [rng.choice(["a", "A", "b ", " b", "ß", "SS", "c"]) for _ in range(number)]
        return rows_of(*(f"{w} {rng.choice('xyzXYZ')} {rng.randrange(30)}" for w in words))

    amounts = [None, count(3), TEN_PERCENT, some(20)]
    parts = split(
        some(rng.randrange(150, 400)),
        validation=rng.choice(amounts),
        test=rng.choice(amounts),
        seed=seed,
        limit=rng.choice([None, 60]),
    )
    keys = [normal(part or []) for part in (parts.train, parts.validation, parts.test)]
    assert not keys[0] & keys[1] and not keys[0] & keys[2] and not keys[1] & keys[2]


def test_given_splits_stay_whole_and_training_loses_their_texts():
    train = rows_of("a", "b", "B", "c", "d")
    test = rows_of("B ", "x", "x", file="test.jsonl")
    validation = rows_of("c", "X", "y", file="validation.jsonl")
    parts = split(train, validation=validation, test=test)
    assert texts(parts.test) == ["B ", "x", "x"]
    assert texts(parts.validation) == ["c", "y"]
    assert sorted(texts(parts.train)) == ["a", "d"]
    dropped = {name: number for name, number in parts.counts.items() if number}
    assert dropped == {
        "repeats": 1, "train_in_test": 2, "validation_in_test": 1, "train_in_validation": 1,
    }  # fmt: skip


def test_drawn_validation_never_holds_a_text_of_a_given_test():
    train = rows_of(*(f"t{n}" for n in range(40)))
    parts = split(train, validation=count(10), test=rows_of(*(f"T{n}" for n in range(25))))
    assert not normal(parts.validation) & normal(parts.test)
    assert len(parts.validation) == 10 and len(parts.train) == 5


@pytest.mark.parametrize(
    ("rows", "validation", "test", "message"),
    [
        (5, TEN_PERCENT, None, "data.validation: must get at least one text; got 10% of 5 texts;"
         " ask for a larger share, or a row count"),
        (5, None, TEN_PERCENT, "data.test: must get at least one text; got 10% of 5 texts; ask for"
         " a larger share, or a row count"),
        (5, count(3), count(2), "data.train: must keep at least one text; got 5 texts to divide, of"
         " which test takes 2 and validation 3; ask for less, or give more data"),
        (5, count(500), None, "data.train: must keep at least one text; got 5 texts to divide, of"
         " which test takes 0 and validation 500; ask for less, or give more data"),
        (2, None, rows_of("0", "1"), "data.train: must keep at least one row; got 2 rows, of which"
         " 2 have a text that is in test and 0 one that is in validation"),
        (3, rows_of("2"), rows_of("0", "1"), "data.train: must keep at least one row; got 3 rows,"
         " of which 2 have a text that is in test and 1 one that is in validation"),
        (9, rows_of("0", "1"), rows_of("0", "1"), "data.validation: must keep at least one row; got"
         " 2 rows, all with a text that is in test"),
    ],
)  # fmt: skip
def test_empty_split_is_an_error_with_numbers(rows, validation, test, message):
    with pytest.raises(DataError) as caught:
        split(rows_of(*map(str, range(rows))), validation=validation, test=test)
    assert str(caught.value) == message


def test_order_does_not_depend_on_the_hash_seed_or_the_process():
    program = (
        "from ftrt.data.texts import seeded_order, text_key\n"
        "keys = {text_key({'text': str(n)}, ['text']) for n in range(50)}\n"
        "print([key.hex() for key in seeded_order(keys, 3)])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "4242")
    }
    keys = {text_key({"text": str(n)}, ["text"]) for n in range(50)}
    assert outputs == {f"{[key.hex() for key in seeded_order(keys, 3)]}\n"}


def test_order_is_the_same_on_every_platform_and_python():
    words = {text_key({"text": word}, ["text"]): word for word in ("one", "two", "three", "four")}
    assert [words[key] for key in seeded_order(words, 0)] == ["three", "four", "one", "two"]
