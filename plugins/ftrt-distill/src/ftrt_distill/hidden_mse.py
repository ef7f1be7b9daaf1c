"""The student's hidden states match those of evenly chosen teacher layers."""

__all__ = ["HiddenMSE", "register_losses"]

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ftrt import LossTerm, PluginConfig, hookimpl
from ftrt.errors import UnsupportedError, UsageError

ftrt_hookspec = 1

IGNORED_LABEL = -100


class HiddenMSEConfig(PluginConfig):
    """`hidden_mse` has no options."""


class HiddenMSE(LossTerm):
    """Σ over items of the mean over layers and width of (student − teacher)².

    Student layer m of M is compared with teacher layer m · N / M of N, the embedding output (m = 0)
    among them; N must be a multiple of M. Both must be equally wide: no projection is learnt.
    An item of a classifier is an example, its value the mean over the tokens it attends to; an item
    of a causal language model is a position that predicts a token whose label is not -100.

    Source: Jiao et al. 2020 (TinyBERT), https://arxiv.org/abs/1909.10351, equations 6, 8 and 9,
    with W_h = 1 and the layers averaged, not summed.
    """

    name: ClassVar[str] = "hidden_mse"
    source: ClassVar[str] = (
        "Jiao et al. 2020, https://arxiv.org/abs/1909.10351, equations 6, 8 and 9"
    )
    Config: ClassVar[type[PluginConfig]] = HiddenMSEConfig
    needs_signal: ClassVar[bool] = True
    needs_hidden_states: ClassVar[bool] = True
    needs_logits: ClassVar[bool] = False

    def __call__(
        self,
        student: Mapping[str, Any],
        signal: Mapping[str, Any] | None,
        batch: Mapping[str, Any],
    ) -> tuple[Tensor, Tensor | int]:
        """(total, count) over the items that the labels mark."""
        if signal is None:
            raise UsageError("loss 'hidden_mse': needs a teacher; got no signal")
        ours: Sequence[Tensor] = student["hidden_states"]
        theirs = _matching_layers(ours, signal["hidden_states"])
        per_token = torch.stack(
            [
                (a.float() - b.detach().to(a.device, torch.float32)).square().mean(dim=-1)
                for a, b in zip(ours, theirs, strict=True)
            ]
        ).mean(dim=0)
        labels: Tensor = batch["labels"]
        if labels.dim() == 2:
            marked = labels[:, 1:].ne(IGNORED_LABEL)
            return (per_token[:, :-1] * marked).sum(), marked.sum()
        mask = batch.get("attention_mask")
        attended = torch.ones_like(per_token) if mask is None else mask.to(per_token.dtype)
        per_example = (per_token * attended).sum(dim=1) / attended.sum(dim=1).clamp(min=1)
        marked = labels.ne(IGNORED_LABEL)
        return (per_example * marked).sum(), marked.sum()


def _matching_layers(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> list[Tensor]:
    layers, teacher_layers = len(ours) - 1, len(theirs) - 1
    if layers < 1 or teacher_layers % layers or ours[0].shape != theirs[0].shape:
        raise UnsupportedError(
            "loss 'hidden_mse': the teacher's layers must be a multiple of the student's, and both"
            f" equally wide; got student {layers} layers of {tuple(ours[0].shape)}, teacher"
            f" {teacher_layers} of {tuple(theirs[0].shape)}"
        )
    return [theirs[index * teacher_layers // layers] for index in range(layers + 1)]


@hookimpl
def register_losses() -> list[type[LossTerm]]:
    """Offer `hidden_mse`."""
    return [HiddenMSE]
