"""What `ftrt plugins info` finds out by importing a plugin."""

__all__ = ["config_options", "describe_family", "describe_plugin"]

import inspect
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from ftrt.kernels import Kernel
from ftrt.registry import Registry

# the facts `info` shows of each kind, class attributes of the contracts in `ftrt.api`
FACTS = {
    "method": ("supports_quantized_base", "mergeable"),
    "head": ("auto_class", "task_type", "columns", "optional_columns", "metric"),
    "loss": ("needs_signal", "needs_hidden_states", "needs_logits"),
}


def describe_plugin(kind: str, name: str) -> dict[str, Any]:
    """Everything about one plugin that its class says, as JSON values."""
    registry = Registry()
    found = registry.find(kind, name)
    offer = registry.manager.manifest.find(kind, name)
    origin = {
        "kind": kind,
        "name": name,
        "distribution": offer.distribution,
        "version": offer.version,
        "module": offer.module,
    }
    if kind == "kernel":
        return {**origin, **_kernel_facts(found)}
    return {
        **origin,
        "summary": _summary(found),
        "source": getattr(found, "source", None),
        "file": inspect.getsourcefile(found),
        "facts": {fact: _json(getattr(found, fact)) for fact in FACTS.get(kind, ())},
        "options": config_options(found.Config),
    }


def _kernel_facts(kernel: Kernel) -> dict[str, Any]:
    """As of a class; the summary is the first line of the source's comment."""
    first = kernel.source.read_text(encoding="utf-8").partition("\n")[0]
    return {
        "summary": first.removeprefix("//").strip() if first.startswith("//") else "",
        "source": None,
        "file": str(kernel.source),
        "facts": {
            "signature": kernel.signature.letters,
            "threads": kernel.threads,
            "arches": list(kernel.arches),
            "source_sha256": kernel.source_hash(),
        },
        "options": [],
    }


def describe_family(kind: str, name: str) -> dict[str, Any]:
    """The members of a family, "peft:*", with what each is, as JSON values."""
    registry = Registry()
    offer = registry.manager.manifest.find(kind, name)
    members = registry.manager.members(offer, kind)
    return {
        "kind": kind,
        "name": name,
        "distribution": offer.distribution,
        "version": offer.version,
        "members": [{"name": m, "summary": _summary(registry.find(kind, m))} for m in members],
    }


def _summary(found: type[Any]) -> str:
    return (inspect.getdoc(found) or "").partition("\n\n")[0].replace("\n", " ")


def config_options(config: type[BaseModel]) -> list[dict[str, Any]]:
    """name, type, default and help of each option of a `Config`."""
    options = []
    for name, field in config.model_fields.items():
        default = field.default_factory() if field.default_factory else field.default  # type: ignore[call-arg]
        options.append(
            {
                "name": field.alias or name,
                "type": _type_name(field.annotation),
                "required": field.is_required(),
                "default": None if default is PydanticUndefined else _json(default),
                "help": field.description or "",
            }
        )
    return options


def _type_name(annotation: Any) -> str:
    return inspect.formatannotation(annotation).replace("typing.", "")


def _json(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, (tuple, list)):
        return [_json(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, dict, type(None))) else str(value)
