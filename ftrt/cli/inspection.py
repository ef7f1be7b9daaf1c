"""What `ftrt plugins info` and `check` find out by importing a plugin."""

__all__ = ["check_module", "config_options", "describe_plugin"]

import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from ftrt.contracts import contract_fault
from ftrt.errors import FtrtError, PluginError, UsageError, one_line
from ftrt.hookspecs import KINDS
from ftrt.manifest import Manifest, Offer, discover
from ftrt.plugins import PluginManager
from ftrt.registry import Registry

# the facts `info` shows of each kind, class attributes of the contracts in `ftrt.api`
FACTS = {
    "method": ("supports_quantized_base", "mergeable"),
    "head": ("auto_class", "task_type", "columns", "optional_columns", "metric"),
    "loss": ("needs_signal", "needs_hidden_states"),
}


def describe_plugin(kind: str, name: str) -> dict[str, Any]:
    """Everything about one plugin that its class says, as JSON values."""
    registry = Registry()
    found = registry.find(kind, name)
    offer = registry.manager.manifest.find(kind, name)
    return {
        "kind": kind,
        "name": name,
        "summary": (inspect.getdoc(found) or "").partition("\n\n")[0].replace("\n", " "),
        "source": getattr(found, "source", None),
        "distribution": offer.distribution,
        "version": offer.version,
        "module": offer.module,
        "file": inspect.getsourcefile(found),
        "facts": {fact: _json(getattr(found, fact)) for fact in FACTS.get(kind, ())},
        "options": config_options(found.Config),
    }


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


def check_module(module: str) -> list[dict[str, Any]]:
    """Check everything `module` registers; one result a check, in the order they ran.

    Raises:
        UsageError: `module` is a path.
    """
    if module.endswith(".py") or "/" in module or "\\" in module:
        dotted = module.removesuffix(".py").replace("/", ".").replace("\\", ".").strip(".")
        raise UsageError(
            f"{module}: must be a module name, package.module; write {dotted} and run this in the"
            " folder that holds it"
        )
    for folder in (Path.cwd() / "src", Path.cwd()):
        if folder.is_dir() and str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    installed = [offer for offer in discover().offers if offer.module == module]
    return list(_checks(module, installed))


def _checks(module: str, installed: list[Offer]) -> Iterator[dict[str, Any]]:
    package = module.partition(".")[0]
    offer = installed[0] if installed else Offer("method", "-", module, package, "(not installed)")
    manager = PluginManager(Manifest(tuple(installed)))
    found: dict[str, dict[str, type[Any]]] = {}
    for kind in KINDS:
        try:
            found[kind] = manager.registered(offer, kind)
        except PluginError as error:
            yield _result(module, "import and hooks", str(error))
            return
    yield _result(module, "import and hooks", None)
    total = sum(len(classes) for classes in found.values())
    if not total:
        yield _result(module, "registers something", "none of its hooks returns a class")
    for promised in installed:
        if promised.name not in found[promised.kind]:
            hook = f"{KINDS[promised.kind]}() does not return it"
            yield _result(f"{promised.kind} {promised.name}", "promised in metadata", hook)
    for kind, classes in found.items():
        for name, cls in classes.items():
            yield from _check_class(kind, name, cls, installed)


def _check_class(
    kind: str, name: str, cls: type[Any], installed: list[Offer]
) -> Iterator[dict[str, Any]]:
    subject = f"{kind} {name}"
    if installed and (kind, name) not in {(offer.kind, offer.name) for offer in installed}:
        yield _result(
            subject,
            "offered in metadata",
            f'no recipe can name it; add the entry point "{kind}.{name}" = "{installed[0].module}"'
            " to its pyproject.toml and reinstall it",
        )
    fault = contract_fault(kind, cls)
    yield _result(subject, "contract", fault and f"{cls.__qualname__} {fault}")
    if fault is None and kind in ("method", "head", "loss"):
        yield _result(subject, "conformance", _conformance_fault(kind, cls))


def _conformance_fault(kind: str, cls: type[Any]) -> str | None:
    from ftrt import testing

    checks: dict[str, Callable[[type[Any]], Any]] = {
        "method": testing.check_method,
        "head": testing.check_head,
        "loss": testing.check_loss,
    }
    try:
        checks[kind](cls)
    except (FtrtError, AssertionError) as error:
        return str(error)
    except Exception as error:
        # Whatever a stranger's class raises is the result of the check, not its end.
        return one_line(error)
    return None


def _result(subject: str, check: str, fault: str | None) -> dict[str, Any]:
    return {"subject": subject, "check": check, "ok": fault is None, "message": fault or ""}


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
