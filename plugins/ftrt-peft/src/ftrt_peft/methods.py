"""Every method of the installed PEFT, `peft:NAME`, with PEFT's own options."""

__all__ = ["NamedMethod", "method_class"]

import re
from typing import Any, ClassVar

from peft import PeftConfig
from peft.utils import constants
from torch import nn

from ftrt.api import Method, PeftMethod, Setting
from ftrt.errors import ConfigError
from ftrt.hookspecs import hookimpl
from ftrt_peft.catalog import FACTS, PREFIX, Facts, peft_configs, source_of, summary_of
from ftrt_peft.options import PeftOptions, options_of
from ftrt_peft.record import Tested, tested
from ftrt_peft.settings import refuse

ftrt_hookspec = 1


class NamedMethod(PeftMethod):
    """One of PEFT's methods; the subclass of each has its name, options and findings."""

    facts: ClassVar[Facts]
    found: ClassVar[Tested]
    config: PeftOptions

    def check_setting(self, setting: Setting) -> None:
        """Refuse what was found not to work.

        Raises:
            UnsupportedError: the message says why, and what works in its place.
        """
        refuse(self.name, self.facts, self.found, setting)

    def peft_config(self, model: nn.Module) -> PeftConfig:
        """PEFT's config, with what only the model knows."""
        return self.config.peft(**self.known(model))

    def known(self, model: nn.Module) -> dict[str, Any]:
        """Fields of PEFT's config that the recipe does not give."""
        known: dict[str, Any] = {}
        if "targets" in type(self.config).model_fields:
            known["target_modules"] = self.targets(model)
        if "tokenizer_name_or_path" in self.facts.unknown_yet and (
            "tokenizer_name_or_path" not in self.config.model_fields_set
        ):
            known["tokenizer_name_or_path"] = getattr(model, "name_or_path", None) or "unknown"
        if "task_type" in self.facts.unknown_yet:
            known["task_type"] = self.facts.unknown_yet["task_type"]
        return known

    def targets(self, model: nn.Module) -> str | list[str] | None:
        """The recipe's `targets`, or the method's own default for this model."""
        given: str | list[str] | None = getattr(self.config, "targets", None)
        if given is None:
            return layers_of_peft(self.name.removeprefix(PREFIX), model)
        default = self.facts.targets
        if given == default and isinstance(default, str) and default.startswith(".*"):
            if not any(re.fullmatch(default, name) for name, _ in model.named_modules()):
                raise ConfigError(
                    f"method {self.name!r}: targets: {type(model).__name__} must have a layer that"
                    f" {default!r} matches; it has none. Name the layers"
                )
        return given


def layers_of_peft(name: str, model: nn.Module) -> list[str] | None:
    """The layers that PEFT itself adapts in a model of this type; None where it looks for them."""
    table = f"TRANSFORMERS_MODELS_TO_{name.upper()}_TARGET_MODULES_MAPPING"
    mapping = getattr(constants, table, {})
    found = mapping.get(getattr(getattr(model, "config", None), "model_type", None))
    return list(found) if found else None


def method_class(name: str, config: type[PeftConfig]) -> type[NamedMethod]:
    """The ftrt method of PEFT's method `name`."""
    from ftrt_peft.adalora import AdaLora
    from ftrt_peft.lora import PeftLora
    from ftrt_peft.prompts import SoftPrompt

    facts, found = FACTS.get(name, Facts()), tested(name)
    kind: type[NamedMethod] = NamedMethod
    if name == "adalora":
        kind = AdaLora
    elif name == "lora":
        kind = PeftLora
    elif "num_virtual_tokens" in config.__dataclass_fields__:
        kind = SoftPrompt
    body = {
        "__doc__": summary_of(name),
        "__module__": __name__,
        "name": PREFIX + name,
        "source": source_of(name, config),
        "Config": options_of(
            config,
            targets=facts.targets,
            hidden=facts.hidden,
            required=facts.required,
            unknown_yet=facts.unknown_yet,
        ),
        "facts": facts,
        "found": found,
        "supports_quantized_base": found.has("int8"),
        "supports_gradient_checkpointing": found.has("checkpointing"),
        "mergeable": found.has("merge"),
        "starts_as_base": found.has("identity"),
    }
    return type(config.__name__.removesuffix("Config"), (kind,), body)


@hookimpl
def register_methods() -> list[type[Method]]:
    return [method_class(name, config) for name, config in peft_configs().items()]
