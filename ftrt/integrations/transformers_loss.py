"""Where a causal language model can compute its loss in chunks, found out by trying."""

__all__ = ["LossRoad", "attach_chunked_loss", "choose_loss"]

import contextlib
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.loss.loss_utils import ForCausalLMLoss

from ftrt.api import Head, LossTerm
from ftrt.errors import one_line
from ftrt.integrations.transformers_chunked import (
    LossSettings,
    chunked_forward,
    exchanged,
    set_chunked,
    set_plain,
)
from ftrt.nn.cross_entropy import is_fusable_head
from ftrt.recipe import Recipe

logger = logging.getLogger(__name__)

# What a model's forward may raise when it is tried on eight tokens or on a stand-in.
_TRIAL_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    NotImplementedError,
    AssertionError,
    ImportError,
)

_TRIAL_TOKENS = 8


@dataclass(frozen=True)
class LossRoad:
    """How a causal language model computes its loss in this run.

    Attributes:
        in_training: whether the loss of training is computed in chunks, without the logits; else as
            the model itself does.
        in_evaluation: the same of evaluation.
        how: what runs, or why a loss is not chunked.
    """

    in_training: bool
    in_evaluation: bool
    how: str
    _model: PreTrainedModel | None = field(default=None, repr=False, compare=False)

    def remove(self) -> None:
        """Make the model compute its loss as its class does."""
        if self._model is not None:
            set_plain(self._model)

    def to_json(self) -> dict[str, Any]:
        """The same as JSON values, for the run's report."""
        return {
            "chunked_in_training": self.in_training,
            "chunked_in_evaluation": self.in_evaluation,
            "how": self.how,
        }


def choose_loss(
    model: nn.Module, recipe: Recipe, head: Head | None, terms: Sequence[LossTerm | None] = ()
) -> LossRoad | None:
    """Chunk the loss of `model` where the recipe wants it and nobody reads the logits.

    Returns:
        What was decided; None where the model is no causal language model.
    """
    if not (_predicts_tokens(model) if head is None else head.task_type == "CAUSAL_LM"):
        return None
    if not recipe.chunked_loss:
        return LossRoad(False, False, "recipe: chunked_loss is false")
    readers = [term.name for term in terms if term is not None and term.needs_logits]
    in_evaluation = head is not None and not head.needs_logits
    if readers and not in_evaluation:
        return LossRoad(False, False, f"read by the loss terms {', '.join(readers)}")
    return attach_chunked_loss(model, in_training=not readers, in_evaluation=in_evaluation)


def attach_chunked_loss(
    model: nn.Module, *, in_training: bool = True, in_evaluation: bool = False
) -> LossRoad:
    """Make a causal language model compute its loss in chunks where that gives the same loss.

    It does where the model hands what its output layer returns to transformers' next-token loss
    untouched. Three forwards on eight tokens decide: one with stand-ins, which show whether logits
    arrive as they left, and the two roads, whose losses must agree.

    Args:
        model: a `PreTrainedModel`, or a `PeftModel` on one, adapted already.
        in_training: whether nobody reads the logits of calls with labels in training mode.
        in_evaluation: the same of evaluation mode.

    Returns:
        What was decided, logged too.
    """
    inner = _base_model(model)
    reason = _why_not(inner)
    if reason is not None:
        logger.info("loss: the model's own, with all logits; %s", reason)
        return LossRoad(False, False, reason)
    name = str(_output_layer_name(inner))
    set_chunked(inner, LossSettings(name, in_training, in_evaluation))
    layer = inner.get_submodule(name)
    if is_fusable_head(layer):
        how = "ftrt::linear_cross_entropy"
    else:
        how = f"{name} ({type(layer).__name__}) is called on chunks, twice in training"
    logger.info("loss: in chunks; %s", how)
    return LossRoad(in_training, in_evaluation, how, inner)


def _base_model(model: nn.Module) -> Any:
    base: Any = getattr(model, "get_base_model", None)
    return model if base is None else base()


def _predicts_tokens(model: nn.Module) -> bool:
    inner = _base_model(model)
    if not isinstance(inner, PreTrainedModel):
        return False
    # a model whose class says nothing gets the next-token loss
    has_loss = getattr(inner, "loss_type", None) in (None, "ForCausalLM")
    return has_loss and _output_layer_name(inner) is not None


def _output_layer_name(model: PreTrainedModel) -> str | None:
    layer = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    names = [name for name, child in model._modules.items() if child is not None and child is layer]
    return names[0] if names else None


