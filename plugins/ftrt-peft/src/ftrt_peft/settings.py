"""Whether a recipe and one of PEFT's methods go together, from what was found when it was tried."""

__all__ = ["refuse"]

from ftrt.api import Setting
from ftrt.errors import UnsupportedError
from ftrt_peft.catalog import Facts
from ftrt_peft.record import Tested

CAPABILITIES = {"int8": "an int8 base", "checkpointing": "gradient checkpointing"}
# What every capability is found in, nearest first.
NEAREST = ("lora",)


def refuse(name: str, facts: Facts, found: Tested, setting: Setting) -> None:
    """Raise for a setting in which the method was found not to work.

    Raises:
        UnsupportedError: the message says why, and what works in its place.
    """
    if facts.refusal:
        raise UnsupportedError(f"method {name!r}: cannot be used here, because {facts.refusal}")
    asked = {
        "int8": setting.quantization is not None,
        "checkpointing": bool(setting.training.get("gradient_checkpointing")),
    }
    for capability, is_asked in asked.items():
        if is_asked and found.works and capability in found.without:
            raise UnsupportedError(
                f"method {name!r}: does not work with {CAPABILITIES[capability]}:"
                f" {found.without[capability]}. Do without it, or use lora"
            )
    kind = model_kind(setting)
    if kind is not None and kind in found.fails:
        words = kind.replace("_", "-")
        raise UnsupportedError(
            f"method {name!r}: does not work on {words} models: {found.fails[kind]}. It works on"
            f" {', '.join(sorted(found.works)).replace('_', '-') or 'none'} models; or use lora"
        )


def model_kind(setting: Setting) -> str | None:
    """ "decoder", "encoder" or "encoder_decoder", as far as the recipe or config.json tells."""
    if setting.model is not None and setting.model.get("is_encoder_decoder"):
        return "encoder_decoder"
    if setting.task_type in ("CAUSAL_LM", "SEQ_2_SEQ_LM"):
        return "decoder" if setting.task_type == "CAUSAL_LM" else "encoder_decoder"
    if setting.model is None:
        return None
    names = setting.model.get("architectures") or [""]
    is_decoder = setting.model.get("is_decoder") or "Causal" in names[0] or "LMHead" in names[0]
    return "decoder" if is_decoder else "encoder"
