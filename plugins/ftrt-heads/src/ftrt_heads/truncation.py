"""Cutting a text to a number of tokens: keep its head, or its head and its tail."""

__all__ = ["HEAD_SHARE", "encode_texts", "keep_head_and_tail"]

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
        texts: one text or two. max_length: tokens that remain, special tokens among them.
        has_tail: keep the end of each text too (Sun et al. 2019,
            https://arxiv.org/abs/1905.05583, section 5.3.1), not its beginning only.

    Raises:
        DataError: the special tokens alone do not fit, or the text has no token.
        UnsupportedError: the tail needs a tokenizer that tells which text a token is of.
    """
    # verbose=False: the tokenizer warns of a length that is cut right below
    whole = tokenizer(*texts, verbose=False)
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
    cut = tokenizer(*texts, truncation=True, max_length=max_length)
    features = dict(cut)
    if has_tail:
        features["input_ids"] = _with_tails(whole, cut, pair=len(texts) == 2)
    return features, length - len(features["input_ids"])


def keep_head_and_tail(tokens: list[int], keep: int) -> list[int]:
    """The first quarter and the last three quarters of `keep` tokens out of `tokens`."""
    if keep >= len(tokens):
        return tokens
    head = round(keep * HEAD_SHARE)
    return tokens[:head] + tokens[len(tokens) - (keep - head) :]


def _with_tails(whole: Any, cut: Any, *, pair: bool) -> list[int]:
    if not getattr(whole, "is_fast", False):
        raise UnsupportedError(
            "head.truncation head_tail: needs a fast tokenizer, which tells which text a token is"
            " of; use truncation: head"
        )
    result = list(cut["input_ids"])
    for part in range(2 if pair else 1):
        places = [i for i, owner in enumerate(cut.sequence_ids(0)) if owner == part]
        tokens = [
            token
            for token, owner in zip(whole["input_ids"], whole.sequence_ids(0), strict=True)
            if owner == part
        ]
        for place, token in zip(places, keep_head_and_tail(tokens, len(places)), strict=True):
            result[place] = token
    return result
