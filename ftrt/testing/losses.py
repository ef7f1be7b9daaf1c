"""`check_loss`: everything a loss term promises, tried on small random outputs."""

__all__ = ["check_loss"]

from collections.abc import Mapping
from typing import Any

import torch

from ftrt.api import LossTerm
from ftrt.testing.claims import require_claims
from ftrt.testing.loss_claims import COMMON_CLAIMS, CONTRACT_CLAIMS, Subject
from ftrt.testing.toy_outputs import Task


def check_loss(
    loss_class: type[LossTerm],
    options: Mapping[str, Any] | None = None,
    *,
    task: Task = "classification",
    is_least_at_teacher: bool = True,
) -> None:
    """Try every claim of the loss-term contract and say which ones fail. Needs no model.

    The claims: options survive JSON and unknown ones are refused; the total is a finite scalar and
    the count that of the labelled items; totals and counts of two halves add up to those of the
    whole, which gradient accumulation relies on; the gradient reaches the student's outputs and not
    the teacher's; tokens whose label is -100 count for nothing; bfloat16 outputs work; inputs are
    not changed; two calls agree; a student equal to its teacher is not pushed anywhere.

    Args:
        loss_class: derives from `LossTerm`; it need not be installed as a plugin.
        options: what a recipe would say beside the name; the defaults if None.
        task: "classification" gives logits (batch, classes) and labels (batch), "causal_lm" logits
            (batch, tokens, vocabulary) and labels (batch, tokens).
        is_least_at_teacher: False for a term with a signal that is not least where student and
            teacher agree.

    Raises:
        AssertionError: one line for each claim that fails.
    """
    if not (isinstance(loss_class, type) and issubclass(loss_class, LossTerm)):
        raise AssertionError(f"{loss_class!r}: must be a class that derives from LossTerm")
    subject = Subject(loss_class, dict(options or {}), task, is_least_at_teacher)
    with torch.random.fork_rng(), torch.enable_grad():
        require_claims(loss_class.__name__, subject, CONTRACT_CLAIMS)
        require_claims(loss_class.__name__, subject, COMMON_CLAIMS)
