"""Pydantic's faults in the words of the recipe: `where: key: what must hold; got value`."""

__all__ = ["describe"]

import reprlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from ftrt.errors import suggest

# pydantic error type -> what must hold; `{}` takes the context's values by name
MUST = {
    "string_type": "a string",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "int_parsing": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "none_required": "null",
    "list_type": "a list",
    "dict_type": "a mapping of keys",
    "model_type": "a mapping of keys",
    "model_attributes_type": "a mapping of keys",
    "literal_error": "{expected}",
    "greater_than": "> {gt}",
    "greater_than_equal": ">= {ge}",
    "less_than": "< {lt}",
    "less_than_equal": "<= {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "string_too_short": "a string of at least {min_length} characters",
    "too_short": "a list of at least {min_length} values",
    "too_long": "a list of at most {max_length} values",
}


def describe(error: ValidationError, where: str, model: type[BaseModel], tree: Any = None) -> str:
    """Say each fault of `error` in a line of its own.

    Args:
        error: what validating against `model` raised.
        where: the file, or `method 'lora'`, that starts each line.
        model: finds the known keys for did-you-mean.
        tree: the values that were validated; pydantic's path through the alternatives of a union
            is cut down to the keys that stand in it.
    """
    lines: dict[tuple[str, str], list[str]] = {}
    for fault in error.errors(include_url=False):
        path = _in_tree(fault["loc"], tree) if tree is not None else list(fault["loc"])
        key = ".".join(str(part) for part in path)
        value = reprlib.repr(fault["input"])
        kind = fault["type"]
        if kind == "extra_forbidden":
            hint = suggest(str(path[-1]), _known_keys(model, path[:-1]))
            lines[f"{where}: unknown key {key!r}{hint}", ""] = []
        elif kind == "missing":
            lines[f"{where}: {key}: must be given", ""] = []
        elif kind in ("value_error", "assertion_error"):
            lines[f"{where}: {key + ': ' if key else ''}{fault['ctx']['error']}", ""] = []
        elif kind == "invalid_key":
            lines[f"{where}: keys must be strings; got {value}", ""] = []
        else:
            must = _must(kind, fault.get("ctx", {}), fault["msg"])
            lines.setdefault((f"{where}: {key}: must be", value), []).append(must)
    return "\n".join(
        f"{head} {' or '.join(dict.fromkeys(musts))}; got {value}" if musts else head
        for (head, value), musts in lines.items()
    )


def _must(kind: str, context: Mapping[str, Any], message: str) -> str:
    if kind in MUST:
        bounds = {k: f"{v:g}" if isinstance(v, float) else v for k, v in context.items()}
        return MUST[kind].format(**bounds)
    for opening in ("Input should be ", "Value should be "):
        message = message.removeprefix(opening)
    return message[0].lower() + message[1:]


def _in_tree(path: Sequence[Any], tree: Any) -> list[Any]:
    # pydantic puts the tag of the union member it tried ('str', 'PluginSection') into the path. A
    # part that does not lead on in the values is such a tag, unless it is the last: a missing key.
    kept: list[Any] = []
    for depth, part in enumerate(path):
        if isinstance(tree, BaseModel):
            tree = {**dict(tree), **(tree.__pydantic_extra__ or {})}
        if isinstance(tree, Mapping) and part in tree:
            tree = tree[part]
        elif isinstance(tree, (list, tuple)) and isinstance(part, int) and part < len(tree):
            tree = tree[part]
        elif not (isinstance(tree, Mapping) and depth == len(path) - 1):
            continue
        kept.append(part)
    return kept


def _known_keys(model: type[BaseModel], path: Sequence[Any]) -> list[str]:
    for part in path:
        field = model.model_fields.get(str(part))
        if field is None:
            continue
        sections = list(_sections(field.annotation))
        if not sections:
            return []
        model = sections[0]
    return [field.alias or name for name, field in model.model_fields.items()]


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _sections(inner)
