"""The next-token loss of hidden states, with never more than a chunk of the logits in memory."""

__all__ = ["is_fusable_head", "output_cross_entropy"]

from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from ftrt.ops.linear_cross_entropy import chunk_rows, linear_cross_entropy


def output_cross_entropy(
    layer: nn.Module, hidden: Tensor, labels: Tensor, *, classes: int, ignored_label: int = -100
) -> Tensor:
    """Σ over rows of the cross-entropy of layer(hidden) against labels, float32.

    Differentiable in hidden and in whatever `layer` trains. A plain `nn.Linear` runs
    `ftrt::linear_cross_entropy`. Any other layer (adapted, int8, with module hooks) is called as
    it is, one chunk of rows at a time, and once more for each in backward, so its own gradients
    come out right whatever it does to a row.

    Args:
        layer: maps (rows, in_features) to (rows, classes), each row by itself.
        hidden: (rows, in_features).
        labels: (rows) int64; rows with `ignored_label` count for nothing and never reach `layer`.
        classes: out_features of `layer`; decides how many rows make a chunk.
        ignored_label: see labels.
    """
    if is_fusable_head(layer):
        return linear_cross_entropy(
            hidden, layer.weight, labels, layer.bias, ignored_label=ignored_label
        )
    kept = labels != ignored_label
    hidden, labels = hidden[kept], labels[kept]
    step = chunk_rows(classes)
    # no rows are one empty chunk: data parallel training waits for a gradient of each parameter
    starts = range(0, max(1, labels.shape[0]), step)
    losses = [
        _checkpointed(layer, hidden[start : start + step], labels[start : start + step])
        for start in starts
    ]
    return torch.stack(losses).sum()


def is_fusable_head(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether `layer` does nothing but multiply by a plain weight and add a bias."""
    hooks = (
        layer._forward_hooks,
        layer._forward_pre_hooks,
        layer._backward_hooks,
        layer._backward_pre_hooks,
    )
    # accelerate replaces `forward` on the instance; a sharded weight is a subclass of Tensor
    return (
        type(layer) is nn.Linear
        and not any(hooks)
        and "forward" not in layer.__dict__
        and type(layer.weight) in (Tensor, nn.Parameter)
    )


def _checkpointed(layer: nn.Module, rows: Tensor, labels: Tensor) -> Tensor:
    def loss(rows: Tensor) -> Tensor:
        logits: Tensor = layer(rows)
        wide = torch.promote_types(logits.dtype, torch.float32)
        return functional.cross_entropy(logits.to(wide), labels, reduction="sum")

    if not torch.is_grad_enabled():
        return loss(rows)
    found: Tensor = checkpoint(loss, rows, use_reentrant=False)
    return found
