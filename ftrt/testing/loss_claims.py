"""What a loss term claims: functions that return or raise `AssertionError`."""

__all__ = ["COMMON_CLAIMS", "CONTRACT_CLAIMS", "Subject"]

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ftrt.api import LossTerm
from ftrt.testing.claims import require_config
from ftrt.testing.toy_outputs import Case, Outputs, Task, items_of, make_case

# sums of a few hundred float32 terms; a wrong count or a lost item is off by far more
TOLERANCE = 1e-4
# bfloat16 has 8 bits of mantissa, 2**-8 a rounding, and the outputs are rounded before the term
BFLOAT16_TOLERANCE = 0.1


@dataclass(frozen=True)
class Subject:
    """The term under test and how it is tried."""

    loss_class: type[LossTerm]
    options: Mapping[str, Any]
    task: Task
    is_least_at_teacher: bool

    def term(self) -> LossTerm:
        """A fresh term with the options."""
        return self.loss_class(self.loss_class.Config.model_validate(dict(self.options)))

    def call(self, case: Case) -> tuple[Tensor, Tensor]:
        """(total, count) of a fresh term."""
        student, signal, batch = case
        total, count = self.term()(student, signal if self.loss_class.needs_signal else None, batch)
        return total, torch.as_tensor(count)


def _rows(outputs: Outputs, rows: slice) -> Outputs:
    return {
        key: tuple(part[rows] for part in value) if isinstance(value, tuple) else value[rows]
        for key, value in outputs.items()
    }


def _tensors(outputs: Mapping[str, Any]) -> list[Tensor]:
    return [
        part
        for value in outputs.values()
        for part in (value if isinstance(value, tuple) else (value,))
    ]


def _require_near(found: Tensor, expected: Tensor, what: str, tolerance: float) -> None:
    gap = float((found.detach().double() - expected.detach().double()).abs())
    if not gap <= tolerance * max(1.0, abs(float(expected))):
        raise AssertionError(f"{what}; got {float(found):.6g} for {float(expected):.6g}")


def has_name_and_source(subject: Subject) -> None:
    """A recipe names the term and a reader finds its paper."""
    for attribute in ("name", "source"):
        value = getattr(subject.loss_class, attribute, None)
        if not (isinstance(value, str) and value.strip()):
            raise AssertionError(f"`{attribute}` must be text; got {value!r}")


def validates_options(subject: Subject) -> None:
    """Options come back from JSON as they were, and unknown ones are refused."""
    require_config(subject.loss_class, subject.options)


def returns_a_finite_sum(subject: Subject) -> None:
    """The total is one finite number with a gradient."""
    student, signal, batch = make_case(subject.task)
    for part in _tensors(student):
        part.requires_grad_()
    total, _ = subject.call((student, signal, batch))
    if total.dim() != 0 or not bool(torch.isfinite(total)):
        raise AssertionError(f"total must be one finite number; got {total.detach().tolist()}")
    if not total.requires_grad:
        raise AssertionError("total must carry a gradient; it carries none")


def counts_the_labelled_items(subject: Subject) -> None:
    """The count is what the labels mark."""
    case = make_case(subject.task)
    expected = int(items_of(case[2]["labels"]).sum())
    _, count = subject.call(case)
    if int(count) != expected:
        raise AssertionError(
            f"count must be the labelled items after the shift, {expected}; got {int(count)}"
        )


def adds_up_over_micro_batches(subject: Subject) -> None:
    """Two parts of a batch sum to the whole: gradient accumulation keeps the objective."""
    student, signal, batch = make_case(subject.task)
    whole, count = subject.call((student, signal, batch))
    parts = [
        subject.call((_rows(student, rows), _rows(signal, rows), _rows(batch, rows)))
        for rows in (slice(0, 2), slice(2, None))
    ]
    summed = parts[0][0] + parts[1][0]
    _require_near(
        summed, whole, "totals of two micro-batches must add up to the batch's", TOLERANCE
    )
    if int(parts[0][1] + parts[1][1]) != int(count):
        raise AssertionError(
            "counts of two micro-batches must add up to the batch's; got"
            f" {int(parts[0][1])} + {int(parts[1][1])} for {int(count)}"
        )


