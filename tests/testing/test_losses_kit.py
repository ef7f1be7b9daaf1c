"""`check_loss` passes a right term and names what is wrong with a broken one."""

import math

import pytest
import torch
from pydantic import ConfigDict
from torch.nn import functional

from ftrt import LossTerm, PluginConfig
from ftrt.testing import check_loss
from ftrt.testing.toy_outputs import items_of, make_case


class NoOptions(PluginConfig):
    """No options."""


class SoftTargets(LossTerm):
    """KL(teacher ‖ student) summed over items; right in every respect."""

    name = "soft_targets"
    source = "a test"
    Config = NoOptions
    needs_signal = True

    def __call__(self, student, signal, batch):
        marked, ours, theirs = self.items(student["logits"], signal["logits"].detach(), batch)
        log_ours, log_theirs = ours[marked].log_softmax(-1), theirs[marked].log_softmax(-1)
        total = (log_theirs.exp() * (log_theirs - log_ours)).sum()
        return total, marked.sum()

    def items(self, ours, theirs, batch):
        labels = batch["labels"]
        if ours.dim() == 3:
            ours, theirs, labels = ours[:, :-1], theirs[:, :-1], labels[:, 1:]
        return labels != -100, ours.float(), theirs.float()


class Entropy(LossTerm):
    """−Σ p log p of the student; needs no teacher."""

    name = "entropy"
    source = "a test"
    Config = NoOptions

    def __call__(self, student, signal, batch):
        assert signal is None
        logits = student["logits"].float()
        labels = batch["labels"]
        if logits.dim() == 3:
            logits, labels = logits[:, :-1], labels[:, 1:]
        marked = labels != -100
        log_p = logits[marked].log_softmax(-1)
        return -(log_p.exp() * log_p).sum(), marked.sum()


@pytest.mark.parametrize("task", ["classification", "causal_lm"])
@pytest.mark.parametrize("term", [SoftTargets, Entropy])
def test_right_terms_pass(term, task):
    check_loss(term, task=task)


class IsMean(SoftTargets):
    def __call__(self, student, signal, batch):
        total, count = super().__call__(student, signal, batch)
        return total / count, count


class CountsRows(SoftTargets):
    def __call__(self, student, signal, batch):
        return super().__call__(student, signal, batch)[0], len(batch["labels"])


class ForgetsTheShift(SoftTargets):
    def items(self, ours, theirs, batch):
        return batch["labels"] != -100, ours.float(), theirs.float()


class CountsPadding(SoftTargets):
    def __call__(self, student, signal, batch):
        ours, theirs = student["logits"].float(), signal["logits"].float().detach()
        total = functional.kl_div(ours.log_softmax(-1), theirs.softmax(-1), reduction="sum")
        return total, items_of(batch["labels"]).sum()


class TrainsTheTeacher(SoftTargets):
    def __call__(self, student, signal, batch):
        total, count = super().__call__(student, signal, batch)
        return total + (signal["logits"].float() ** 2).sum() * 0.1, count


class Detached(SoftTargets):
    def __call__(self, student, signal, batch):
        total, count = super().__call__(student, signal, batch)
        return total.detach(), count


class PerItem(SoftTargets):
    def __call__(self, student, signal, batch):
        total, count = super().__call__(student, signal, batch)
        return total.expand(3), count


class NotFinite(SoftTargets):
    def __call__(self, student, signal, batch):
        total, count = super().__call__(student, signal, batch)
        return total + math.inf, count


class InPlace(SoftTargets):
    def __call__(self, student, signal, batch):
        total, count = super().__call__(student, signal, batch)
        signal["logits"].mul_(0.5)
        return total, count


class AddsAKey(SoftTargets):
    def __call__(self, student, signal, batch):
        batch["seen"] = batch["labels"]
        return super().__call__(student, signal, batch)


class IsRandom(SoftTargets):
    def __call__(self, student, signal, batch):
        total, count = super().__call__(student, signal, batch)
        return total * torch.rand(()), count


class Float32Only(SoftTargets):
    def __call__(self, student, signal, batch):
        if student["logits"].dtype != torch.float32:
            raise TypeError("float32 please")
        return super().__call__(student, signal, batch)


class HotterTeacher(SoftTargets):
    def items(self, ours, theirs, batch):
        marked, ours, theirs = super().items(ours, theirs, batch)
        return marked, ours, theirs / 3


class MeanOfNothing(SoftTargets):
    def __call__(self, student, signal, batch):
        total, count = super().__call__(student, signal, batch)
        return total / count * count, count


class Nameless(SoftTargets):
    source = ""


class LooseConfig(PluginConfig):
    model_config = ConfigDict(extra="ignore")


class Loose(SoftTargets):
    Config = LooseConfig


@pytest.mark.parametrize(
    ("term", "task", "message"),
    [
        (IsMean, "classification", "totals of two micro-batches must add up to the batch's; got"),
        (CountsRows, "causal_lm", "labelled items after the shift, 24; got 6"),
        (ForgetsTheShift, "causal_lm", "labelled items after the shift, 24; got 25"),
        (ForgetsTheShift, "causal_lm", "predict a label of -100 must not change the total"),
        (CountsPadding, "causal_lm", "predict a label of -100 must not change the total"),
        (TrainsTheTeacher, "classification", "teacher's outputs must get no gradient; detach the"),
        (Detached, "classification", "total must carry a gradient; it carries none"),
        (PerItem, "classification", "total must be one finite number; got \\["),
        (NotFinite, "classification", "total must be one finite number; got inf"),
        (InPlace, "classification", "must not be changed in place; one is"),
        (AddsAKey, "classification", "must not be changed in place; one is"),
        (IsRandom, "classification", "two calls must agree; got"),
        (Float32Only, "classification", "works in bfloat16: must not raise; raised TypeError: fl"),
        (HotterTeacher, "causal_lm", "student equal to its teacher must get no gradient; got"),
        (MeanOfNothing, "causal_lm", "labels are all -100 must give \\(0, 0\\); got \\(nan, 0\\)"),
        (Nameless, "classification", "`source` must be text; got ''"),
        (Loose, "classification", "`Config` must refuse unknown options; its extra is not"),
        (dict, "classification", "must be a class that derives from LossTerm"),
    ],
)
def test_broken_terms_are_caught(term, task, message):
    with pytest.raises(AssertionError, match=message):
        check_loss(term, task=task)


def test_all_failures_are_told_at_once():
    with pytest.raises(AssertionError, match=r"^IsMean: \d of 9 claims fail\n- adds up over micro"):
        check_loss(IsMean)


def test_a_term_that_is_not_least_at_the_teacher_may_say_so():
    check_loss(HotterTeacher, is_least_at_teacher=False)


def test_the_callers_random_state_is_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    check_loss(SoftTargets)
    assert torch.equal(torch.rand(3), expected)


def test_cases_have_uneven_labels_one_of_them_on_a_first_token():
    _, _, batch = make_case("causal_lm")
    counts = items_of(batch["labels"]).sum(dim=1)
    assert len(set(counts.tolist())) > 1 and bool((batch["labels"][:, 0] != -100).any())
