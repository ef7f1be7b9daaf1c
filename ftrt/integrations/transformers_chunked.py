"""A causal language model whose forward computes the loss without the logits.

The model runs its own forward, in which the output layer passes the hidden states on unchanged and
the loss function, given those in place of logits, makes logits of a chunk of them at a time. So
whatever else the model's forward does (masks, auxiliary losses, a projection before the output
layer) stays the model's own.
"""

__all__ = ["LossSettings", "chunked_forward", "exchanged", "set_chunked", "set_plain"]

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from ftrt.errors import UsageError
from ftrt.nn.cross_entropy import output_cross_entropy

# where the class below finds its settings on a model
_SETTINGS = "_ftrt_loss_settings"


@dataclass(frozen=True)
class LossSettings:
    """How a model computes its loss.

    Attributes:
        layer_name: the attribute of the model that is its output layer.
        in_training: whether nobody reads the logits of a call with labels in training mode.
        in_evaluation: the same of evaluation mode.
    """

    layer_name: str
    in_training: bool
    in_evaluation: bool


class NoLogitsError(UsageError, AttributeError):
    """Logits are read that were never made; an AttributeError, so that getattr's default works."""


def set_chunked(model: PreTrainedModel, settings: LossSettings) -> None:
    """Make calls of `model` with labels compute the loss in chunks; `set_plain` undoes it.

    The class becomes a subclass of the same name, so that data parallel replicas, wrappers of
    `forward` and saved configs treat it as the model it is. Deep copies and pickles are plain.
    """
    model.__dict__[_SETTINGS] = settings
    model.__class__ = _chunked_class(type(model))  # type: ignore[arg-type]


def set_plain(model: PreTrainedModel) -> None:
    """Make `model` compute its loss as its class does."""
    model.__dict__.pop(_SETTINGS, None)
    # a sharding library may have put its own class over this one: without settings it is inert
    if type(model).__dict__.get("_ftrt_is_chunked"):
        model.__class__ = type(model).__mro__[1]


@contextlib.contextmanager
def exchanged(
    model: PreTrainedModel, layer_name: str, layer: nn.Module, loss: Callable[..., Tensor]
) -> Iterator[None]:
    """Let `model` have another output layer and another loss function meanwhile."""
    own_layer = model._modules[layer_name]
    own_loss = model.__dict__.get("_loss_function")
    model._modules[layer_name] = layer
    model.__dict__["_loss_function"] = loss
    try:
        yield
    finally:
        model._modules[layer_name] = own_layer
        del model.__dict__["_loss_function"]
        if own_loss is not None:
            model.__dict__["_loss_function"] = own_loss


def chunked_forward(
    model: PreTrainedModel, forward: Callable[..., Any], layer_name: str, /, **inputs: Any
) -> Any:
    """The outputs of `forward`, which is the model's own, with its loss but without logits."""
    layer = cast(nn.Module, model._modules[layer_name])
    loss = functools.partial(_next_token_loss, layer)
    with exchanged(model, layer_name, _PassOn(), loss):
        output = forward(**inputs)
    return _without_logits(output)


class _PassOn(nn.Module):
    """Stands in for the output layer: its output is its input."""

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden


def _next_token_loss(
    layer: nn.Module,
    logits: Tensor,
    labels: Tensor | None,
    vocab_size: int,
    num_items_in_batch: Tensor | int | None = None,
    ignore_index: int = -100,
    shift_labels: Tensor | None = None,
    **_: Any,
) -> Tensor:
    """transformers' `ForCausalLMLoss`, where `logits` are the hidden states that `layer` would have
    made logits of."""
    hidden = logits.reshape(-1, logits.shape[-1])
    if shift_labels is None:
        # position i predicts token i + 1, the last one nothing
        shift_labels = functional.pad(cast(Tensor, labels), (0, 1), value=ignore_index)[..., 1:]
    targets = shift_labels.reshape(-1).to(hidden.device)
    total = output_cross_entropy(
        layer, hidden, targets, classes=vocab_size, ignored_label=ignore_index
    )
    if num_items_in_batch is None:
        return total / (targets != ignore_index).sum()
    return total / torch.as_tensor(num_items_in_batch, device=total.device)


