"""Trying claims one by one and saying all that fail."""

__all__ = ["require_claims", "require_config"]

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
    label = claim.__name__.replace("_", " ")
    try:
        claim(subject)
    except AssertionError as error:
        return f"{label}: {error}"
    # the plugin's own code runs here, and whatever it raises is a failed claim with that reason
    except Exception as error:
        return f"{label}: must not raise; raised {type(error).__name__}: {error}"
    return None
