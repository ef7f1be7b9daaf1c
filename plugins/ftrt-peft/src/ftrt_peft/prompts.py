"""Soft prompts: vectors before the tokens, or keys and values before those of every layer.

A prompt's tensors are what training changes; where they come out of a network (P-tuning, prefix
projection), PEFT's files hold the vectors and not the network, so a resumed run takes the network
from the checkpoint's state.
"""

__all__ = ["SoftPrompt"]

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ftrt.api import Setting
from ftrt.errors import UnsupportedError
from ftrt_peft.methods import NamedMethod


class SoftPrompt(NamedMethod):
    """A method of PEFT's that puts trained vectors before the tokens."""

    def check_setting(self, setting: Setting) -> None:
        """Also refuse loss terms that compare logits with labels, token by token."""
        super().check_setting(setting)
        if getattr(self.config, "prefix_projection", False):
            raise UnsupportedError(
                f"method {self.name!r}: cannot be used with prefix_projection, because PEFT saves"
                " what the projection makes and not the projection, and such a run could not be"
                " resumed; leave it out, or use peft:p_tuning"
            )
        others = [name for name in setting.losses if name != "task"]
        # prefixes are keys and values and take no place among the tokens
        in_cache = "checkpointing" in self.facts.why
        if others and setting.task_type == "CAUSAL_LM" and not in_cache:
            raise UnsupportedError(
                f"method {self.name!r}: its {self.config.num_virtual_tokens} virtual tokens have"  # type: ignore[attr-defined]
                f" logits and no labels, and the loss term {others[0]!r} needs both; use"
                " peft:prefix_tuning or lora"
            )

    def training_state(self, model: nn.Module) -> dict[str, Tensor]:
        """The network that makes the prompt."""
        return {name: value for name, value in _encoder(model).state_dict().items()}

    def load_training_state(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Put the network back."""
        _encoder(model).load_state_dict(dict(state))

    def report(self, model: nn.Module) -> dict[str, Any]:
        """How many positions the prompt takes."""
        found: Any = self.config
        return {"virtual_tokens": found.num_virtual_tokens}


def _encoder(model: nn.Module) -> nn.Module:
    whole: Any = getattr(model, "module", model)
    encoders = getattr(whole, "prompt_encoder", None)
    if not encoders:
        raise UnsupportedError(
            f"soft prompt: must be on a PeftModel that has one; got {type(whole).__name__}"
        )
    encoder: nn.Module = encoders[whole.active_adapter]
    return encoder
