"""Cross-entropy of a linear layer's outputs, `ftrt::linear_cross_entropy`, without all of them.

The gradient of a cross-entropy needs nothing from later layers but one factor, so each chunk of
rows gets its logits, its loss and its gradients in one go, and the logits' memory serves the next.
Source: Wijmans et al. 2024, Cut Your Losses, section 4, https://arxiv.org/abs/2411.09009 (the
chunks); Hsu et al. 2024, Liger Kernel, section 3.2, https://arxiv.org/abs/2410.10989 (gradients in
the forward pass).
"""

__all__ = ["chunk_rows", "linear_cross_entropy"]

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ftrt.ops.autocast import cast_for_autocast
from ftrt.ops.checks import check_bias, describe, fail
from ftrt.ops.registration import register, register_autograd

_OP = "ftrt::linear_cross_entropy"

# Logits held at once: 32 MiB of bfloat16. At a vocabulary of 49152 that is 341 rows, enough for a
# matrix product to read the weight as fast as it can multiply.
_CHUNK_VALUES = 2**24

# Of those, as many as are turned into float32 at once: 4 MiB, which a core's cache can keep between
# the passes of a softmax. A GPU wants one launch for the whole chunk instead.
_BLOCK_VALUES = 2**20


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    *,
    ignored_label: int = -100,
) -> Tensor:
    """Σ over rows of −log softmax(hidden weightᵀ + bias)[label]; differentiable once in hidden,
    weight and bias.

    Logits have the dtype of a linear layer's outputs, softmax and sum are float32. Rows with the
    ignored label are dropped before there are any logits. At most `chunk_rows` rows have logits at
    a time; the gradients of those operands that require one are computed with them.

    Args:
        hidden: (rows, in_features), any float dtype.
        weight: (classes, in_features), dtype of hidden; under autocast all are cast.
        labels: (rows) int64, each in 0..classes-1 or `ignored_label`.
        bias: (classes) or None, dtype of hidden.
        ignored_label: marks rows that count for nothing.

    Returns:
        () float32, float64 for float64 operands; 0 where every row is ignored. It is the sum: a
        mean divides by `(labels != ignored_label).sum()`.

    Raises:
        RuntimeError: shapes or dtypes disagree, or a label is out of range; the message has them.
    """
    given = (hidden, weight, bias)
    operands = [None if operand is None else cast_for_autocast(operand) for operand in given]
    needs = [
        operand is not None and operand.requires_grad and torch.is_grad_enabled()
        for operand in operands
    ]
    with torch.autocast(hidden.device.type, enabled=False):
        total: Tensor = _op(*operands, labels, ignored_label, needs)[0]
    return total