def trains_the_student_only(subject: Subject) -> None:
    """The gradient reaches the student's outputs and not the teacher's."""
    student, signal, batch = make_case(subject.task)
    for part in [*_tensors(student), *_tensors(signal)]:
        part.requires_grad_()
    torch.autograd.backward(subject.call((student, signal, batch))[0])
    gradients = [part.grad for part in _tensors(student) if part.grad is not None]
    if not any(bool(gradient.any()) for gradient in gradients):
        raise AssertionError("the student's outputs must get a gradient; they get none")
    if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
        raise AssertionError("the student's gradient must be finite; it is not")
    if any(part.grad is not None and bool(part.grad.any()) for part in _tensors(signal)):
        raise AssertionError("the teacher's outputs must get no gradient; detach the signal")


def ignores_unlabelled_tokens(subject: Subject) -> None:
    """Outputs at positions that predict a label of -100 change nothing."""
    if subject.task != "causal_lm":
        return
    student, signal, batch = make_case(subject.task)
    expected, _ = subject.call((student, signal, batch))
    other = make_case(subject.task, seed=1)
    ignored = torch.ones_like(batch["labels"], dtype=torch.bool)
    ignored[:, :-1] = ~items_of(batch["labels"])
    changed = [
        _replaced(one, two, ignored) for one, two in zip((student, signal), other[:2], strict=True)
    ]
    found, _ = subject.call((changed[0], changed[1], batch))
    _require_near(
        found, expected, "outputs that predict a label of -100 must not change the total", TOLERANCE
    )


def _replaced(outputs: Outputs, other: Outputs, where: Tensor) -> Outputs:
    logits = torch.where(where[..., None], other["logits"], outputs["logits"])
    hidden = tuple(
        torch.where(where[..., None], b, a)
        for a, b in zip(outputs["hidden_states"], other["hidden_states"], strict=True)
    )
    return {"logits": logits, "hidden_states": hidden}


def survives_a_batch_without_items(subject: Subject) -> None:
    """A micro-batch in which nothing is labelled sums to nothing."""
    student, signal, batch = make_case(subject.task)
    empty = {**batch, "labels": torch.full_like(batch["labels"], -100)}
    total, count = subject.call((student, signal, empty))
    if int(count) != 0 or float(total) != 0.0:
        raise AssertionError(
            "a batch whose labels are all -100 must give (0, 0); got"
            f" ({float(total)}, {int(count)})"
        )


def works_in_bfloat16(subject: Subject) -> None:
    """bfloat16 outputs give about the same total."""
    student, signal, batch = make_case(subject.task, dtype=torch.bfloat16)
    expected, _ = subject.call(make_case(subject.task))
    found, _ = subject.call((student, signal, batch))
    _require_near(found, expected, "bfloat16 outputs must give the total", BFLOAT16_TOLERANCE)


def changes_no_input(subject: Subject) -> None:
    """Student, teacher and batch are as they were, and a second call agrees."""
    case = make_case(subject.task)
    before = [part.clone() for group in case for part in _tensors(group)]
    keys = [list(group) for group in case]
    torch.manual_seed(0)
    first, _ = subject.call(case)
    after = [part for group in case for part in _tensors(group)]
    if keys != [list(group) for group in case] or not all(map(torch.equal, before, after)):
        raise AssertionError("student, signal and batch must not be changed in place; one is")
    torch.manual_seed(1)
    again, _ = subject.call(case)
    if not torch.equal(first, again):
        raise AssertionError(f"two calls must agree; got {float(first):.6g} and {float(again):.6g}")


def rests_at_the_teacher(subject: Subject) -> None:
    """A student equal to its teacher gets no gradient."""
    if not (subject.loss_class.needs_signal and subject.is_least_at_teacher):
        return
    _, signal, batch = make_case(subject.task)
    student = {
        "logits": signal["logits"].clone().requires_grad_(),
        "hidden_states": tuple(part.clone().requires_grad_() for part in signal["hidden_states"]),
    }
    torch.autograd.backward(subject.call((student, signal, batch))[0])
    gradients = [part.grad for part in _tensors(student) if part.grad is not None]
    largest = max((float(gradient.abs().max()) for gradient in gradients), default=0.0)
    if largest > TOLERANCE:
        raise AssertionError(
            f"a student equal to its teacher must get no gradient; got {largest:.3g}; if the term"
            " is meant so, pass is_least_at_teacher=False"
        )


CONTRACT_CLAIMS = (has_name_and_source, validates_options)
COMMON_CLAIMS = (
    returns_a_finite_sum,
    counts_the_labelled_items,
    adds_up_over_micro_batches,
    trains_the_student_only,
    ignores_unlabelled_tokens,
    survives_a_batch_without_items,
    works_in_bfloat16,
    changes_no_input,
    rests_at_the_teacher,
)
