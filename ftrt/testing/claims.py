"""Trying claims one by one and saying all that fail."""

__all__ = ["require_claims"]

from collections.abc import Callable, Sequence
from typing import TypeVar

S = TypeVar("S")


def require_claims(title: str, subject: S, claims: Sequence[Callable[[S], None]]) -> None:
    """Call each claim with `subject`.

    Raises:
        AssertionError: the claims that raised, one line each, by their function names.
    """
    failures = [line for claim in claims if (line := _failure(subject, claim))]
    if failures:
        head = f"{title}: {len(failures)} of {len(claims)} claims fail"
        raise AssertionError("\n- ".join([head, *failures]))


def _failure(subject: S, claim: Callable[[S], None]) -> str | None:
    label = claim.__name__.replace("_", " ")
    try:
        claim(subject)
    except AssertionError as error:
        return f"{label}: {error}"
    # the plugin's own code runs here, and whatever it raises is a failed claim with that reason
    except Exception as error:
        return f"{label}: must not raise; raised {type(error).__name__}: {error}"
    return None
