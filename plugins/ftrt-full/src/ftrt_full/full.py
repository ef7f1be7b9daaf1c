"""Full fine-tuning: every parameter trains but those the recipe freezes.

Source: Howard and Ruder 2018, https://arxiv.org/abs/1801.06146, section 3.3 (fine-tuning all
    layers, and freezing
lower ones).
"""

__all__ = ["FullConfig", "FullMethod"]

from collections.abc import Sequence

from pydantic import Field
from torch import nn

from ftrt.api import Method, ModelMethod, PluginConfig
from ftrt.errors import ConfigError, UnsupportedError, suggest
from ftrt.hookspecs import hookimpl
from ftrt.nn import Int8Linear

ftrt_hookspec = 1


class FullConfig(PluginConfig):
    """Options of `method: {name: full}`."""

    train_embeddings: bool = Field(
        True,
        description="False freezes the embedding tables, often half of a small model's memory.",
    )
    frozen: list[str] = Field(
        [], description="Names, or last parts of names, of modules to leave as they are."
    )


class FullMethod(ModelMethod):
    """Trains the model's own weights; the run folder then holds a whole model, not an adapter."""

    name = "full"
    source = "Howard and Ruder 2018, https://arxiv.org/abs/1801.06146, section 3.3"
    Config = FullConfig
    supports_quantized_base = False

    config: FullConfig

    def prepare(self, model: nn.Module, new_modules: Sequence[str]) -> None:
        """Set `requires_grad` on every parameter; new modules always train.

        Raises:
            UnsupportedError: the model has int8 layers.
            ConfigError: a name in `frozen` matches no module, or nothing is left to train.
        """
        int8 = [name for name, module in model.named_modules() if isinstance(module, Int8Linear)]
        if int8:
            raise UnsupportedError(
                f"method 'full': trains the base's own weights, which int8 cannot be; {len(int8)}"
                f" layers are int8, {int8[0]} the first. Remove `quantization`, or choose an"
                " adapter method such as lora"
            )
        model.requires_grad_(True)
        if not self.config.train_embeddings:
            for module in model.modules():
                if isinstance(module, nn.Embedding):
                    module.requires_grad_(False)
        for module in _named(model, self.config.frozen, "frozen"):
            module.requires_grad_(False)
        for module in _named(model, new_modules, "new_modules"):
            module.requires_grad_(True)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ConfigError(
                "method 'full': something must be left to train; `frozen` covers the whole model"
            )


def _named(model: nn.Module, names: Sequence[str], where: str) -> list[nn.Module]:
    modules = {name: module for name, module in model.named_modules() if name}
    chosen: list[nn.Module] = []
    for wanted in names:
        found = [module for name, module in modules.items() if f".{name}".endswith(f".{wanted}")]
        if not found:
            last_parts = {
                part for part in (name.rpartition(".")[2] for name in modules) if not part.isdigit()
            }
            known = set(modules) if "." in wanted else last_parts
            raise ConfigError(
                f"method 'full': {where}: no module is called {wanted!r}{suggest(wanted, known)}"
            )
        chosen += found
    return chosen


@hookimpl
def register_methods() -> list[type[Method]]:
    return [FullMethod]
