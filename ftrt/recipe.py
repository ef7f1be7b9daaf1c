"""A recipe: YAML, a dict or a `Recipe`, validated before anything heavy is imported or read.

A recipe is data: names and numbers, never code or a dotted path.
"""

__all__ = [
    "CalibrationSection",
    "DataSection",
    "EarlyStoppingSection",
    "LossSection",
    "ModelSection",
    "PluginSection",
    "QuantizationSection",
    "Recipe",
    "ScheduleSection",
    "load",
    "override",
    "parse",
]

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from ftrt.errors import ConfigError
from ftrt.sections import (
    CalibrationSection,
    DataSection,
    EarlyStoppingSection,
    LossSection,
    ModelSection,
    PluginSection,
    QuantizationSection,
    Recipe,
    ScheduleSection,
)
from ftrt.validation import describe

# A recipe written by a person has some hundred values; YAML aliases can make ten lines expand to
# billions, which would be copied, validated and written into the run folder.
MAX_VALUES = 100_000


def load(source: str | Path | Mapping[str, Any] | Recipe, overrides: Sequence[str] = ()) -> Recipe:
    """Read and validate a recipe.

    Args:
        source: a YAML file, a mapping of the same shape, or a `Recipe`.
        overrides: `key=value` strings, `method.rank=8`; values are YAML.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or a key or value is wrong; all faults
            in one message.
    """
    if isinstance(source, Recipe):
        if not overrides:
            return source
        tree, where = source.model_dump(exclude_unset=True), "recipe"
    elif isinstance(source, Mapping):
        tree, where = dict(source), "recipe"
    elif isinstance(source, (str, Path)):
        tree, where = _read_yaml(Path(source)), str(source)
    else:
        raise ConfigError(
            f"recipe: must be a YAML file, a mapping or a Recipe; got {type(source).__name__}"
        )
    return parse(override(tree, overrides, where), where)


def parse(tree: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Validate a mapping as a recipe; every fault in one `ConfigError`, each in its own line."""
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(describe(error, where, Recipe, tree)) from None


def override(
    tree: Mapping[str, Any], overrides: Sequence[str], where: str = "recipe"
) -> dict[str, Any]:
    """A copy of `tree` with each `dotted.key=value` set, values read as YAML.

    List items are addressed by index, `losses.0.weight=0.3`.
    """
    result: dict[str, Any] = _Copy(where)(tree)
    for item in overrides:
        key, equals, raw = item.partition("=")
        path = key.strip().split(".")
        if not equals or not all(path):
            raise ConfigError(f"--set {item}: must read key=value, say --set method.rank=8")
        value = _parse_yaml(raw, f"--set {item}", "the value") if raw.strip() else None
        _set(result, path, value, f"--set {item}")
    return result


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: the recipe must be a file; it does not exist") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: the recipe must be a file; it is a folder") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: the recipe must be UTF-8; byte {error.start} is not") from None
    except (OSError, ValueError) as error:
        # ValueError: a path with a NUL byte
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path}: the recipe must be readable; {reason}") from None
    tree = _parse_yaml(text, str(path), "the recipe")
    if tree is None:
        raise ConfigError(f"{path}: the recipe must be a mapping of sections; it is empty")
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{path}: the recipe must be a mapping of sections; got a {type(tree).__name__}"
        )
    return tree


def _parse_yaml(text: str, where: str, what: str) -> Any:
    # safe: no tag builds an object. pure: the C parser of ruamel is YAML 1.1, where 1e-4 is text.
    yaml = YAML(typ="safe", pure=True)
    try:
        return yaml.load(text)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        line = f":{mark.line + 1}" if mark and what == "the recipe" else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ConfigError(
            f"{where}{line}: {what} must be YAML 1.2 with each key once; {problem}"
        ) from None
    except RecursionError:
        raise ConfigError(f"{where}: {what} must not be nested so deeply") from None
    except ValueError as error:
        # a scalar that looks like a date or a number and is none, say 2001-99-99
        raise ConfigError(f"{where}: {what} must be YAML 1.2; {error}") from None


class _Copy:
    """Copies mappings and lists, and refuses a tree whose aliases expand without end."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.count = 0

    def __call__(self, node: Any) -> Any:
        self.count += 1
        if self.count > MAX_VALUES:
            raise ConfigError(f"{self.where}: the recipe must have at most {MAX_VALUES} values")
        try:
            if isinstance(node, Mapping):
                return {key: self(value) for key, value in node.items()}
            return [self(value) for value in node] if isinstance(node, (list, tuple)) else node
        except RecursionError:
            raise ConfigError(
                f"{self.where}: the recipe must not contain itself or be nested so deeply"
            ) from None


def _set(node: Any, path: list[str], value: Any, where: str) -> None:
    for depth, part in enumerate(path):
        parent = ".".join(path[:depth])
        key: Any = part
        if isinstance(node, list):
            if not part.isdecimal() or int(part) >= len(node):
                has = f"has items 0..{len(node) - 1}" if node else "is an empty list"
                raise ConfigError(f"{where}: {parent} {has}; got {part!r}")
            key = int(part)
        elif not isinstance(node, dict):
            raise ConfigError(f"{where}: {parent} is a value and has no key {part!r}")
        if depth == len(path) - 1:
            node[key] = value
            return
        if isinstance(node, dict) and node.get(key) is None:
            node[key] = {}
        node = node[key]
