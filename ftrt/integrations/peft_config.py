"""From a method and a model to the `PeftConfig` that PEFT injects and saves."""

__all__ = ["check_bare", "check_int8", "config_for", "modules_to_save"]

from collections.abc import Mapping, Sequence
from typing import Any, cast

from peft import PeftConfig, PeftModel, TaskType
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ftrt.api import LinearMethod, Method, PeftMethod
from ftrt.errors import ConfigError, PluginError, UnsupportedError, UsageError, suggest
from ftrt.integrations.peft_lora import is_plain_lora, lora_on_int8
from ftrt.integrations.peft_targets import ALL_LINEAR, peft_targets, resolve_targets
from ftrt.integrations.peft_tuner import FtrtConfig
from ftrt.nn import Int8Linear
from ftrt.plugins import discover

# What PEFT's task classes add to `modules_to_save` by themselves.
TASK_MODULES = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}


def config_for(
    model: nn.Module,
    method: Method,
    *,
    new_modules: Sequence[str] = (),
    task_type: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> PeftConfig:
    """The `PeftConfig` of `method` on `model`, for `PeftModel.add_adapter` too.

    Args and errors are those of `wrap`; `model` may also be a `PeftModel`.
    """
    model = model.get_base_model() if isinstance(model, PeftModel) else model
    if task_type is not None and task_type not in list(TaskType):
        known = [kind.value for kind in TaskType]
        raise ConfigError(
            f"task_type: must be one of PEFT's; got {task_type!r}{suggest(task_type, known)}"
        )
    whole = tuple(dict.fromkeys((*new_modules, *TASK_MODULES.get(task_type or "", ()))))
    check_int8(model, method, new_modules)
    _check_checkpointing(model, method)
    if isinstance(method, LinearMethod):
        return _linear_config(model, method, whole, new_modules, task_type, options)
    if isinstance(method, PeftMethod):
        return _peft_config(model, method, whole, new_modules, task_type)
    raise UsageError(
        f"wrap: method must be a LinearMethod or a PeftMethod; got {type(method).__name__}, which"
        " trains the model's own parameters through prepare()"
    )


def _linear_config(
    model: nn.Module,
    method: LinearMethod,
    whole: Sequence[str],
    new_modules: Sequence[str],
    task_type: str | None,
    options: Mapping[str, Any] | None,
) -> FtrtConfig:
    targets = getattr(method.config, "targets", ALL_LINEAR)
    where = f"method {method.name!r}: targets"
    names = resolve_targets(model, targets, new_modules=whole, where=where)
    config = FtrtConfig(
        task_type=task_type,
        method=method.name,
        options=dict(options) if options is not None else method.config.model_dump(mode="json"),
        plugin=_plugin_of(method),
        target_modules=peft_targets(model, names),
        modules_to_save=modules_to_save(new_modules, task_type),
    )
    config.bind(method)
    return config


def _peft_config(
    model: nn.Module,
    method: PeftMethod,
    whole: Sequence[str],
    new_modules: Sequence[str],
    task_type: str | None,
) -> PeftConfig:
    given = method.peft_config(model)
    if not isinstance(given, PeftConfig):
        raise PluginError(
            f"method {method.name!r}: peft_config must return a PeftConfig; got"
            f" {type(given).__name__}"
        )
    config: Any = given
    config.task_type = config.task_type or task_type
    if hasattr(config, "modules_to_save"):
        config.modules_to_save = modules_to_save(
            (*(config.modules_to_save or ()), *new_modules), config.task_type
        )
    targets = getattr(config, "target_modules", None)
    if targets is None:
        return cast(PeftConfig, config)
    if isinstance(targets, str) and targets.lower() == ALL_LINEAR:
        targets = ALL_LINEAR
    where = f"method {method.name!r}: targets"
    names = resolve_targets(model, targets, new_modules=whole, linear_only=False, where=where)
    if not isinstance(targets, str) or targets == ALL_LINEAR:
        found = peft_targets(model, names)
        # PEFT's own configs hold a set, and parts of PEFT refuse a list
        config.target_modules = found if isinstance(found, str) else set(found)
    int8 = {name for name, module in model.named_modules() if isinstance(module, Int8Linear)}
    if is_plain_lora(config) and any(n in int8 or f"{n}.base_layer" in int8 for n in names):
        lora_on_int8(config)
    return cast(PeftConfig, config)


def check_bare(model: nn.Module) -> None:
    """Refuse a model that carries adapters already."""
    if isinstance(model, PeftModel) or any(
        isinstance(module, BaseTunerLayer) for module in model.modules()
    ):
        raise UsageError(
            f"{type(model).__name__}: must be a model without adapters; it has some. Call .unload()"
            " first, or PeftModel.add_adapter for a further one"
        )


def check_int8(model: nn.Module, method: Method, new_modules: Sequence[str]) -> None:
    """Refuse int8 layers under a method that needs float ones, and in modules that must train."""
    int8 = [name for name, module in model.named_modules() if isinstance(module, Int8Linear)]
    if int8 and not method.supports_quantized_base:
        raise UnsupportedError(
            f"method {method.name!r}: needs a float base; {len(int8)} layers are int8, {int8[0]}"
            " the first. Remove `quantization`, or choose a method that supports it, such as lora"
        )
    for name in int8:
        if any(f".{module}." in f".{name}." for module in new_modules):
            raise UnsupportedError(
                f"method {method.name!r}: {name} is new and must train, which int8 cannot; add it"
                " to quantization.skip"
            )


def _check_checkpointing(model: nn.Module, method: Method) -> None:
    if getattr(model, "is_gradient_checkpointing", False) is True and not (
        method.supports_gradient_checkpointing
    ):
        raise UnsupportedError(
            f"method {method.name!r}: must run without gradient checkpointing, which"
            f" {type(model).__name__} has enabled; call gradient_checkpointing_disable(), or choose"
            " a method that supports it, such as lora"
        )


def modules_to_save(names: Sequence[str], task_type: str | None) -> list[str] | None:
    """`names` once each, without those that PEFT's task class adds by itself."""
    added = TASK_MODULES.get(task_type or "", ())
    return [name for name in dict.fromkeys(names) if name not in added] or None


def _plugin_of(method: Method) -> str | None:
    module = type(method).__module__
    for offer in discover().offers:
        if (offer.kind, offer.name) == ("method", method.name) and f"{module}.".startswith(
            f"{offer.module}."
        ):
            return f"{offer.distribution} {offer.version}"
    return None
