"""Whether a class, or a kernel, keeps the contract of its kind, seen from itself alone."""

__all__ = ["CONTRACTS", "contract_fault"]

import inspect
from collections.abc import Mapping
from typing import Any

from ftrt.api import (
    Head,
    LinearMethod,
    LossTerm,
    Method,
    ModelMethod,
    PeftMethod,
    PluginConfig,
    SignalSource,
    Transform,
)
from ftrt.plugin_kernels import kernel_fault
from ftrt.sections import LossSection, PluginSection

CONTRACTS: dict[str, type[Any]] = {
    "method": Method,
    "head": Head,
    "loss": LossTerm,
    "signal": SignalSource,
    "transform": Transform,
}

# attributes a class of that kind must set, with their types
ATTRIBUTES: dict[str, dict[str, tuple[type[Any], str]]] = {
    "method": {"source": (str, "a string")},
    "loss": {"source": (str, "a string")},
    "head": {
        "auto_class": (str, "a string"),
        "task_type": (str, "a string"),
        "columns": (Mapping, "a mapping"),
    },
}


def contract_fault(kind: str, found: Any) -> str | None:
    """What is missing for `found`, a class or a `Kernel`, to be a plugin of `kind`, or None."""
    if kind == "kernel":
        return kernel_fault(found)
    return (
        _ancestry_fault(kind, found) or _config_fault(kind, found) or _attribute_fault(kind, found)
    )


def _ancestry_fault(kind: str, found: type[Any]) -> str | None:
    contract = CONTRACTS.get(kind)
    if contract is None:
        if callable(getattr(found, "expand", None)):
            return None
        return "must define expand(config) -> dict"
    if not issubclass(found, contract):
        return f"must derive from ftrt.api.{contract.__name__}"
    if kind == "method" and not issubclass(found, (LinearMethod, PeftMethod, ModelMethod)):
        return "must derive from ftrt.api.LinearMethod, PeftMethod or ModelMethod"
    if inspect.isabstract(found):
        return f"must define {', '.join(sorted(found.__abstractmethods__))}"
    return None


def _config_fault(kind: str, found: type[Any]) -> str | None:
    config = getattr(found, "Config", None)
    if not (inspect.isclass(config) and issubclass(config, PluginConfig)):
        return "must have a class Config that derives from ftrt.api.PluginConfig"
    if config.model_config.get("extra") != "forbid":
        return (
            'must have a Config with extra="forbid", as ftrt.api.PluginConfig has it;'
            f" got extra={config.model_config.get('extra')!r}"
        )
    section = LossSection if kind == "loss" else PluginSection
    names = {alias for name, f in config.model_fields.items() for alias in (name, f.alias) if alias}
    taken = sorted(names & set(section.model_fields))
    if taken:
        return (
            f"must not have Config fields that the recipe's section uses itself; got"
            f" {', '.join(taken)}; rename them"
        )
    return None


def _attribute_fault(kind: str, found: type[Any]) -> str | None:
    for attribute, (wanted, words) in ATTRIBUTES.get(kind, {}).items():
        value = getattr(found, attribute, None)
        if not isinstance(value, wanted) or not value:
            got = "none" if value is None else repr(value)
            return f"must set {attribute} to {words}; got {got}"
    return None
