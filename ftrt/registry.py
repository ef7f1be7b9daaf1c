"""From a recipe's sections to plugin objects: find the class, check it, validate the options."""

__all__ = ["Registry", "contract_fault", "merge"]

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from ftrt.api import Head, LossTerm, Method, SignalSource, Transform
from ftrt.contracts import CONTRACTS, contract_fault
from ftrt.errors import ConfigError, FtrtError, PluginError, one_line
from ftrt.kernels.kernel import Kernel
from ftrt.plugin_faults import location
from ftrt.plugins import PluginManager
from ftrt.recipe import PluginSection, Recipe, parse
from ftrt.validation import describe


class Registry:
    """Builds what a recipe names; one per run, over that run's `PluginManager`."""

    def __init__(self, manager: PluginManager | None = None) -> None:
        self.manager = manager if manager is not None else PluginManager()

    def find(self, kind: str, name: str) -> Any:
        """The class, or `Kernel`, of that kind and name, its contract checked."""
        found = self.manager.get(kind, name)
        fault = contract_fault(kind, found)
        if fault:
            offer = self.manager.manifest.find(kind, name)
            subject = "it" if kind == "kernel" else found.__qualname__
            raise PluginError(f"{kind} {name!r} of {offer}: {subject} {fault}")
        return found

    def kernel(self, name: str) -> Kernel:
        """The kernel of that name, for its own plugin or for another one to launch."""
        found: Kernel = self.find("kernel", name)
        return found

    def method(self, section: PluginSection) -> Method:
        """The method a section names, built with its validated options."""
        built: Method = self._build("method", section)
        return built

    def head(self, section: PluginSection) -> Head:
        """The head a section names, built with its validated options."""
        built: Head = self._build("head", section)
        return built

    def loss(self, section: PluginSection) -> LossTerm:
        """The loss term a section names, built with its validated options."""
        built: LossTerm = self._build("loss", section)
        return built

    def signal(self, section: PluginSection) -> SignalSource:
        """The signal source a section names, built with its validated options."""
        built: SignalSource = self._build("signal", section)
        return built

    def transform(self, section: PluginSection) -> Transform:
        """The data transform a section names, built with its validated options."""
        built: Transform = self._build("transform", section)
        return built

    def expand(self, recipe: Recipe) -> Recipe:
        """Replace a named recipe by its sections; what stands beside it in `recipe` wins."""
        if recipe.recipe is None:
            return recipe
        name = recipe.recipe.name
        found = self.find("recipe", name)
        config = self._validate("recipe", recipe.recipe, found)
        try:
            tree = found.expand(config)
        except FtrtError:
            raise
        except Exception as error:
            raise self._raised("recipe", name, "expand()", error) from error
        where = f"recipe {name!r} of {self.manager.manifest.find('recipe', name)}"
        if not isinstance(tree, Mapping):
            raise PluginError(
                f"{where}: expand() must return a dict of sections; got {type(tree).__name__}"
            )
        if "recipe" in tree:
            raise PluginError(f"{where}: expand() must not name a recipe again; got 'recipe'")
        own = recipe.model_dump(exclude_unset=True, exclude={"recipe"})
        return parse(merge(tree, own), where)

    def _build(self, kind: str, section: PluginSection) -> Any:
        found = self.find(kind, section.name)
        config = self._validate(kind, section, found)
        try:
            built = found(config)
        except FtrtError:
            raise
        except Exception as error:
            name = f"{found.__qualname__}(config)"
            raise self._raised(kind, section.name, name, error) from error
        contract = CONTRACTS[kind]
        if not isinstance(built, contract):
            raise PluginError(
                f"{kind} {section.name!r}: must build a {contract.__name__};"
                f" got {type(built).__name__}"
            )
        return built

    def _validate(self, kind: str, section: PluginSection, found: type[Any]) -> BaseModel:
        where = f"{kind} {section.name!r}"
        try:
            validated: BaseModel = found.Config.model_validate(section.options)
        except ValidationError as error:
            text = describe(error, where, found.Config, section.options)
            raise ConfigError(text) from None
        except FtrtError:
            raise
        except Exception as error:
            raise self._raised(kind, section.name, "Config", error) from error
        return validated

    def _raised(self, kind: str, name: str, what: str, error: Exception) -> PluginError:
        offer = self.manager.manifest.find(kind, name)
        return PluginError(
            f"{kind} {name!r} of {offer}: {what} must not raise; it raised {one_line(error)}"
            f" at {location(error, offer.module)}"
        )


def merge(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """`lower` with `upper` laid over it, section by section; lists and values are replaced whole.

    A section that names another plugin replaces the one below: options belong to their plugin.
    """
    result = dict(lower)
    for key, value in upper.items():
        below = result.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping) and _same_plugin(below, value):
            result[key] = merge(below, value)
        else:
            result[key] = value
    return result


def _same_plugin(below: Mapping[str, Any], above: Mapping[str, Any]) -> bool:
    return "name" not in above or below.get("name") == above["name"]
