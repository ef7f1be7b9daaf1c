"""One fine-tuning step, timed by phases: forward, backward, and clip + AdamW."""

import time

import torch
from interleave import Phases
from model_variants import ModelVariant
from workloads import Batch

LEARNING_RATE = 2e-4
MAX_NORM = 1.0


class TrainingStep:
    """A variant with its optimizer; every call is the next step on the next batch.

    Attributes:
        losses: of each step so far, in order.
    """

    def __init__(self, variant: ModelVariant, batches: list[Batch]) -> None:
        self.variant, self.batches = variant, batches
        self.losses: list[float] = []
        self._parameters = variant.parameters
        self._optimizer = torch.optim.AdamW(self._parameters, lr=LEARNING_RATE)

    def __call__(self, index: int) -> Phases:
        """Seconds of the step's phases; `index` is the round's number and changes nothing."""
        batch = self.batches[len(self.losses) % len(self.batches)]
        start = time.perf_counter()
        with self.variant.context():
            loss = self.variant.model(**batch).loss
        forward = time.perf_counter()
        loss.backward()
        backward = time.perf_counter()
        torch.nn.utils.clip_grad_norm_(self._parameters, MAX_NORM)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        end = time.perf_counter()
        self.losses.append(loss.item())
        return {
            "forward": forward - start,
            "backward": backward - forward,
            "optimizer": end - backward,
        }
