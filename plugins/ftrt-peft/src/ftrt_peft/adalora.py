"""AdaLoRA: y = base(x) + scaling · x (B E A)ᵀ, ranks taken from layers that need them least.

The budget falls from init_r to target_r a layer on a cubic schedule between step `tinit` and step
total_steps - `tfinal`; every `deltaT` steps the triplets of least importance, over all layers, are
masked. PEFT has the allocator; here it is driven by the run: with the run's number of steps, after
each optimizer step and before its gradients go.

Source: Zhang et al. 2023, https://arxiv.org/abs/2303.10512, equations 9 to 13 and algorithm 1.
"""

__all__ = ["AdaLora"]

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ftrt.api import Setting
from ftrt.errors import ConfigError
from ftrt_peft.methods import NamedMethod

AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")


class AdaLora(NamedMethod):
    """PEFT's AdaLoRA with its rank schedule driven by the run."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        # What the last `tfinal` steps keep; None before them.
        self._kept: dict[str, list[bool]] | None = None

    def check_setting(self, setting: Setting) -> None:
        """Also refuse a schedule that has no room in `training.max_steps`."""
        super().check_setting(setting)
        steps = setting.training.get("max_steps", -1)
        if isinstance(steps, int) and steps > 0:
            self._check_schedule(steps)

    def known(self, model: nn.Module) -> dict[str, Any]:
        """The length of the run is told with its first step."""
        return {**super().known(model), "total_step": self.facts.unknown_yet["total_step"]}

    def on_step(self, model: nn.Module, step: int, total_steps: int) -> None:
        """Measure importances and mask what the budget of this step does not keep."""
        tuner, config = _parts(model)
        if step == 1 or config.total_step != total_steps:
            self._check_schedule(total_steps)
            config.total_step = total_steps
        last = total_steps - config.tfinal
        config.rank_pattern = self._kept if step > last else None
        tuner.update_and_allocate(step)
        if step == last:
            self._kept = config.rank_pattern
        # PEFT cuts masked rows off whatever is saved with a pattern, and neither the optimizer's
        # moments nor the allocator could be resumed then; `finish` puts the pattern back.
        config.rank_pattern = None

    def finish(self, model: nn.Module) -> None:
        """Let the saved adapter have only the rows that are not masked."""
        tuner, config = _parts(model)
        config.rank_pattern = _pattern(tuner)

    def training_state(self, model: nn.Module) -> dict[str, Tensor]:
        """The allocator's running averages of importance, and what it has decided at last."""
        allocator = _parts(model)[0].rankallocator
        averages = {
            f"{average}/{name}": value
            for average in AVERAGES
            for name, value in getattr(allocator, average).items()
        }
        kept = {f"kept/{name}": torch.tensor(rows) for name, rows in (self._kept or {}).items()}
        return {**averages, **kept}

    def load_training_state(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Put them back."""
        allocator = _parts(model)[0].rankallocator
        kept: dict[str, list[bool]] = {}
        for key, value in state.items():
            part, _, name = key.partition("/")
            if part == "kept":
                kept[name] = value.tolist()
            else:
                getattr(allocator, part)[name] = value.to(next(model.parameters()).device)
        self._kept = kept or None

    def report(self, model: nn.Module) -> dict[str, Any]:
        """The rank budget, and what rank each layer ended with."""
        tuner, config = _parts(model)
        ranks = {name: sum(kept) for name, kept in _pattern(tuner).items()}
        return {
            "rank_budget": {
                "initial": config.init_r * len(ranks),
                "target": config.target_r * len(ranks),
                "final": sum(ranks.values()),
            },
            "ranks": {name.removesuffix(".lora_E"): rank for name, rank in ranks.items()},
        }

    def _check_schedule(self, total_steps: int) -> None:
        options: Any = self.config
        if options.tinit >= total_steps - options.tfinal:
            raise ConfigError(
                f"method {self.name!r}: tinit + tfinal must leave steps to take ranks away in; got"
                f" tinit {options.tinit}, tfinal {options.tfinal} of {total_steps} steps"
            )


def _parts(model: nn.Module) -> tuple[Any, Any]:
    """PEFT's AdaLoRA tuner and its config."""
    whole: Any = getattr(model, "module", model)
    tuner = whole.base_model
    return tuner, tuner.peft_config[tuner.trainable_adapter_name]


def _pattern(tuner: Any) -> dict[str, list[bool]]:
    """Layer -> which rows are not masked, in the form PEFT saves: E is exactly 0 where they are."""
    suffix = f".{tuner.trainable_adapter_name}"
    return {
        name.removesuffix(suffix): (value.detach() != 0).view(-1).tolist()
        for name, value in tuner.model.named_parameters()
        if ".lora_E." in name and name.endswith(suffix)
    }