def chunk_rows(classes: int) -> int:
    """How many rows have logits over `classes` at the same time."""
    return max(1, _CHUNK_VALUES // classes)


def _check(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> None:
    got = f"{describe('hidden', hidden)}, {describe('weight', weight)}"
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        rule = "hidden must be (rows, in_features) and weight (classes, in_features)"
        fail(_OP, rule, got)
    if not hidden.is_floating_point() or weight.dtype != hidden.dtype:
        fail(_OP, "hidden and weight must have one float dtype", got)
    if bias is not None:
        check_bias(_OP, bias, weight.shape[0])
        if bias.dtype != hidden.dtype:
            got = f"{describe('bias', bias)}, {describe('hidden', hidden)}"
            fail(_OP, "bias must have the dtype of hidden", got)
    if labels.dim() != 1 or labels.shape[0] != hidden.shape[0] or labels.dtype != torch.int64:
        got = f"{describe('labels', labels)}, {describe('hidden', hidden)}"
        fail(_OP, "labels must be (rows) int64", got)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _check_range(labels: Tensor, classes: int) -> None:
    # On a GPU the values would have to be waited for; there the gather fails by itself.
    if labels.device.type != "cpu" or labels.numel() == 0:
        return
    low, high = (int(bound) for bound in labels.aminmax())
    if low < 0 or high >= classes:
        fail(_OP, f"labels must be 0..{classes - 1} or ignored", f"{low}..{high}")


def _reference(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    ignored_label: int,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check(hidden, weight, bias, labels)
    kept = (labels != ignored_label).nonzero().squeeze(1)
    targets = labels.index_select(0, kept)
    _check_range(targets, weight.shape[0])
    is_whole = kept.shape[0] == labels.shape[0]
    rows = hidden if is_whole else hidden.index_select(0, kept)
    total = torch.zeros((), dtype=_wide(hidden.dtype), device=hidden.device)
    grads = _Gradients(rows, weight, bias, needs)
    step = chunk_rows(weight.shape[0])
    for start in range(0, rows.shape[0], step):
        chunk, target = rows[start : start + step], targets[start : start + step]
        logits = functional.linear(chunk, weight, bias)
        total += _losses_and_gradients(logits, target, needs_gradients=any(needs))
        grads.add(start, chunk, logits)
    return total, *grads.results(None if is_whole else kept, hidden)


def _losses_and_gradients(logits: Tensor, target: Tensor, *, needs_gradients: bool) -> Tensor:
    """The sum of the losses; `logits` becomes softmax(logits) − onehot(target), its gradient."""
    total = torch.zeros((), dtype=_wide(logits.dtype), device=logits.device)
    is_cached = logits.device.type == "cpu"
    step = max(1, _BLOCK_VALUES // logits.shape[1]) if is_cached else logits.shape[0]
    for start in range(0, logits.shape[0], step):
        block, index = logits[start : start + step], target[start : start + step].unsqueeze(1)
        log_probabilities = torch.log_softmax(block.to(total.dtype), dim=1)
        own = log_probabilities.gather(1, index)
        total -= own.sum()
        if needs_gradients:
            # expm1 is exact where the label's probability is near 1 and the difference near 0
            block.copy_(log_probabilities.exp_().scatter_(1, index, own.expm1_()))
    return total


class _Gradients:
    """The gradients of the sum, filled chunk by chunk; an operand that needs none has none."""

    def __init__(
        self, rows: Tensor, weight: Tensor, bias: Tensor | None, needs: list[bool]
    ) -> None:
        self._needs = needs
        self._weight = weight
        self.hidden = torch.empty_like(rows) if needs[0] else rows.new_empty(0)
        # Chunks are added up in float32: bfloat16 would lose what a late one adds to a large sum.
        wide = _wide(weight.dtype)
        self.weight = weight.new_zeros(weight.shape if needs[1] else 0, dtype=wide)
        self.bias = weight.new_zeros(weight.shape[:1] if needs[2] else 0, dtype=wide)

    def add(self, start: int, chunk: Tensor, gradient: Tensor) -> None:
        """Add the part of the rows from `start` on, whose logits have this gradient."""
        if self._needs[0]:
            torch.mm(gradient, self._weight, out=self.hidden[start : start + chunk.shape[0]])
        if self._needs[1]:
            if gradient.dtype == self.weight.dtype:
                self.weight.addmm_(gradient.t(), chunk)
            else:
                self.weight += gradient.t() @ chunk
        if self._needs[2]:
            self.bias += gradient.sum(0, dtype=self.bias.dtype)

    def results(self, kept: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of hidden, weight and bias in their dtype; rows that were dropped have 0."""
        hidden = self.hidden
        if self._needs[0] and kept is not None:
            hidden = torch.zeros_like(like).index_copy_(0, kept, self.hidden)
        return hidden, self.weight.to(like.dtype), self.bias.to(like.dtype)


def _fake(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    ignored_label: int,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check(hidden, weight, bias, labels)
    return (
        hidden.new_empty((), dtype=_wide(hidden.dtype)),
        torch.empty_like(hidden) if needs[0] else hidden.new_empty(0),
        torch.empty_like(weight) if needs[1] else hidden.new_empty(0),
        hidden.new_empty(weight.shape[:1] if needs[2] else 0),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    # the gradients are results of the op only so that backward gets them; nothing flows into them
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[1:])
    ctx.needs = inputs[5]


def _backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    if grad.requires_grad:
        fail(_OP, "the loss is differentiable once", "create_graph=True")
    found = [
        saved * grad.to(saved.dtype) if needed else None
        for saved, needed in zip(ctx.saved_tensors, ctx.needs, strict=True)
    ]
    return (*found, None, None, None)


register(
    "linear_cross_entropy(Tensor hidden, Tensor weight, Tensor? bias, Tensor labels,"
    " int ignored_label, bool[] needs)"
    " -> (Tensor total, Tensor grad_hidden, Tensor grad_weight, Tensor grad_bias)",
    reference=_reference,
    fake=_fake,
)
register_autograd("linear_cross_entropy", _backward, _setup)
_op = torch.ops.ftrt.linear_cross_entropy.default
