"""What `ftrt plugins check` tries on a module that need not be installed."""

__all__ = ["CheckOptions", "check_module"]

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ftrt.contracts import contract_fault
from ftrt.errors import FtrtError, UsageError, one_line
from ftrt.hookspecs import KINDS
from ftrt.manifest import Manifest, Offer, discover
from ftrt.plugins import PluginManager

Result = dict[str, Any]

# the kinds that the conformance kit has checks for
TRIED = ("method", "head", "loss", "kernel")


@dataclass(frozen=True)
class CheckOptions:
    """What the classes are tried with: options by the class's recipe name, and rows for heads."""

    options: Mapping[str, Any] = field(default_factory=dict)
    rows: Path | None = None


def check_module(module: str, tried_with: CheckOptions) -> list[Result]:
    """Check everything `module` registers; one result a check, in the order they ran.

    A result's `ok` is None where a check could not be tried.

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
    return list(_checks(module, installed, tried_with))


def _checks(module: str, installed: list[Offer], tried_with: CheckOptions) -> Iterator[Result]:
    package = module.partition(".")[0]
    offer = installed[0] if installed else Offer("method", "-", module, package, "(not installed)")
    manager = PluginManager(Manifest(tuple(installed)))
    found: dict[str, dict[str, Any]] = {}
    for kind in KINDS:
        try:
            found[kind] = manager.registered(offer, kind)
        except FtrtError as error:
            yield _result(module, "import and hooks", str(error))
            return
    yield _result(module, "import and hooks", None)
    if not any(found.values()):
        yield _result(module, "registers something", "none of its hooks returns a class")
    for promised in installed:
        if not any(promised.covers(name) for name in found[promised.kind]):
            hook = f"{KINDS[promised.kind]}() does not return it"
            yield _result(f"{promised.kind} {promised.name}", "promised in metadata", hook)
    for kind, classes in found.items():
        for name, cls in classes.items():
            yield from _check_class(kind, name, cls, installed)
            if contract_fault(kind, cls) is None and kind in TRIED:
                yield _conformance(kind, cls, tried_with)


def _check_class(kind: str, name: str, cls: Any, installed: list[Offer]) -> Iterator[Result]:
    subject = f"{kind} {name}"
    if installed and not any(offer.kind == kind and offer.covers(name) for offer in installed):
        yield _result(
            subject,
            "offered in metadata",
            f'no recipe can name it; add the entry point "{kind}.{name}" = "{installed[0].module}"'
            " to its pyproject.toml and reinstall it",
        )
    fault = contract_fault(kind, cls)
    yield _result(subject, "contract", fault and f"{getattr(cls, '__qualname__', name)} {fault}")


def _conformance(kind: str, cls: Any, tried_with: CheckOptions) -> Result:
    subject = f"{kind} {cls.name}"
    hint = _hint(kind, tried_with)
    if hint:
        return {"subject": subject, "check": "conformance", "ok": None, "message": hint}
    options = tried_with.options.get(cls.name)
    try:
        note = _try(kind, cls, options, tried_with.rows)
    except AssertionError as error:
        return _result(subject, "conformance", str(error))
    except Exception as error:
        # Whatever a stranger's class raises is the result of the check, not its end.
        return _result(subject, "conformance", one_line(error))
    return {"subject": subject, "check": "conformance", "ok": True, "message": note}


def _hint(kind: str, tried_with: CheckOptions) -> str:
    """Why a kind cannot be tried here; empty if it can."""
    if kind == "head" and tried_with.rows is None:
        return "not tried: a head needs rows; give some with --rows FILE.jsonl"
    if kind == "kernel":
        import torch

        from ftrt.kernels import is_available

        if not (torch.cuda.is_available() and is_available(torch.device("cuda"))):
            return "not tried: a kernel needs a GPU"
    return ""


def _try(kind: str, cls: Any, options: Mapping[str, Any] | None, rows: Path | None) -> str:
    """Run the kit on a class; what to add to "ok"."""
    from ftrt import testing
    from ftrt.data.formats import read_rows

    if kind == "head" and rows is not None:
        testing.check_head(cls, options, read_rows(rows, on_bad_row="raise").rows)
    elif kind == "method":
        testing.check_method(cls, options)
    elif kind == "kernel":
        testing.check_kernel(cls)
    else:
        try:
            testing.check_loss(cls, options)
        except AssertionError as classification:
            # A term may be for one task only, and the contract does not say which.
            try:
                testing.check_loss(cls, options, task="causal_lm")
            except AssertionError:
                raise classification from None
            return "causal_lm only"
    return ""


def _result(subject: str, check: str, fault: str | None) -> Result:
    return {"subject": subject, "check": check, "ok": fault is None, "message": fault or ""}
