"""Putting a saved adapter on its base: strict, and undone when it fails."""

__all__ = ["load"]

from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from peft.auto import MODEL_TYPE_TO_PEFT_MODEL_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from ftrt.api import LinearMethod
from ftrt.errors import CheckpointError, UsageError
from ftrt.integrations.peft_config import check_bare, check_int8, modules_to_save
from ftrt.integrations.peft_files import check_base, check_tensors, read_config, read_tensors
from ftrt.integrations.peft_int8 import guard_merging, show_as_linear, show_as_they_are
from ftrt.integrations.peft_lora import fuse_layers, is_plain_lora, lora_on_int8
from ftrt.integrations.peft_tuner import FtrtConfig
from ftrt.nn import Int8Linear


def load(
    model: nn.Module,
    path: str | Path,
    *,
    adapter_name: str = "default",
    is_trainable: bool = False,
    method: LinearMethod | None = None,
) -> PeftModel:
    """Put a saved adapter on its float or int8 base, in place.

    Unlike `PeftModel.from_pretrained`, tensors that are missing or left over are errors, and after
    an error the model is what it was.

    Args:
        model: the base, or a `PeftModel` that gets a further adapter (inactive until
            `set_adapter`).
        path: the adapter folder.
        adapter_name: PEFT's name for the adapter.
        is_trainable: False freezes the adapter and puts the model in eval mode.
        method: used instead of the installed plugin of that name.

    Raises:
        CheckpointError: files missing, corrupt or for another base.
        PluginError: the plugin that has the method is not installed.
        UnsupportedError: the adapter's method cannot run on this base.
    """
    folder = Path(path).expanduser()
    if isinstance(model, PeftModel) and adapter_name in model.peft_config:
        raise UsageError(
            f"load: adapter {adapter_name!r} is on the model already; give another adapter_name"
        )
    if not isinstance(model, PeftModel):
        check_bare(model)
    config = read_config(folder)
    tensors = read_tensors(folder)
    check_base(model, folder)
    _prepare_loaded(config, model, method, folder)
    config.inference_mode = not is_trainable
    shown = show_as_linear(model, config)
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        peft_model = _inject(model, config, adapter_name, folder)
        saved = get_peft_model_state_dict(
            peft_model, adapter_name=adapter_name, save_embedding_layers=False
        )
        check_tensors(folder, tensors, saved, peft_model.state_dict())
        set_peft_model_state_dict(peft_model, tensors, adapter_name=adapter_name)
    except BaseException:
        _take_off(model, adapter_name)
        show_as_they_are(shown)
        for parameter, requires_grad in flags:
            parameter.requires_grad_(requires_grad)
        raise
    fuse_layers(peft_model)
    guard_merging(peft_model)
    return peft_model if is_trainable else peft_model.eval()


def _prepare_loaded(
    config: Any, model: nn.Module, method: LinearMethod | None, folder: Path
) -> None:
    has_int8 = any(isinstance(module, Int8Linear) for module in model.modules())
    if getattr(config, "modules_to_save", None):
        config.modules_to_save = modules_to_save(config.modules_to_save, config.task_type)
    if not isinstance(config, FtrtConfig):
        if has_int8 and is_plain_lora(config):
            lora_on_int8(config)
        return
    if method is not None:
        if method.name != config.method:
            raise CheckpointError(
                f"{folder}: the adapter's method is {config.method!r}; got method {method.name!r}"
            )
        config.bind(method)
    found = config.resolve()
    if has_int8:
        check_int8(model, found, ())


def _inject(model: nn.Module, config: PeftConfig, adapter_name: str, folder: Path) -> PeftModel:
    try:
        if isinstance(model, PeftModel):
            model.add_adapter(adapter_name, config)
            if not config.inference_mode:
                model.set_requires_grad(adapter_name)
            return model
        kind = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type or "", PeftModel)
        return kind(model, config, adapter_name)
    # PEFT: no layer of that name (ValueError), a layer or a model that the method cannot adapt
    except (ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"{folder}: the adapter, of targets {_targets(config)}, does not fit"
            f" {type(_bare(model)).__name__}; {error}"
        ) from error


def _take_off(model: nn.Module, adapter_name: str) -> None:
    """Undo a load that failed, however far it came."""
    if isinstance(model, PeftModel):
        if adapter_name in model.peft_config:
            model.delete_adapter(adapter_name)
        return
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, BaseTunerLayer):
                setattr(parent, name, child.base_layer)
            elif isinstance(child, AuxiliaryTrainingWrapper):
                setattr(parent, name, child.original_module)
    model.__dict__.pop("peft_config", None)


def _targets(config: PeftConfig) -> str:
    targets = getattr(config, "target_modules", None) or ()
    return targets if isinstance(targets, str) else ", ".join(sorted(targets))


def _bare(model: nn.Module) -> nn.Module:
    base: nn.Module = model.get_base_model() if isinstance(model, PeftModel) else model
    return base
