"""Random outputs of a student and a teacher with the batch they belong to; no model is needed."""

__all__ = ["Case", "Outputs", "Task", "items_of", "make_case"]

from typing import Any, Literal

import torch
from torch import Tensor

Task = Literal["classification", "causal_lm"]
Outputs = dict[str, Any]
Case = tuple[Outputs, Outputs, dict[str, Tensor]]

EXAMPLES, TOKENS, WIDTH, LAYERS = 6, 7, 8, 2
CLASSES = {"classification": 4, "causal_lm": 11}


def make_case(task: Task, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Case:
    """Random student outputs, teacher outputs and a batch; the same for the same arguments."""
    generator = torch.Generator().manual_seed(seed)

    def outputs() -> Outputs:
        items = (EXAMPLES, TOKENS) if task == "causal_lm" else (EXAMPLES,)
        shape = (*items, CLASSES[task])
        hidden = [
            torch.randn(EXAMPLES, TOKENS, WIDTH, generator=generator) for _ in range(LAYERS + 1)
        ]
        logits = 2 * torch.randn(shape, generator=generator)
        return {"logits": logits.to(dtype), "hidden_states": tuple(h.to(dtype) for h in hidden)}

    ids = torch.randint(1, CLASSES[task], (EXAMPLES, TOKENS), generator=generator)
    lengths = torch.tensor([TOKENS - index % 3 for index in range(EXAMPLES)])[:, None]
    mask = (torch.arange(TOKENS) < lengths).long()
    labels = ids[:, 0] % CLASSES[task]
    if task == "causal_lm":
        # uneven prompts, none in the last row, whose first label the shift passes over
        prompts = torch.tensor([2, 1, 3, 1, 4, 0])[:, None]
        labels = ids.masked_fill((torch.arange(TOKENS) < prompts) | (mask == 0), -100)
    return outputs(), outputs(), {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}


def items_of(labels: Tensor) -> Tensor:
    """Which items the labels mark: examples (batch), or tokens (batch, tokens - 1)."""
    return (labels[:, 1:] if labels.dim() == 2 else labels).ne(-100)
