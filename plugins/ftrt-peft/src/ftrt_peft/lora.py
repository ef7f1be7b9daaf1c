"""PEFT's LoRA with all of its options; layers it and `lora` share run ftrt's fused op."""

__all__ = ["PeftLora"]

from typing import Any

from ftrt.api import Setting
from ftrt.errors import UnsupportedError
from ftrt_peft.methods import NamedMethod

# Initialisations that PEFT makes from batches, in a call of its own before training.
FROM_DATA = ("eva", "corda")


class PeftLora(NamedMethod):
    """`peft:lora`, for the variants and initialisations that `lora` has no word for."""

    def check_setting(self, setting: Setting) -> None:
        """Also refuse what would start as plain LoRA without a word.

        Raises:
            UnsupportedError: an initialisation that needs data, or a quantized base of PEFT's.
        """
        super().check_setting(setting)
        options: Any = self.config
        start = options.init_lora_weights
        if start in FROM_DATA or options.lora_ga_config is not None:
            name = start if start in FROM_DATA else "lora_ga"
            raise UnsupportedError(
                f"method {self.name!r}: init_lora_weights {name!r} is computed from batches before"
                " training, which a recipe has no place for; use pissa or olora"
            )
        if start == "loftq":
            raise UnsupportedError(
                f"method {self.name!r}: init_lora_weights 'loftq' is for bases that bitsandbytes"
                " quantizes; on an int8 base of ftrt use true or 'gaussian'"
            )
        if setting.quantization is not None and start not in (True, False, "gaussian"):
            raise UnsupportedError(
                f"method {self.name!r}: init_lora_weights {start!r} changes the base's float"
                " weight; remove `quantization`, or use true or 'gaussian'"
            )
