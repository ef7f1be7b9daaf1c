"""Loss terms beside the student's own loss, added by a module hook so that the trainer stays plain.

In training mode the loss a model returns becomes

    weight(task) · own + Σ weight(term) · total / count

where `count` is `num_items_in_batch` if the caller passes it, else the term's own count of items.
Hugging Face's `Trainer` passes the items of all micro-batches of one optimizer step and does not
divide by their number, so each item weighs the same however a batch is cut. In evaluation mode
nothing is added: the evaluation loss stays the student's own.

Not every model that is handed `num_items_in_batch` uses it: the sequence-classification models take
it in `**kwargs` and return a mean over the micro-batch all the same, and since `Trainer` does not
divide either, four micro-batches give four times the gradient
(https://github.com/huggingface/transformers/issues/47688). The handle finds that out from the
model's behaviour and rescales such a loss to own · labelled / num_items_in_batch, with or without
further terms.
"""

__all__ = ["LossHandle", "WeightedTerm", "attach_losses", "schedule_factor"]

import inspect
import math
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ftrt.api import Head, LossTerm, SignalSource
from ftrt.errors import ConfigError, UnsupportedError, UsageError
from ftrt.recipe import ScheduleSection

TASK = "task"
IGNORED_LABEL = -100

# arguments of a forward that say how to compute, and are no input of a teacher or a term
_NOT_INPUTS = frozenset({"num_items_in_batch", "output_hidden_states"})

# `loss_type` of the models whose loss compares position i with label i + 1, so that the label of
# position 0 counts for nothing.
_SHIFTING_LOSSES = frozenset({"ForCausalLM", "ForConditionalGeneration"})


@dataclass(frozen=True)
class WeightedTerm:
    """One line of a recipe's `losses`, built.

    Attributes:
        name: the term's name; "task" stands for the student's own loss.
        term: the loss term, None for "task".
        weight: what the per-item loss is multiplied by.
        schedule: how the weight moves over training, None for a constant one.
        signal: where the teacher's outputs come from, for a term that needs them.
    """

    name: str
    term: LossTerm | None = None
    weight: float = 1.0
    schedule: ScheduleSection | None = None
    signal: SignalSource | None = None


def attach_losses(
    model: nn.Module,
    terms: Sequence[WeightedTerm],
    *,
    head: Head | None = None,
    uses_count: bool | None = None,
) -> "LossHandle":
    """Add `terms` to the loss `model` returns in training mode; `LossHandle.remove` ends it.

    Args:
        model: the outermost module that the training loop calls, a `PeftModel` if there is one.
        terms: their signals are bound already; two terms may share one, which then runs once. With
            no terms only a loss that ignores `num_items_in_batch` is rescaled.
        head: tells whether the labels are shifted by one token; without it the model's class does.
        uses_count: whether the model's loss follows `num_items_in_batch`; None finds out with two
            forwards at the first call that has it.

    Raises:
        ConfigError: a term lacks its teacher, has one it does not use, or stands twice.
    """
    for item in terms:
        _check_term(item, terms)
    return LossHandle(model, terms, head=head, uses_count=uses_count)


def schedule_factor(schedule: ScheduleSection | None, progress: float) -> float:
    """What the weight is multiplied by at `progress` (0 to 1) of training; 1 without a schedule."""
    if schedule is None:
        return 1.0
    part = min(1.0, progress / schedule.fraction)
    if schedule.kind == "cosine":
        part = (1.0 - math.cos(math.pi * part)) / 2.0
    return schedule.start + (schedule.end - schedule.start) * part