def _why_not(model: Any) -> str | None:
    """Why `model` cannot compute its loss in chunks; None where it can."""
    kind = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        return f"{kind} is no transformers model"
    name = _output_layer_name(model)
    if name is None:
        return f"{kind} has no output layer of its own"
    if model.loss_function is not ForCausalLMLoss:
        loss = getattr(model.loss_function, "__name__", type(model.loss_function).__name__)
        return f"{kind} has the loss {loss}"
    if any(p.device.type == "meta" for p in model.parameters()):
        return f"{kind} has weights that are not in memory"
    with _quietly_evaluating(model):
        try:
            return _why_touched(model, name) or _why_different(model, name)
        except _TRIAL_ERRORS as error:
            return f"{kind} refused the trial: {one_line(error)}"


def _why_touched(model: PreTrainedModel, name: str) -> str | None:
    """What the model does to logits before its loss, and to labels; None where nothing."""
    layer = _LayerSpy(model._modules[name])
    loss = _LossSpy()
    inputs = _trial_inputs(model)
    with exchanged(model, name, layer, loss):
        output = model.forward(**inputs)
    kind = type(model).__name__
    if len(layer.given) != 1 or len(loss.given) != 1:
        return (
            f"{kind} calls {name} {len(layer.given)} times and its loss function"
            f" {len(loss.given)} times for one loss"
        )
    arrived, sent = loss.given[0], layer.returned
    logits, labels = arrived.get("logits"), arrived.get("labels")
    if not _same(logits, sent):
        return f"{kind} changes logits between {name} and its loss"
    if not _same(labels, inputs["labels"]) or arrived.get("shift_labels") is not None:
        return f"{kind} changes labels before its loss"
    if arrived.get("vocab_size") != sent.shape[-1]:
        return (
            f"{kind} has a loss over {arrived.get('vocab_size')} classes and {sent.shape[-1]}"
            f" outputs of {name}"
        )
    if not hasattr(output, "keys") or not _same(output.get("logits"), sent):
        return f"{kind} does not return the logits it made"
    return None


def _why_different(model: PreTrainedModel, name: str) -> str | None:
    """The two losses, where they are not the same number; None where they are."""
    inputs = _trial_inputs(model)
    own = float(model.forward(**inputs).loss)
    chunked = float(chunked_forward(model, model.forward, name, **inputs).loss)
    # equal logits differ by their rounding alone, which depends on how many rows a product has
    tolerance = 16 * torch.finfo(model.dtype).eps
    if math.isclose(own, chunked, rel_tol=tolerance):
        return None
    return f"{type(model).__name__} has loss {own} on its own and {chunked} in chunks"


def _trial_inputs(model: PreTrainedModel) -> dict[str, Any]:
    embeddings: Any = model.get_input_embeddings()
    device = embeddings.weight.device
    ids = torch.arange(1, 1 + _TRIAL_TOKENS, device=device) % embeddings.weight.shape[0]
    labels = ids.clone()
    labels[2] = -100
    return {
        "input_ids": ids.unsqueeze(0),
        "labels": labels.unsqueeze(0),
        "num_items_in_batch": torch.tensor(_TRIAL_TOKENS - 2, device=device),
        "use_cache": False,
    }


def _same(found: Any, expected: Tensor) -> bool:
    return (
        isinstance(found, Tensor)
        and found.dtype == expected.dtype
        and found.shape == expected.shape
        and torch.equal(found, expected)
    )


class _LayerSpy(nn.Module):
    """Calls the output layer, and returns logits so far apart that any bound on them shows."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self._layer = [layer]
        self.given: list[Tensor] = []
        self.returned = torch.empty(0)

    def forward(self, hidden: Tensor) -> Tensor:
        self.given.append(hidden)
        logits = self._layer[0](hidden)
        values = torch.linspace(-100, 100, logits.numel(), device=logits.device)
        self.returned = values.to(logits.dtype).view_as(logits)
        return self.returned


class _LossSpy:
    """Remembers what a model gives to its loss function."""

    def __init__(self) -> None:
        self.given: list[dict[str, Any]] = []

    def __call__(
        self, logits: Any = None, labels: Any = None, vocab_size: Any = None, **rest: Any
    ) -> Tensor:
        self.given.append({**rest, "logits": logits, "labels": labels, "vocab_size": vocab_size})
        return torch.ones(())


@contextlib.contextmanager
def _quietly_evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; modes and random state are as before afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.is_cuda})
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
