"""Any plugin's `LinearMethod` as a real `PeftModel`: the PEFT type "FTRT".

PEFT's enum of methods is closed, its lookup tables are plain dicts keyed by string. Importing this
module adds the key "FTRT" to them (and changes nothing else), after which
`PeftModel.from_pretrained` reads such adapters.
"""

__all__ = ["FTRT", "FtrtConfig", "FtrtLayer", "FtrtTuner"]

import enum
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from ftrt.api import LinearMethod
from ftrt.errors import PluginError, UnsupportedError, suggest
from ftrt.integrations.peft_layer import CONTAINER, FtrtLayer
from ftrt.integrations.peft_targets import ALL_LINEAR, peft_targets, resolve_targets
from ftrt.nn import is_linear
from ftrt.plugins import PluginManager
from ftrt.recipe import PluginSection
from ftrt.registry import Registry


class FtrtPeftType(str, enum.Enum):  # noqa: UP042 - PEFT reads the part of str() behind the dot
    """The member that PEFT's closed `PeftType` lacks; equal to, and hashed like, its string."""

    FTRT = "FTRT"


FTRT = FtrtPeftType.FTRT


@dataclass
class FtrtConfig(PeftConfig):
    """`adapter_config.json` of a plugin's method.

    Attributes:
        method: the method's name; the plugin that offers it is found by it.
        options: the method's `Config` as JSON values, defaults included.
        plugin: distribution and version that offered the method, named when it is missing.
        target_modules: which layers are adapted, PEFT's syntax.
        modules_to_save: modules trained and saved whole.
    """

    method: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    plugin: str | None = None
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = FTRT
        self._method: LinearMethod | None = None

    def bind(self, method: LinearMethod) -> None:
        """Use this object instead of looking the method up by name."""
        self._method = method

    def resolve(self) -> LinearMethod:
        """The method this config names, built with its options.

        Raises:
            PluginError: no installed plugin offers it (the message says which one did), or it is
                broken.
            ConfigError: the installed version of the method refuses the options.
        """
        if self._method is None:
            self._method = self._look_up()
        return self._method

    def _look_up(self) -> LinearMethod:
        manager = PluginManager()
        known = {offer.name for offer in manager.manifest.offers if offer.kind == "method"}
        if self.method not in known:
            fix = suggest(self.method, known)
            if self.plugin is not None:
                fix = f"; it was {self.plugin}: pip install {self.plugin.partition(' ')[0]}"
            raise PluginError(
                f"method {self.method!r}: its plugin must be installed; none offers it{fix}"
            )
        found = Registry(manager).method(PluginSection(name=self.method, **self.options))
        if not isinstance(found, LinearMethod):
            raise PluginError(
                f"method {self.method!r}: this adapter needs a LinearMethod of that name; the"
                f" installed one is {type(found).__name__}"
            )
        return found


class FtrtTuner(BaseTuner):
    """Puts an `FtrtLayer` around every targeted linear layer; all else is PEFT's."""

    prefix = CONTAINER
    tuner_layer_cls = FtrtLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 - PEFT's attribute, never changed here

    def _pre_injection_hook(self, model: nn.Module, config: Any, adapter_name: str) -> None:
        # Adapters are built after the base is frozen, so that nothing a method derives from it
        # records gradients.
        model.requires_grad_(False)

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict[str, Any]) -> Any:
        if peft_config.target_modules in (None, ALL_LINEAR):
            new_modules = tuple(peft_config.modules_to_save or ())
            names = resolve_targets(self.model, None, new_modules=new_modules)
            peft_config.target_modules = peft_targets(self.model, names)
        return peft_config

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        method = peft_config.resolve()
        if isinstance(target, FtrtLayer):
            target.add_adapter(adapter_name, method, where=current_key)
            return
        if not is_linear(target):
            raise UnsupportedError(
                f"method {method.name!r}: adapts linear layers; target {current_key} is a"
                f" {type(target).__name__}"
            )
        layer = FtrtLayer(target, adapter_name)
        layer.add_adapter(adapter_name, method, where=current_key)
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
    ) -> None:
        # PEFT's version copies `child.weight`, which an int8 layer has not.
        setattr(parent, child_name, new_module)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        # PEFT drops these arguments silently for tuners that do not know them.
        for name in ("adapter_names", "alora_offsets"):
            if kwargs.get(name) is not None:
                configs: Any = self.peft_config.values()
                methods = ", ".join(sorted({config.method for config in configs}))
                raise UnsupportedError(
                    f"forward: {name} (several adapters in one batch) works with PEFT's LoRA only;"
                    f" got method {methods}. Call the model once per adapter, with set_adapter"
                    " between"
                )
        yield

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        # An adapter may hold modules of its own, so its name can stand anywhere behind the
        # container's.
        head, found, tail = key.partition(f".{CONTAINER}.{adapter_name}.")
        return f"{head}.{CONTAINER}.{tail}" if found else key


def _register(table: dict[Any, Any], value: Any) -> None:
    table[FTRT] = value


_register(PEFT_TYPE_TO_CONFIG_MAPPING, FtrtConfig)
_register(PEFT_TYPE_TO_TUNER_MAPPING, FtrtTuner)
_register(PEFT_TYPE_TO_PREFIX_MAPPING, FtrtTuner.prefix)