class LossHandle:
    """The terms at work on one model: progress in, logged values out, `remove` to end it."""

    def __init__(
        self,
        model: nn.Module,
        terms: Sequence[WeightedTerm],
        *,
        head: Head | None,
        uses_count: bool | None = None,
    ) -> None:
        task = [item for item in terms if item.name == TASK]
        self._task = task[0] if task else WeightedTerm(TASK)
        self._terms = [(item, item.term) for item in terms if item.term is not None]
        self._is_empty = not terms
        self._is_shifted = _is_shifted(model, head)
        self._wants_hidden_states = any(term.needs_hidden_states for _, term in self._terms)
        self._progress: float | None = None
        self._own_uses_count = uses_count
        self._hid_hidden_states = False
        self._logs: dict[str, tuple[Tensor, Tensor]] = {}
        self._hooks = (
            model.register_forward_pre_hook(self._before, with_kwargs=True),
            model.register_forward_hook(self._after, with_kwargs=True),
        )

    def set_progress(self, step: int, total_steps: int) -> None:
        """Say that `step` of `total_steps` optimizer steps are done; the schedules follow it."""
        self._progress = min(1.0, step / max(1, total_steps))

    def pop_logs(self) -> dict[str, float]:
        """Each term's unweighted mean per item since the last call; "task" is the own loss.

        Empty where there are no terms: the trainer logs the own loss itself.
        """
        sums = {name: (float(total), float(count)) for name, (total, count) in self._logs.items()}
        self._logs = {}
        return {name: total / count for name, (total, count) in sums.items() if count > 0}

    def remove(self) -> None:
        """Take the hooks off; the model returns its own loss as before."""
        for hook in self._hooks:
            hook.remove()
        self._terms = []
        self._logs = {}

    def _before(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not (model.training and torch.is_grad_enabled()):
            return None
        named = {**_name_arguments(model, args), **kwargs}
        if self._own_uses_count is None and _count_given(named) is not None:
            self._own_uses_count = _uses_count(model, named)
        self._hid_hidden_states = self._wants_hidden_states and not named.get(
            "output_hidden_states"
        )
        if self._hid_hidden_states:
            named["output_hidden_states"] = True
        return (), named

    def _after(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        if not (model.training and torch.is_grad_enabled()):
            return None
        labels = kwargs.get("labels")
        if self._is_empty and (labels is None or self._own_uses_count is not False):
            return None
        own = _own_loss(output, labels)
        items = _count_given(kwargs)
        parts = {TASK: self._scale_own(own, labels, items)}
        weights = {TASK: self._weight(self._task)}
        batch = {key: value for key, value in kwargs.items() if key not in _NOT_INPUTS}
        signals: dict[int, Mapping[str, Any]] = {}
        for item, term in self._terms:
            weights[item.name] = self._weight(item)
            if weights[item.name] > 0:
                signal = self._signal(item.signal, batch, signals)
                total, count = term(output, signal, batch)
                parts[item.name] = self._per_item(item.name, total, count, items=items)
        loss = sum(weights[name] * part for name, part in parts.items() if weights[name] > 0)
        output["loss"] = _require_finite(loss, parts)
        return _without_hidden_states(output) if self._hid_hidden_states else output

    def _weight(self, item: WeightedTerm) -> float:
        if item.schedule is None:
            return item.weight
        if self._progress is None:
            raise UsageError(
                f"loss {item.name!r}: its schedule needs to know how far training is; call"
                " set_progress(step, total_steps) before the first step"
            )
        return item.weight * schedule_factor(item.schedule, self._progress)

    def _scale_own(self, own: Tensor, labels: Any, items: Tensor | None) -> Tensor:
        labelled = _labelled(labels, self._is_shifted, own)
        if items is None:
            self._log(TASK, own * labelled, labelled)
            return own
        if self._own_uses_count is not False:
            self._log(TASK, own * items.to(own.device), labelled)
            return own
        self._log(TASK, own * labelled, labelled)
        return own * labelled / items.to(own.device)

    def _per_item(
        self, name: str, total: Tensor, count: Tensor | int, *, items: Tensor | None
    ) -> Tensor:
        counted = torch.as_tensor(count, device=total.device)
        self._log(name, total, counted)
        return total / (counted.clamp(min=1) if items is None else items.to(total.device))

    def _signal(
        self,
        source: SignalSource | None,
        batch: Mapping[str, Any],
        known: dict[int, Mapping[str, Any]],
    ) -> Mapping[str, Any] | None:
        if source is None:
            return None
        if id(source) not in known:
            hidden = any(
                term.needs_hidden_states for item, term in self._terms if item.signal is source
            )
            with torch.no_grad():
                known[id(source)] = source(batch, hidden_states=hidden)
        return known[id(source)]

    def _log(self, name: str, total: Tensor, count: Tensor) -> None:
        if self._is_empty:
            return
        total, count = total.detach().float(), count.detach().float()
        if name in self._logs:
            before = self._logs[name]
            total, count = before[0] + total, before[1] + count
        self._logs[name] = (total, count)


def _check_term(item: WeightedTerm, terms: Sequence[WeightedTerm]) -> None:
    if sum(other.name == item.name for other in terms) > 1:
        raise ConfigError(f"loss {item.name!r}: each loss term may stand once; it stands twice")
    if (item.name == TASK) != (item.term is None):
        raise ConfigError(
            f"loss {item.name!r}: {TASK!r} is the student's own loss and has no term; got"
            f" {type(item.term).__name__}"
        )
    needs = item.term is not None and item.term.needs_signal
    if needs and item.signal is None:
        raise ConfigError(
            f"loss {item.name!r}: needs a teacher and has none; add `teacher: PATH` beside its name"
        )
    if item.signal is not None and not needs:
        raise ConfigError(f"loss {item.name!r}: uses no teacher; remove its `teacher`")


def _is_shifted(model: nn.Module, head: Head | None) -> bool:
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return False
    if head is not None:
        return head.task_type == "CAUSAL_LM"
    return getattr(model, "loss_type", None) in _SHIFTING_LOSSES


def _labelled(labels: Any, is_shifted: bool, own: Tensor) -> Tensor:
    if labels is None:
        return torch.ones((), device=own.device)
    counted: Tensor = labels[..., 1:] if is_shifted else labels
    return counted.ne(IGNORED_LABEL).sum().to(own.device)


def _count_given(kwargs: Mapping[str, Any]) -> Tensor | None:
    count = kwargs.get("num_items_in_batch")
    return None if count is None else torch.as_tensor(count)


def _name_arguments(model: nn.Module, args: tuple[Any, ...]) -> dict[str, Any]:
    if not args:
        return {}
    names = _positional_names(model)
    base: Any = getattr(model, "get_base_model", None)
    if not names and base is not None:
        names = _positional_names(base())
    if len(args) > len(names):
        raise UsageError(
            f"{type(model).__name__}.forward: loss terms must know the inputs by name; got"
            f" {len(args)} positional arguments for {len(names)} names; call it with keywords"
        )
    return dict(zip(names, args, strict=False))


def _positional_names(model: nn.Module) -> list[str]:
    parameters = list(inspect.signature(type(model).forward).parameters.values())[1:]
    return [p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]


def _uses_count(model: nn.Module, kwargs: Mapping[str, Any]) -> bool | None:
    """Whether the loss changes when `num_items_in_batch` doubles; None where it is 0 or not finite.

    Two forwards without gradient, once in a run, from the same random state, which is restored.
    """
    count = torch.as_tensor(kwargs["num_items_in_batch"])
    tensors = [value for value in kwargs.values() if isinstance(value, Tensor)]
    devices = sorted({t.device.index or 0 for t in tensors if t.is_cuda})
    losses = []
    for factor in (1, 2):
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            output = model.forward(**{**kwargs, "num_items_in_batch": count * factor})
        losses.append(float(_own_loss(output, kwargs.get("labels"))))
    if not all(math.isfinite(loss) and loss != 0 for loss in losses):
        return None
    return not math.isclose(losses[0], losses[1], rel_tol=1e-3)


def _own_loss(output: Any, labels: Any) -> Tensor:
    if not isinstance(output, MutableMapping):
        raise UnsupportedError(
            f"loss terms: the model must return named outputs; got {type(output).__name__};"
            " call it with return_dict=True"
        )
    own = output.get("loss")
    if not isinstance(own, Tensor):
        given = "labels among its inputs" if labels is not None else "no labels among its inputs"
        raise UsageError(
            f"loss terms: in training the model must return a loss; got none, with {given}. A"
            " trainer that computes the loss itself (label_smoothing_factor, compute_loss_func)"
            " leaves nothing to add to"
        )
    return own


def _require_finite(loss: Any, parts: Mapping[str, Tensor]) -> Tensor:
    if not isinstance(loss, Tensor):
        return next(iter(parts.values())) * 0.0
    if not bool(torch.isfinite(loss).all()):
        for name, part in parts.items():
            if not bool(torch.isfinite(part).all()):
                raise ConfigError(
                    f"loss {name!r}: must be finite; got {part.detach().tolist()}; lower the"
                    " learning rate, or look for a micro-batch in which no item has a label"
                )
    return loss


def _without_hidden_states(output: Any) -> Any:
    return type(output)(**{key: value for key, value in output.items() if key != "hidden_states"})
