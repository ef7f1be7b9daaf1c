"""A model small enough to train in milliseconds, and one batch for it or for any model like it."""

__all__ = ["ToyModel", "batch_for", "loss_of", "outputs_of"]

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

VOCABULARY = 32
# Sizes differ in both directions, so a transposed weight or delta cannot fit by accident.
WIDTH, INNER_WIDTH, CLASSES = 32, 48, 4
BATCH, TOKENS = 4, 6


class _Block(nn.Module):
    """x + down(gelu(up(norm(x))))."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, INNER_WIDTH)
        self.down = nn.Linear(INNER_WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = x + self.down(nn.functional.gelu(self.up(self.norm(x))))
        return output


class ToyModel(nn.Module):
    """Embeddings, two blocks, a classifier: what a transformer looks like to a method."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(_Block() for _ in range(2))
        self.classifier = nn.Linear(WIDTH, CLASSES)
        self.is_gradient_checkpointing = False

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embeddings, as on a transformers model."""
        return self.embeddings

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None
    ) -> None:
        """Recompute the blocks in the backward pass, as on a transformers model."""
        self.is_gradient_checkpointing = True

    def forward(self, input_ids: Tensor) -> Tensor:
        """(batch, tokens) -> logits (batch, classes)."""
        x = self.embeddings(input_ids)
        for block in self.blocks:
            if self.is_gradient_checkpointing and self.training:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        logits: Tensor = self.classifier(x.mean(dim=1))
        return logits


def batch_for(model: nn.Module) -> Tensor:
    """Token ids (batch, tokens) that the model's embeddings have; the same ones on every call."""
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    vocabulary = embeddings.num_embeddings if isinstance(embeddings, nn.Embedding) else VOCABULARY
    generator = torch.Generator().manual_seed(7)
    return torch.randint(0, vocabulary, (BATCH, TOKENS), generator=generator)


def outputs_of(model: nn.Module, batch: Tensor) -> Tensor:
    """The model's logits; transformers' output objects are unpacked."""
    outputs = model(batch)
    logits: Tensor = getattr(outputs, "logits", outputs)
    return logits


def loss_of(model: nn.Module, batch: Tensor) -> Tensor:
    """Mean squared distance of the logits to fixed random ones; fits logits of any shape."""
    logits = outputs_of(model, batch).float()
    generator = torch.Generator().manual_seed(11)
    target = torch.randn(logits.shape, generator=generator).to(logits.device)
    return ((logits - target) ** 2).mean()
