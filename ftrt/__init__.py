"""ftrt: a plugin-based runtime for efficient fine-tuning of language models.

Importing this package imports neither torch nor transformers nor peft; each public name is loaded
when it is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ftrt.hookspecs import hookimpl

__version__ = "0.1.0"

# public name -> module that defines it
_PUBLIC = {
    "attach": "ftrt.runtime",
    "Run": "ftrt.runtime",
    "train": "ftrt.runtime",
    "TrainResult": "ftrt.runtime",
    "load_run": "ftrt.runtime",
    "load_model": "ftrt.runtime",
    "load_quantized": "ftrt.runtime",
    "LoadedRun": "ftrt.runtime",
    "fuse": "ftrt.integrations.peft",
    "load": "ftrt.integrations.peft",
    "quantize_linears": "ftrt.quantization.convert",
    "dequantize_linears": "ftrt.quantization.convert",
    "calibrate": "ftrt.quantization.calibration",
    "layer_report": "ftrt.nn.layer_report",
    "Recipe": "ftrt.recipe",
    "FtrtError": "ftrt.errors",
    **dict.fromkeys(
        (
            "Encoded",
            "Head",
            "LinearAdapter",
            "LinearMethod",
            "LossTerm",
            "Method",
            "ModelMethod",
            "PeftMethod",
            "PluginConfig",
            "Setting",
            "SignalSource",
            "Transform",
        ),
        "ftrt.api",
    ),
}

__all__ = [
    "Encoded",
    "FtrtError",
    "Head",
    "LinearAdapter",
    "LinearMethod",
    "LoadedRun",
    "LossTerm",
    "Method",
    "ModelMethod",
    "PeftMethod",
    "PluginConfig",
    "Recipe",
    "Run",
    "Setting",
    "SignalSource",
    "TrainResult",
    "Transform",
    "attach",
    "calibrate",
    "dequantize_linears",
    "fuse",
    "hookimpl",
    "layer_report",
    "load",
    "load_model",
    "load_quantized",
    "load_run",
    "quantize_linears",
    "train",
]

if TYPE_CHECKING:
    from ftrt.api import (
        Encoded,
        Head,
        LinearAdapter,
        LinearMethod,
        LossTerm,
        Method,
        ModelMethod,
        PeftMethod,
        PluginConfig,
        Setting,
        SignalSource,
        Transform,
    )
    from ftrt.errors import FtrtError
    from ftrt.integrations.peft import fuse, load
    from ftrt.nn.layer_report import layer_report
    from ftrt.quantization.calibration import calibrate
    from ftrt.quantization.convert import dequantize_linears, quantize_linears
    from ftrt.recipe import Recipe
    from ftrt.runtime import (
        LoadedRun,
        Run,
        TrainResult,
        attach,
        load_model,
        load_quantized,
        load_run,
        train,
    )


def __getattr__(name: str) -> Any:
    module = _PUBLIC.get(name)
    if module is None:
        raise AttributeError(f"module 'ftrt' has no attribute {name!r}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
