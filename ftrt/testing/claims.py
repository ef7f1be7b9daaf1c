"""Trying claims one by one and saying all that fail."""

__all__ = ["require_claims", "require_config", "try_claims"]

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from ftrt.api import PluginConfig

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


def try_claims(subject: S, claims: Sequence[Callable[[S], None]]) -> dict[str, str | None]:
    """The claims by name: None where one holds, else why it fails."""
    return {claim.__name__: _fault(subject, claim) for claim in claims}


def require_config(plugin_class: type[Any], options: Mapping[str, Any]) -> None:
    """`Config` takes `options`, comes back from JSON as it was and refuses unknown keys."""
    config = getattr(plugin_class, "Config", None)
    if not (isinstance(config, type) and issubclass(config, PluginConfig)):
        raise AssertionError(f"`Config` must derive from ftrt.api.PluginConfig; got {config!r}")
    validated = config.model_validate(dict(options))
    if config.model_validate(validated.model_dump(mode="json")) != validated:
        raise AssertionError("`Config` must come back from its own JSON unchanged")
    try:
        config.model_validate({**options, "no_such_option": 1})
    except ValidationError:
        return
    raise AssertionError("`Config` must refuse unknown options; its extra is not 'forbid'")


def _failure(subject: S, claim: Callable[[S], None]) -> str | None:
    fault = _fault(subject, claim)
    return None if fault is None else f"{claim.__name__.replace('_', ' ')}: {fault}"


def _fault(subject: S, claim: Callable[[S], None]) -> str | None:
    try:
        claim(subject)
    except AssertionError as error:
        return str(error)
    # the plugin's own code runs here, and whatever it raises is a failed claim with that reason
    except Exception as error:
        return f"must not raise; raised {type(error).__name__}: {error}"
    return None
