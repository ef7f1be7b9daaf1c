"""Models for a head's `predict`: a classifier and a language model in a few lines of torch."""

__all__ = ["ToyClassifier", "ToyLanguageModel", "ToyOutput"]

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

WIDTH = 16


@dataclass
class ToyOutput:
    """What a model returns.

    Attributes:
        logits: (batch, classes), or (batch, tokens, vocabulary).
    """

    logits: Tensor


class ToyClassifier(nn.Module):
    """Logits from the mean embedding of the attended tokens."""

    def __init__(self, vocabulary: int, classes: int) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(vocabulary, WIDTH)
        self.classifier = nn.Linear(WIDTH, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **inputs: Any) -> ToyOutput:
        """(batch, tokens) -> logits (batch, classes)."""
        mask = attention_mask[..., None].float()
        mean = (self.embeddings(input_ids) * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
        return ToyOutput(self.classifier(mean))


class ToyLanguageModel(nn.Module):
    """The next token depends on the attended tokens before it."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(vocabulary, WIDTH)
        self.lm_head = nn.Linear(WIDTH, vocabulary, bias=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **inputs: Any) -> ToyOutput:
        """(batch, tokens) -> logits (batch, tokens, vocabulary)."""
        mask = attention_mask[..., None].float()
        seen = (self.embeddings(input_ids) * mask).cumsum(dim=1)
        return ToyOutput(self.lm_head(seen))

    @torch.no_grad()
    def generate(
        self, input_ids: Tensor, attention_mask: Tensor, max_new_tokens: int = 8, **options: Any
    ) -> Tensor:
        """The prompts (batch, tokens) with the likeliest next tokens behind them, always all."""
        for _ in range(max_new_tokens):
            last = self(input_ids, attention_mask).logits[:, -1:].argmax(dim=-1)
            input_ids = torch.cat([input_ids, last], dim=1)
            attention_mask = torch.cat([attention_mask, torch.ones_like(last)], dim=1)
        return input_ids
