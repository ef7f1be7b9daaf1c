"""The student matches the teacher's softened distribution over classes or next tokens."""

__all__ = ["LogitKL", "register_losses"]

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from ftrt import LossTerm, PluginConfig, hookimpl, kernels
from ftrt.errors import UsageError
from ftrt_distill.divergence import row_divergence
from ftrt_distill.items import select_items

ftrt_hookspec = 1


class LogitKLConfig(PluginConfig):
    """Options of `logit_kl`."""

    temperature: float = Field(2.0, gt=0, description="Both sets of logits are divided by it.")
    direction: Literal["forward", "reverse"] = Field(
        "forward", description="forward is KL(teacher ‖ student), reverse KL(student ‖ teacher)."
    )


class LogitKL(LossTerm):
    """Σ over items of T² · KL(softmax(teacher / T) ‖ softmax(student / T)).

    T² keeps the gradient's size when the temperature changes: it falls with 1 / T² otherwise
    (section 2.1 there). Source: Hinton et al. 2015, https://arxiv.org/abs/1503.02531, section 2.
    On a GPU, kernels of this package compute value and gradient where ftrt's CUDA runtime is there.
    """

    name: ClassVar[str] = "logit_kl"
    source: ClassVar[str] = "Hinton et al. 2015, https://arxiv.org/abs/1503.02531, section 2"
    Config: ClassVar[type[PluginConfig]] = LogitKLConfig
    needs_signal: ClassVar[bool] = True

    def __call__(
        self,
        student: Mapping[str, Any],
        signal: Mapping[str, Any] | None,
        batch: Mapping[str, Any],
    ) -> tuple[Tensor, Tensor | int]:
        """(total, count); an item is an example, or a token whose label is not -100."""
        if signal is None:
            raise UsageError("loss 'logit_kl': needs a teacher; got no signal")
        ours, theirs = select_items(student["logits"], signal["logits"], batch)
        p, q = (theirs, ours) if self.config.direction == "forward" else (ours, theirs)
        temperature = self.config.temperature
        divergence = _fused if kernels.is_available(ours.device) else _composed
        return temperature**2 * divergence(p, q, temperature), ours.shape[0]


def _fused(p: Tensor, q: Tensor, temperature: float) -> Tensor:
    return row_divergence(p, q, temperature).sum()


def _composed(p: Tensor, q: Tensor, temperature: float) -> Tensor:
    p_log, q_log = (
        functional.log_softmax(logits.float() / temperature, dim=-1) for logits in (p, q)
    )
    # kl_div(input, target) is KL(target ‖ input)
    return functional.kl_div(q_log, p_log, reduction="sum", log_target=True)


@hookimpl
def register_losses() -> list[type[LossTerm]]:
    """Offer `logit_kl`."""
    return [LogitKL]
