"""What is wrong with a plugin, in words: each names distribution, version, file and fix."""

__all__ = [
    "import_fault",
    "location",
    "marker_fault",
    "runtime_fault",
    "validation_fault",
    "version_fault",
]

import inspect
import itertools
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import pluggy

from ftrt import hookspecs
from ftrt.errors import one_line, suggest
from ftrt.manifest import Offer

VERSION_ATTRIBUTE = "ftrt_hookspec"


def import_fault(offer: Offer, error: BaseException) -> str:
    """Why importing the offer's module failed, and what to do."""
    where = location(error, offer.module)
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        if offer.module == error.name or offer.module.startswith(f"{error.name}."):
            return (
                f"plugin {offer}: its metadata names the module {offer.module}, which must exist;"
                f" got {one_line(error)}; reinstall it:"
                f" pip install --force-reinstall {offer.distribution}"
            )
        missing = error.name.partition(".")[0]
        if missing == hookspecs.PROJECT:
            return (
                f"plugin {offer}: it must be written for this ftrt; {where} raised"
                f" {one_line(error)}; pip install -U ftrt {offer.distribution}"
            )
        if missing != offer.module.partition(".")[0]:
            return (
                f"plugin {offer}: what it imports must be installed; {where} raised"
                f" {one_line(error)}; install the package that has the module {error.name!r}"
            )
    return (
        f"plugin {offer}: its import must succeed; it raised {one_line(error)} at {where};"
        f" mend it, or uninstall it: pip uninstall {offer.distribution}"
    )


def location(error: BaseException, module: str) -> str:
    """`file:line` of the plugin's own deepest line in the traceback, or of the last line at all."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    foreign = list(itertools.dropwhile(lambda frame: _calls_plugins(frame.filename), frames))
    if not foreign:
        return module
    first = foreign[0].filename
    # A module inside a package owns the package's folder; a lone module owns its file.
    is_package = "." in module or os.path.basename(first) == "__init__.py"
    root = os.path.dirname(first) + os.sep if is_package else first
    own = [frame for frame in foreign if frame.filename.startswith(root)]
    return f"{own[-1].filename}:{own[-1].lineno}"


def _calls_plugins(filename: str) -> bool:
    folder = os.path.dirname(filename)
    return (
        filename.startswith("<frozen importlib")
        or filename.startswith(os.path.dirname(__file__) + os.sep)
        or os.path.basename(folder) in ("importlib", "pluggy", "pydantic")
    )


def runtime_fault(error: BaseException, offers: Iterable[Offer]) -> str | None:
    """What to say of an exception that a plugin's own code raised at work, or None if it did not.

    The deepest line that is ftrt's or a plugin's decides; lines of other libraries below it do not.
    """
    roots = {root: offer for offer in offers if (root := _root(offer)) is not None}
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename.startswith(os.path.dirname(__file__) + os.sep):
            return None
        for root, offer in roots.items():
            if frame.filename.startswith(root):
                return (
                    f"plugin {offer}: must not fail at work; {frame.filename}:{frame.lineno}"
                    f" raised {one_line(error)}; `ftrt plugins check {offer.module}` tries it;"
                    " --debug shows the traceback, for a report to its author"
                )
    return None


def _root(offer: Offer) -> str | None:
    """The folder of the package that has the offer's module, or the file of a lone module."""
    package = sys.modules.get(offer.module.partition(".")[0])
    file = getattr(package, "__file__", None)
    if file is None or offer.module not in sys.modules:
        return None
    return os.path.dirname(file) + os.sep if hasattr(package, "__path__") else str(file)


def version_fault(offer: Offer, module: ModuleType) -> str | None:
    """Why the plugin's hook version does not fit, or None."""
    wanted = hookspecs.HOOKSPEC_VERSION
    spoken = getattr(module, VERSION_ATTRIBUTE, None)
    file = _file(offer, module)
    if spoken is None:
        return (
            f"plugin {offer}: must state the hook version it is written for; {file} has no"
            f" {VERSION_ATTRIBUTE}; add the line {VERSION_ATTRIBUTE} = {wanted}"
        )
    if not isinstance(spoken, int) or isinstance(spoken, bool):
        return (
            f"plugin {offer}: {VERSION_ATTRIBUTE} must be an integer; {file} has {spoken!r};"
            f" write {VERSION_ATTRIBUTE} = {wanted}"
        )
    if spoken == wanted:
        return None
    older = spoken < wanted
    fix = f"pip install -U {offer.distribution if older else 'ftrt'}"
    return (
        f"plugin {offer}: must be written for hook version {wanted}, which this ftrt speaks;"
        f" {file} has {VERSION_ATTRIBUTE} = {spoken}; get a newer one: {fix}"
    )


def marker_fault(offer: Offer, module: ModuleType) -> str | None:
    """A function named like a hook that lacks `@hookimpl` and would never be called, or None."""
    marked = _marked(module)
    for name in hookspecs.HOOKS:
        function = vars(module).get(name)
        if name not in marked and inspect.isfunction(function):
            return (
                f"plugin {offer}: {_line(offer, module, function)}: {name}() must be marked;"
                " put @ftrt.hookimpl above it"
            )
    return None


def validation_fault(offer: Offer, module: ModuleType, error: pluggy.PluginValidationError) -> str:
    """What pluggy refused: a misspelt hook, or arguments the hook does not have."""
    for name, function in _marked(module).items():
        hook = getattr(function, f"{hookspecs.PROJECT}_impl").get("specname") or name
        line = _line(offer, module, function)
        if hook not in hookspecs.HOOKS:
            return (
                f"plugin {offer}: {line}: a function marked @hookimpl must be named like a hook;"
                f" got {hook!r}{suggest(hook, hookspecs.HOOKS)}"
            )
        expected = list(inspect.signature(getattr(hookspecs, hook)).parameters)
        extra = [p for p in inspect.signature(function).parameters if p not in expected]
        if extra:
            takes = ", ".join(expected) or "no arguments"
            return (
                f"plugin {offer}: {line}: {hook}() must take {takes}; got also {', '.join(extra)}"
            )
    return f"plugin {offer}: {_file(offer, module)}: {one_line(error)}"


def _marked(module: ModuleType) -> dict[str, Callable[..., Any]]:
    marker = f"{hookspecs.PROJECT}_impl"
    return {n: f for n, f in vars(module).items() if inspect.isfunction(f) and hasattr(f, marker)}


def _file(offer: Offer, module: ModuleType) -> str:
    return str(getattr(module, "__file__", None) or offer.module)


def _line(offer: Offer, module: ModuleType, function: Callable[..., Any]) -> str:
    return f"{_file(offer, module)}:{function.__code__.co_firstlineno}"
