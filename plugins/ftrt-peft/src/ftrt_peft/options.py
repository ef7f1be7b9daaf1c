"""PEFT's config dataclasses as ftrt options: types, defaults and help are PEFT's own."""

__all__ = ["PeftOptions", "options_of"]

import dataclasses
import re
import types
import typing
import warnings
from collections.abc import Collection, Mapping
from enum import Enum
from functools import reduce
from operator import or_
from typing import Annotated, Any, ClassVar, Literal, Self

from peft import PeftConfig
from pydantic import Field, StringConstraints, create_model, model_validator

from ftrt.api import PluginConfig

# What ftrt fills in: the task, the base, PEFT's version, how long the run is.
OURS = frozenset(field.name for field in dataclasses.fields(PeftConfig)) | {"total_step"}
# PEFT's field -> ftrt's word for it, the one that all of ftrt's methods have.
RENAMED = {"target_modules": "targets"}
TARGETS_HELP = (
    "Which layers: all-linear, names or last parts of names, or a regular expression over full"
    " names."
)


class PeftOptions(PluginConfig):
    """Options that become a `PeftConfig`; what PEFT refuses is refused when they are read."""

    config_class: ClassVar[type[PeftConfig]]
    # what PEFT wants to see and only the run knows; replaced when the model is there
    unknown_yet: ClassVar[Mapping[str, Any]] = {}

    def peft(self, **known: Any) -> PeftConfig:
        """PEFT's config of what the recipe says, `known` laid over it.

        Raises:
            ValueError, TypeError: PEFT refuses a combination.
        """
        given = {_peft_name(name): _plain(getattr(self, name)) for name in self.model_fields_set}
        with warnings.catch_warnings():
            # PEFT remarks on options that have no effect
            warnings.simplefilter("ignore")
            return self.config_class(**{**given, **known})

    @model_validator(mode="after")
    def _is_taken_by_peft(self) -> Self:
        given = {_peft_name(name) for name in self.model_fields_set}
        missing = {name: v for name, v in self.unknown_yet.items() if name not in given}
        try:
            self.peft(**missing)
        except (TypeError, AttributeError, ImportError) as error:
            raise ValueError(str(error)) from error
        return self


def options_of(
    config_class: type[PeftConfig],
    *,
    targets: str | list[str] | None,
    hidden: Collection[str] = (),
    required: Collection[str] = (),
    unknown_yet: Mapping[str, Any] | None = None,
) -> type[PeftOptions]:
    """The options of one PEFT method.

    Args:
        config_class: its config.
        targets: what `targets` is by default.
        hidden: fields that are no options.
        required: fields that have no default although PEFT gives them one (None, say).
        unknown_yet: stand-ins for what PEFT wants to see and only the run knows.
    """
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(config_class):
        if field.name in OURS or field.name in hidden or not field.init:
            continue
        if field.name == "target_modules":
            described = Field(targets, description=TARGETS_HELP)
            fields["targets"] = (str | list[str] | None, described)
        else:
            fields[field.name] = _option(config_class, field, field.name in required)
    found = create_model(
        f"{config_class.__name__.removesuffix('Config')}Options",
        __base__=PeftOptions,
        __module__=__name__,
        **fields,
    )
    found.config_class = config_class
    found.unknown_yet = dict(unknown_yet or {})
    return found


def _option(owner: type[Any], field: "dataclasses.Field[Any]", is_required: bool) -> Any:
    hint = _converted(_hints(owner).get(field.name, Any))
    help_text = " ".join(str(field.metadata.get("help", "")).split())
    if is_required or (
        field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ):
        return hint, Field(description=help_text)
    if field.default_factory is not dataclasses.MISSING:
        factory: Any = field.default_factory
        if factory is dict and _is_closed(hint):
            return hint | None, Field(None, description=help_text)
        if dataclasses.is_dataclass(factory):
            return hint, Field(default_factory=hint, description=help_text)
        return hint, Field(default_factory=factory, description=help_text)
    default = field.default.value if isinstance(field.default, Enum) else field.default
    # PEFT writes `int = None` for "see the documentation"
    return (hint | None if default is None else hint), Field(default, description=help_text)


def _is_closed(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, _Nested)


def _hints(owner: type[Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(owner)
    # a name that PEFT imports for type checkers only
    except NameError:
        return {}


def _converted(hint: Any) -> Any:
    """The annotation as pydantic shall check it: enums by value, configs within configs closed."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _converted(arguments[0])
    if origin is Literal:
        return _literal(arguments)
    if origin in (typing.Union, types.UnionType):
        is_closed = any(dataclasses.is_dataclass(a) for a in arguments)
        has_enum = any(isinstance(a, type) and issubclass(a, Enum) for a in arguments)
        kept = [
            a for a in arguments if not (a is dict and is_closed) and not (a is str and has_enum)
        ]
        return reduce(or_, map(_converted, kept))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return Literal[tuple(member.value for member in hint)]
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _nested(hint)
    if origin in (list, dict, tuple, set) and arguments:
        return origin[tuple(a if a is Ellipsis else _converted(a) for a in arguments)]
    return hint


def _literal(values: tuple[Any, ...]) -> Any:
    """PEFT writes a pattern as a value: 'pissa_niter_[number of iters]'."""
    patterns = [value for value in values if isinstance(value, str) and "[" in value]
    fixed: Any = Literal[tuple(value for value in values if value not in patterns)]
    for pattern in patterns:
        start, end = re.split(r"\[.*?\]", pattern, maxsplit=1)
        regex = rf"^{re.escape(start)}\d+{re.escape(end)}$"
        fixed = fixed | Annotated[str, StringConstraints(pattern=regex)]
    return fixed


class _Nested(PluginConfig):
    """A config within a config."""

    dataclass: ClassVar[type[Any]]


def _nested(kind: type[Any]) -> type[_Nested]:
    fields = {f.name: _option(kind, f, False) for f in dataclasses.fields(kind) if f.init}
    found: type[_Nested] = create_model(
        kind.__name__, __base__=_Nested, __module__=__name__, **typing.cast(Any, fields)
    )
    found.dataclass = kind
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, _Nested):
        return value.dataclass(**{n: _plain(getattr(value, n)) for n in value.model_fields_set})
    return value


def _peft_name(name: str) -> str:
    return {ours: theirs for theirs, ours in RENAMED.items()}.get(name, name)
