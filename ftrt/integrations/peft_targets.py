"""Which layers a method adapts: full names, and the name endings that PEFT stores.

PEFT resolves "all-linear" by the type `nn.Linear`, which misses int8 layers; ftrt resolves it
itself, so that the same recipe adapts the same layers on a float and on an int8 base, and the saved
file names them for both.
"""

__all__ = ["ALL_LINEAR", "peft_targets", "resolve_targets", "shortest_suffixes"]

import re
from collections.abc import Collection, Iterable, Sequence

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from ftrt.errors import ConfigError, suggest
from ftrt.nn import is_linear, linear_names

ALL_LINEAR = "all-linear"


def resolve_targets(
    model: nn.Module,
    targets: str | Collection[str] | None,
    *,
    new_modules: Sequence[str] = (),
    linear_only: bool = True,
    where: str = "targets",
) -> list[str]:
    """Full names of the layers to adapt, in the model's order.

    Args:
        model: the bare model, or one that carries adapters already (their layers keep their own
            names).
        targets: "all-linear" or None: every linear layer but `new_modules` and the output
            embeddings. A list: names, or last parts of names ("q_proj"). Any other string: a
            regular expression over full names.
        new_modules: names, or last parts, of modules that are trained whole; they are never
            adapted.
        linear_only: False lets explicit targets name any module (PEFT also adapts embeddings and
            convolutions).
        where: how an error names the setting.

    Raises:
        ConfigError: a target matches nothing, or only what `new_modules` holds.
    """
    if targets is not None and not targets:
        raise ConfigError(f"{where}: must name at least one layer; got {targets!r}")
    linear, others = _names(model)
    whole = {name for name in (*linear, *others) if _is_under(name, new_modules)}
    if targets is None or targets == ALL_LINEAR:
        chosen = _adapted_by_default(model, linear) - whole
        if not chosen:
            raise ConfigError(
                f"{where}: {ALL_LINEAR} must match a layer; the model has no linear layer beside"
                " its output head. Name the layers to adapt"
            )
        return [name for name in linear if name in chosen]
    candidates = linear if linear_only else [*linear, *others]
    if isinstance(targets, str):
        chosen = {name for name in candidates if re.fullmatch(targets, name)}
        if not chosen:
            raise ConfigError(
                f"{where}: the regular expression must match a layer's full name; {targets!r}"
                f" matches none of {len(linear)} linear layers, such as"
                f" {linear[0] if linear else 'none'!r}"
            )
    else:
        chosen = set().union(*(_matches(item, candidates, linear, where) for item in targets))
    if not chosen - whole:
        raise ConfigError(
            f"{where}: must name layers that are not trained whole; {_shown(targets)} are part of"
            f" {', '.join(new_modules) or 'nothing'}"
        )
    return [name for name in candidates if name in chosen - whole]


def shortest_suffixes(names: Sequence[str], others: Iterable[str]) -> list[str]:
    """The few shortest name endings that select exactly `names` among `names` and `others`, sorted.

    An ending starts at a dot and never with a bare index, so it reads as a name ("q_proj",
    "layer.0.dense").
    """
    taken = {suffix for name in others for suffix in _suffixes(name)}
    found: list[str] = []
    for name in sorted(names, key=lambda name: (name.count("."), name)):
        if any(_ends_with(name, suffix) for suffix in found):
            continue
        readable = [
            s for s in _suffixes(name) if s not in taken and not s.partition(".")[0].isdigit()
        ]
        found.append(readable[0] if readable else name)
    return sorted(
        suffix for suffix in found if not any(suffix != s and _ends_with(suffix, s) for s in found)
    )


def peft_targets(model: nn.Module, names: Sequence[str]) -> list[str] | str:
    """What to store as PEFT's `target_modules` so that exactly `names` are adapted."""
    linear, others = _names(model)
    chosen = set(names)
    rest = [name for name in (*linear, *others) if name not in chosen]
    found = shortest_suffixes(names, rest)
    if any(_ends_with(name, suffix) for name in rest for suffix in found):
        # a chosen layer's full name ends another layer's name; only a regular expression tells the
        # two apart
        return "|".join(re.escape(name) for name in names)
    return found


def _names(model: nn.Module) -> tuple[list[str], list[str]]:
    """(linear layers, all other modules) by name, as the model was before any adapter."""
    wrappers = {
        n
        for n, m in model.named_modules()
        if isinstance(m, (BaseTunerLayer, AuxiliaryTrainingWrapper))
    }
    linear: list[str] = []
    others: list[str] = []
    for name, module in model.named_modules():
        if not name or _is_inside(name, wrappers):
            continue
        (linear if is_linear(getattr(module, "base_layer", module)) else others).append(name)
    return linear, others


def _is_inside(name: str, wrappers: set[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:end]) in wrappers for end in range(1, len(parts)))


def _is_under(name: str, new_modules: Sequence[str]) -> bool:
    # PEFT keeps adapters out of `modules_to_save` by whole parts of a name, and wraps whatever ends
    # with it ("classifier" also takes "pre_classifier"); both must be left alone.
    return any(name.endswith(module) or f".{module}." in f".{name}." for module in new_modules)


def _adapted_by_default(model: nn.Module, linear: Sequence[str]) -> set[str]:
    found = set(linear_names(model))
    return {name for name in linear if name in found or f"{name}.base_layer" in found}


def _matches(item: str, candidates: Sequence[str], linear: Sequence[str], where: str) -> set[str]:
    found = {name for name in candidates if _ends_with(name, item)}
    if not found:
        last_parts = {name.rpartition(".")[2] for name in linear}
        known = set(linear) if "." in item else {part for part in last_parts if not part.isdigit()}
        raise ConfigError(f"{where}: no linear layer is called {item!r}{suggest(item, known)}")
    return found


def _ends_with(name: str, suffix: str) -> bool:
    return name == suffix or name.endswith(f".{suffix}")


def _suffixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[start:]) for start in reversed(range(len(parts)))]


def _shown(targets: str | Collection[str]) -> str:
    return targets if isinstance(targets, str) else ", ".join(targets)
