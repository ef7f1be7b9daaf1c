"""Cutting a text to a number of tokens: keep its head, or its head and its tail."""

__all__ = ["HEAD_SHARE", "encode_texts", "head_and_tail", "shares_of"]

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ftrt.errors import DataError, UnsupportedError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Sun et al. 2019 keep the first 128 and the last 382 of 510 tokens, section 5.3.1.
HEAD_SHARE = 128 / 510


def encode_texts(
    tokenizer: "PreTrainedTokenizerBase",
    texts: tuple[str, ...],
    max_length: int,
    *,
    has_tail: bool,
) -> tuple[dict[str, list[int]], int]:
    """Model inputs of one text or a pair, and how many tokens were cut.

    Args:
        texts: one text or two; of two, the longer is cut first.
        max_length: tokens that remain, special tokens among them.
        has_tail: keep the end of each text too (Sun et al. 2019,
            https://arxiv.org/abs/1905.05583, section 5.3.1), not its beginning only.

    Raises:
        DataError: the special tokens alone do not fit, or the text has no token.
        UnsupportedError: cutting needs a tokenizer that tells which text a token is of.
    """
    # verbose=False: the tokenizer warns of a length that is cut right below
    whole: Any = tokenizer(*texts, verbose=False)
    length = len(whole["input_ids"])
    special = tokenizer.num_special_tokens_to_add(pair=len(texts) == 2)
    if length <= special:
        raise DataError(f"column 'text': must hold text; {texts[0][:40]!r} gives no token")
    if length <= max_length:
        return dict(whole), 0
    if max_length < special + len(texts):
        raise DataError(
            f"data.max_length: must leave room for text beside {special} special tokens; got"
            f" {max_length}"
        )
    if not whole.is_fast:
        raise UnsupportedError(
            f"head 'sequence_classification': {type(tokenizer).__name__} must tell which text a"
            " token is of, to cut a long one; it is a slow tokenizer; use a fast one"
        )
    kept = _kept_places(whole.sequence_ids(0), max_length, has_tail=has_tail)
    return {key: [values[place] for place in kept] for key, values in whole.items()}, (
        length - len(kept)
    )


def head_and_tail(places: Sequence[int], keep: int) -> Sequence[int]:
    """The first quarter and the last three quarters of `keep` out of `places`."""
    head = round(keep * HEAD_SHARE)
    return [*places[:head], *places[len(places) - (keep - head) :]]


def shares_of(lengths: Sequence[int], budget: int) -> list[int]:
    """How much each text keeps of `budget` tokens when the longer one is cut first."""
    if len(lengths) == 1:
        return [min(lengths[0], budget)]
    first, second = lengths
    shorter = min(first, second, budget // 2)
    return [shorter, budget - shorter] if first <= second else [budget - shorter, shorter]


def _kept_places(owners: Sequence[int | None], max_length: int, *, has_tail: bool) -> list[int]:
    parts = [
        [place for place, owner in enumerate(owners) if owner == part]
        for part in sorted({owner for owner in owners if owner is not None})
    ]
    kept = [place for place, owner in enumerate(owners) if owner is None]
    shares = shares_of([len(part) for part in parts], max_length - len(kept))
    for part, keep in zip(parts, shares, strict=True):
        kept += head_and_tail(part, keep) if has_tail else part[:keep]
    return sorted(kept)
