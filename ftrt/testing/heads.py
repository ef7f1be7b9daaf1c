"""`check_head`: everything a task head promises, tried on a few rows."""

__all__ = ["check_head"]

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ftrt.api import Head
from ftrt.testing.claims import require_claims
from ftrt.testing.head_claims import COMMON_CLAIMS, CONTRACT_CLAIMS, Subject
from ftrt.testing.toy_tokenizer import ToyTokenizer


def check_head(
    head_class: type[Head],
    options: Mapping[str, Any] | None,
    rows: Sequence[Mapping[str, Any]],
    *,
    tokenizer: Any = None,
    model: Any = None,
    max_length: int = 512,
) -> None:
    """Try every claim of the head contract and say which ones fail. Nothing is downloaded.

    The claims: options survive JSON and unknown ones are refused; a head restored from its state
    encodes as before; encoding is deterministic, stays within `max_length`, counts what it cuts and
    changes no row; rows without answers work; a label never seen in training is a `DataError`;
    batches are padded, masked and labelled right; `metrics` holds the metric; `predict` answers
    each row in order, and alike alone and in a batch.

    Args:
        head_class: derives from `Head`; it need not be installed as a plugin.
        options: what a recipe would say beside the name; the defaults if None.
        rows: two or more, of unequal length, with answers; a classifier's hold two labels.
        tokenizer: a `ToyTokenizer` if None: words, ChatML, ids below 512.
        model: called as a transformers model of the task; `attach` is then tried too. If None, a
            toy model for the task types SEQ_CLS and CAUSAL_LM.
        max_length: every row must fit.

    Raises:
        AssertionError: one line for each claim that fails.
    """
    if not (isinstance(head_class, type) and issubclass(head_class, Head)):
        raise AssertionError(f"{head_class!r}: must be a class that derives from Head")
    if len(rows) < 2:
        raise AssertionError(f"check_head: rows must be two or more; got {len(rows)}")
    subject = Subject(
        head_class,
        dict(options or {}),
        rows,
        ToyTokenizer() if tokenizer is None else tokenizer,
        model,
        max_length,
    )
    with torch.random.fork_rng():
        require_claims(head_class.__name__, subject, CONTRACT_CLAIMS)
        require_claims(head_class.__name__, subject, COMMON_CLAIMS)
