"""One fine-tuning step, timed by phases: forward, backward, and clip + AdamW."""

import torch
from torch import Tensor

from measuring.clock import Clock, HostClock
from measuring.interleave import Phases
from measuring.model_variants import ModelVariant

Batch = dict[str, Tensor]

LEARNING_RATE = 2e-4
MAX_NORM = 1.0


class TrainingStep:
    """A variant with its optimizer; every call is the next step on the next batch.

    Attributes:
        losses: of each step so far, in order.
    """

    def __init__(
        self, variant: ModelVariant, batches: list[Batch], clock: Clock | None = None
    ) -> None:
        self.variant, self.batches = variant, batches
        self.clock = clock or HostClock()
        self.losses: list[float] = []
        self._parameters = variant.parameters
        self._optimizer = torch.optim.AdamW(self._parameters, lr=LEARNING_RATE)

    def __call__(self, index: int) -> Phases:
        """Seconds of the step's phases; `index` is the round's number and changes nothing."""
        batch = self.batches[len(self.losses) % len(self.batches)]
        kept: list[Tensor] = []

        def forward() -> None:
            with self.variant.context():
                kept.append(self.variant.model(**batch).loss)

        phases = self.clock.phases(
            forward=forward, backward=lambda: kept[0].backward(), optimizer=self._optimize
        )
        self.losses.append(kept[0].item())
        return phases

    def _optimize(self) -> None:
        torch.nn.utils.clip_grad_norm_(self._parameters, MAX_NORM)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
