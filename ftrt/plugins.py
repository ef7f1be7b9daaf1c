"""Plugin loading: one import when a recipe names what a plugin offers.

What is installed is known from metadata alone (`ftrt.manifest`), so a plugin that is broken or slow
costs nothing until it is named. A `PluginManager` belongs to one run; there is no process-wide
state but Python's own module cache.
"""

__all__ = ["Manifest", "Offer", "PluginManager", "discover", "manager"]

import importlib
import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pluggy

from ftrt import hookspecs
from ftrt.errors import FtrtError, PluginError, one_line, suggest
from ftrt.manifest import Manifest, Offer, discover
from ftrt.plugin_faults import (
    import_fault,
    location,
    marker_fault,
    validation_fault,
    version_fault,
)

if TYPE_CHECKING:
    from ftrt.kernels.kernel import Kernel


class PluginManager:
    """Loads the plugins one run names and hands out what they register."""

    def __init__(self, manifest: Manifest | None = None) -> None:
        self.manifest = discover() if manifest is None else manifest
        self._pluggy = pluggy.PluginManager(hookspecs.PROJECT)
        self._pluggy.add_hookspecs(hookspecs)
        self._modules: dict[str, ModuleType] = {}
        self._registered: dict[tuple[str, str], dict[str, Any]] = {}

    def get(self, kind: str, name: str) -> Any:
        """The class, or `Kernel`, registered as `name`; imports the one plugin that offers it.

        Raises:
            PluginError: not offered, offered twice, import fails, hook misspelt, promise not kept.
        """
        offer = self.manifest.find(kind, name)
        registered = self.registered(offer, kind)
        if name not in registered and offer.is_family:
            members = self.members(offer, kind)
            raise PluginError(
                f"{kind} {name!r}: {offer} must offer it to be used; it does"
                f" not{suggest(name, members)} (`ftrt plugins info '{offer.name}'` lists all"
                f" {len(members)})"
            )
        if name not in registered:
            module = self._modules[offer.module]
            raise PluginError(
                f"{kind} {name!r}: {offer} promises it in its metadata, so"
                f" {hookspecs.KINDS[kind]}() in {getattr(module, '__file__', offer.module)} must"
                f" return it; it returns {', '.join(sorted(registered)) or 'nothing'}; mend the"
                " plugin, or the entry points in its pyproject.toml"
            )
        return registered[name]

    def members(self, offer: Offer, kind: str) -> list[str]:
        """The names that recipes may use for an offer: its own, or those of its family, sorted.

        A family's module is imported for it.
        """
        if not offer.is_family:
            return [offer.name]
        return sorted(name for name in self.registered(offer, kind) if offer.covers(name))

    def registered(self, offer: Offer, kind: str) -> dict[str, Any]:
        """name -> class, or `Kernel`, of everything of `kind` that the module registers."""
        key = (offer.module, kind)
        if key not in self._registered:
            self._registered[key] = self._ask(offer, kind)
        return dict(self._registered[key])

    def call(self, hook: str, **arguments: Any) -> None:
        """Fire `hook` in every plugin this manager has loaded, in load order.

        Raises:
            PluginError: a plugin raised; an `FtrtError` it raised goes through as it is.
        """
        for name, module in self._modules.items():
            others = [other for other in self._modules.values() if other is not module]
            try:
                self._pluggy.subset_hook_caller(hook, others)(**arguments)
            except FtrtError:
                raise
            except (Exception, SystemExit) as error:
                raise PluginError(
                    f"plugin {self._offer_of(name)}: {hook}() must not raise; it raised"
                    f" {one_line(error)} at {location(error, name)}"
                ) from error

    @property
    def distributions(self) -> dict[str, str]:
        """distribution -> version of every plugin this manager has loaded, for `ftrt.json`."""
        loaded = [offer for offer in self.manifest.offers if offer.module in self._modules]
        return {offer.distribution: offer.version for offer in loaded}

    def _offer_of(self, module: str) -> str:
        offers = [offer for offer in self.manifest.offers if offer.module == module]
        return str(offers[0]) if offers else module

    def _ask(self, offer: Offer, kind: str) -> dict[str, Any]:
        self._load(offer)
        hook = hookspecs.KINDS[kind]
        where = f"plugin {offer}: {hook}()"
        ask = _kernels if kind == "kernel" else _classes
        result: dict[str, Any] = {}
        for function in self._implementations(offer.module, hook):
            for item in ask(function, where, offer.module):
                if item.name in result:
                    raise PluginError(
                        f"{where} must return each name once; it returns {item.name!r} twice"
                    )
                result[item.name] = item
        return result

    def _implementations(self, module: str, hook: str) -> list[Callable[[], Any]]:
        caller: pluggy.HookCaller = getattr(self._pluggy.hook, hook)
        return [impl.function for impl in caller.get_hookimpls() if impl.plugin_name == module]

    def _load(self, offer: Offer) -> None:
        if offer.module in self._modules:
            return
        was_imported = offer.module in sys.modules
        module = _import(offer)
        try:
            self._admit(offer, module)
        except PluginError:
            if self._pluggy.is_registered(module):
                self._pluggy.unregister(module)
            if not was_imported:
                # Refused: a mended file is read afresh by the next manager of this process.
                sys.modules.pop(offer.module, None)
            raise
        self._modules[offer.module] = module

    def _admit(self, offer: Offer, module: ModuleType) -> None:
        fault = version_fault(offer, module) or marker_fault(offer, module)
        if fault:
            raise PluginError(fault)
        try:
            self._pluggy.register(module, name=offer.module)
            self._pluggy.check_pending()
        except pluggy.PluginValidationError as error:
            raise PluginError(validation_fault(offer, module, error)) from None


