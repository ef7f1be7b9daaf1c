"""Loads the compiled kernels once, and says which implementation of each op runs.

Which one runs is decided here and nowhere else. On CPU tensors: the extension's kernels if it
loads, at the best instruction set the CPU has or the one `FTRT_CPU_ISA` names; otherwise the
reference ops, with the reason and the fix. On CUDA tensors: ftrt's kernels, which raise where they
cannot run, or with `FTRT_CUDA=reference` the reference ops.
"""

__all__ = ["CUDA_OPS", "EXTENSION", "OPS", "TORCH_OPS", "Extension", "implementation_report"]

import importlib
import importlib.util
import logging
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from ftrt import config
from ftrt.errors import ConfigError, UnsupportedError
from ftrt.kernels.backend import current_backend

OPS = (
    "quantize_per_channel",
    "quantize_per_token",
    "int8_linear",
    "int8_linear_dx",
    "int8_lora_linear",
    "int8_lora_linear_backward",
)

# Ops whose reference is the implementation: their large product is a float one, which torch's own
# library computes as fast as the CPU can.
TORCH_OPS = ("lora_linear", "lora_linear_backward")

_REBUILD = (
    "with a C++ compiler (g++ or clang++) on PATH, in the source tree: FTRT_BUILD=1 pip install"
    " --no-build-isolation --force-reinstall --no-deps ."
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Extension:
    """What became of loading `ftrt._C`.

    Attributes:
        module: the module, or None where reference ops run.
        reason: why there is none; empty if there is.
        fix: what to do about it; empty if nothing is wrong.
        is_foreign: whether it was loaded and found to be of another version, whose kernels must not
            run.
    """

    module: ModuleType | None
    reason: str = ""
    fix: str = ""
    is_foreign: bool = False


def _load() -> Extension:
    # `import torch` above comes first: the extension needs its libraries and has no path to them.
    if importlib.util.find_spec("ftrt._C") is None:
        return Extension(None, "ftrt._C is not built for this Python", _REBUILD)
    try:
        module = importlib.import_module("ftrt._C")
    except ImportError as error:
        return Extension(
            None, f"ftrt._C does not load with torch {torch.__version__}: {error}", _REBUILD
        )
    missing = sorted(set(OPS) - set(getattr(module, "ops", ())))
    if missing:
        reason = f"ftrt._C is of another version of ftrt: it has no {', '.join(missing)}"
        return Extension(None, reason, _REBUILD, is_foreign=True)
    return Extension(module)


def _choose_isa(extension: Extension) -> None:
    isa = config.cpu_isa()
    if isa is None:
        return
    if extension.module is None:
        raise ConfigError(
            f"FTRT_CPU_ISA: needs the compiled kernels; got {isa!r}, and {extension.reason}."
            f" Unset it, or {extension.fix}"
        )
    try:
        extension.module.set_isa(isa)
    except ValueError as error:
        raise ConfigError(f"FTRT_CPU_ISA: {error}. Unset it to use the best one") from None


def implementation_report(device: str = "cpu") -> dict[str, Any]:
    """Which implementation of each op runs on tensors of a device, and what is known about it.

    Args:
        device: its type. Ops on tensors that are neither on "cpu" nor on "cuda" use the reference.

    Returns:
        One entry an op: "cuda", "reference", or "torch" for an op that needs no kernel of its own,
        and `reason`, why kernels cannot run here; empty if they can or are not to. For "cpu":
        One entry an op, the instruction set ("amx", "avx512_bf16", "avx512_vnni", "avx512", "avx2",
        "portable"), "reference", or "torch", and:
        `extension` (path or None), `reason` and `fix` (why it is not used; empty if it is),
        `cpu_features` (names), `usable_isas`, `compiler`, `built_with_torch`.
    """
    if device != "cpu":
        return _device_report(device)
    module = EXTENSION.module
    if module is None:
        return {
            **dict.fromkeys(OPS, "reference"),
            **dict.fromkeys(TORCH_OPS, "torch"),
            "extension": None,
            "reason": EXTENSION.reason,
            "fix": EXTENSION.fix,
            "cpu_features": [],
            "usable_isas": [],
            "compiler": None,
            "built_with_torch": None,
        }
    facts = module.build_facts()
    return {
        **dict.fromkeys(OPS, module.chosen_isa()),
        **dict.fromkeys(TORCH_OPS, "torch"),
        "extension": module.__file__,
        "reason": "",
        "fix": "",
        "cpu_features": [name for name, has in module.cpu_features().items() if has],
        "usable_isas": module.usable_isas(),
        "compiler": facts["compiler"],
        "built_with_torch": facts["torch"],
    }


def _device_report(device: str) -> dict[str, Any]:
    uses_kernels = device == "cuda" and CUDA_OPS == "kernels"
    reason = ""
    if uses_kernels:
        try:
            current_backend()
        except UnsupportedError as error:
            reason = str(error)
    return {
        **dict.fromkeys(OPS, "cuda" if uses_kernels else "reference"),
        **dict.fromkeys(TORCH_OPS, "torch"),
        "reason": reason,
    }


CUDA_OPS = config.cuda_ops()
if CUDA_OPS == "reference":
    logger.info("CUDA ops: reference, as FTRT_CUDA says")
EXTENSION = _load()
_choose_isa(EXTENSION)
if EXTENSION.module is None:
    logger.info("reference ops: %s. To fix: %s", EXTENSION.reason, EXTENSION.fix)
else:
    logger.info("CPU ops: %s, %s", EXTENSION.module.chosen_isa(), EXTENSION.module.__file__)