@functools.cache
def _chunked_class(own: type[PreTrainedModel]) -> type[PreTrainedModel]:
    def forward(self: PreTrainedModel, /, *args: Any, **kwargs: Any) -> Any:
        inputs = {**dict(zip(names, args, strict=False)), **kwargs}
        settings = self.__dict__.get(_SETTINGS)
        plain = functools.partial(own.forward, self)
        if settings is None or len(args) > len(names) or not _is_chunkable(self, inputs, settings):
            return plain(*args, **kwargs)
        if self.training and "use_cache" in names and inputs.get("use_cache") is None:
            # keys and values of one pass are read by no other; a cache would copy all of them
            inputs["use_cache"] = False
        return chunked_forward(self, plain, settings.layer_name, **inputs)

    # `wraps` would set __wrapped__, through which accelerate unwraps to the model's own forward
    forward.__signature__ = inspect.signature(own.forward)  # type: ignore[attr-defined]
    forward.__doc__ = own.forward.__doc__

    def reduce(self: PreTrainedModel, protocol: Any) -> tuple[Any, ...]:
        state = {key: value for key, value in self.__dict__.items() if key != _SETTINGS}
        return _new, (own,), state

    names = [
        name
        for name, parameter in inspect.signature(own.forward).parameters.items()
        if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD and name != "self"
    ]
    body = {
        "forward": forward,
        # the class exists in this process only: pickles and deep copies are of the model's own
        "__reduce_ex__": reduce,
        "_ftrt_is_chunked": True,
        "__module__": own.__module__,
        "__qualname__": own.__qualname__,
        "__doc__": own.__doc__,
    }
    return type(own.__name__, (own,), body)


def _new(own: type[PreTrainedModel]) -> PreTrainedModel:
    return own.__new__(own)


def _is_chunkable(model: PreTrainedModel, inputs: dict[str, Any], settings: LossSettings) -> bool:
    """Whether this call wants a loss of all positions, and nobody may read its logits."""
    is_wanted = settings.in_training if model.training else settings.in_evaluation
    if inputs.get("labels") is None or not is_wanted:
        return False
    kept, wants_dict = inputs.get("logits_to_keep"), inputs.get("return_dict")
    keeps_all = kept is None or (isinstance(kept, int) and kept == 0)
    return keeps_all and bool(model.config.return_dict if wants_dict is None else wants_dict)


class _NoLogits:
    """Makes reading `logits` an error that says why there are none."""

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[misc]
        self.__dict__["_is_complete"] = True

    @property
    def logits(self) -> Tensor | None:
        """Not there."""
        found: Tensor | None = self.__dict__.get("logits")
        if found is None and "_is_complete" in self.__dict__:
            raise NoLogitsError(
                "outputs.logits: the loss was computed in chunks, which makes no logits; set"
                " `chunked_loss: false` in the recipe to have them, or call the model without"
                " labels"
            )
        return found

    @logits.setter
    def logits(self, value: Tensor | None) -> None:
        self.__dict__["logits"] = value

    def __repr__(self) -> str:
        return f"{type(self).__name__}({dict(self)!r})"  # type: ignore[call-overload]


@functools.cache
def _output_class(own: type[ModelOutput]) -> type[ModelOutput]:
    body = {"__module__": own.__module__, "__qualname__": own.__qualname__, "__doc__": own.__doc__}
    return type(own.__name__, (_NoLogits, own), body)


def _without_logits(output: ModelOutput) -> ModelOutput:
    kept = {key: value for key, value in output.items() if key != "logits"}
    return _output_class(type(output))(**kept)