def manager() -> PluginManager:
    """A fresh manager over what is installed; make one a run."""
    return PluginManager()


def _import(offer: Offer) -> ModuleType:
    # A plugin installed or mended while this process runs must be seen.
    importlib.invalidate_caches()
    try:
        return importlib.import_module(offer.module)
    except (KeyboardInterrupt, FtrtError):
        # FtrtError: importing ftrt's ops reads the environment, and a wrong FTRT_CPU_ISA is not
        # the plugin's fault.
        raise
    except BaseException as error:
        # BaseException: a plugin may call sys.exit(), and a panic in a Rust extension derives
        # from BaseException too.
        raise PluginError(import_fault(offer, error)) from error


def _classes(function: Callable[[], Any], where: str, module: str) -> list[type[Any]]:
    returned = _listed(function, where, module, "classes")
    for item in returned:
        if not inspect.isclass(item):
            raise PluginError(f"{where} must return classes; got {_described(item)}")
        name = getattr(item, "name", None)
        if not isinstance(name, str) or not name:
            raise PluginError(
                f"{where} must return classes with a `name` string; {item.__qualname__} has"
                f" {_described(name) if name is not None else 'none'}"
            )
    return returned


def _kernels(function: Callable[[], Any], where: str, module: str) -> "list[Kernel]":
    # Imports torch, which plugins without kernels can do without.
    from ftrt.kernels.kernel import Kernel
    from ftrt.plugin_kernels import source_fault

    returned = _listed(function, where, module, "kernels")
    for item in returned:
        if not isinstance(item, Kernel):
            raise PluginError(
                f"{where} must return ftrt.kernels.Kernel objects; got {_described(item)}"
            )
        fault = source_fault(item, module)
        if fault:
            raise PluginError(f"{where}: kernel {item.name!r} {fault}")
    return returned


def _listed(function: Callable[[], Any], where: str, module: str, what: str) -> list[Any]:
    try:
        returned = function()
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"{where} must return a list of {what}; it raised {one_line(error)}"
            f" at {location(error, module)}"
        ) from error
    if not isinstance(returned, (list, tuple)):
        raise PluginError(f"{where} must return a list of {what}; got {_described(returned)}")
    return list(returned)


def _described(value: object) -> str:
    if inspect.isclass(value):
        return f"the class {value.__qualname__}; put it in a list"
    if isinstance(value, (str, int, float, type(None))):
        return repr(value)
    return f"an instance of {type(value).__qualname__}"
