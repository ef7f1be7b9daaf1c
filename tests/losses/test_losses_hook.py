"""What `attach_losses` adds to a model's loss, and what it leaves alone."""

import math

import pytest
import torch
from loss_subjects import (
    FixedTeacher,
    HiddenSize,
    SoftConfig,
    SoftTargets,
    bert,
    causal_rows,
    classification_rows,
    collate,
    gradients,
    llama,
)
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from ftrt.errors import ConfigError, UnsupportedError, UsageError
from ftrt.losses import WeightedTerm, attach_losses, schedule_factor
from ftrt.recipe import ScheduleSection


def _soft(weight=0.5, *, teacher=None, name="soft", schedule=None):
    signal = FixedTeacher(bert(seed=9)) if teacher is None else teacher
    return WeightedTerm(name, SoftTargets(SoftConfig()), weight, schedule, signal)


def _batch():
    return collate(classification_rows())


def _soft_value(model, teacher, batch):
    with torch.no_grad():
        total, count = SoftTargets(SoftConfig())(
            model(**batch), teacher(batch, hidden_states=False), batch
        )
    return float(total / count)


def test_training_loss_is_the_weighted_sum():
    model, batch = bert(), _batch()
    own = float(model(**batch).loss)
    teacher = FixedTeacher(bert(seed=9))
    soft = _soft_value(model, teacher, batch)
    attach_losses(model, [WeightedTerm("task", weight=0.25), _soft(0.5, teacher=teacher)])
    found = model.train()(**batch)
    assert float(found.loss) == pytest.approx(0.25 * own + 0.5 * soft, rel=1e-6)
    assert found["loss"] is found.loss


def test_evaluation_loss_and_no_grad_loss_stay_the_students_own():
    model, batch = bert(), _batch()
    own = float(model.eval()(**batch).loss)
    handle = attach_losses(model, [_soft(0.5)])
    assert float(model.eval()(**batch).loss) == own
    with torch.no_grad():
        assert float(model.train()(**batch).loss) == pytest.approx(own)
    assert handle.pop_logs() == {}


def test_remove_restores_the_model():
    model, batch = bert().train(), _batch()
    own = model(**batch).loss
    hooks = len(model._forward_hooks), len(model._forward_pre_hooks)
    handle = attach_losses(model, [_soft(0.5)])
    assert not torch.equal(model(**batch).loss, own)
    handle.remove()
    assert torch.equal(model(**batch).loss, own)
    assert (len(model._forward_hooks), len(model._forward_pre_hooks)) == hooks


def test_positional_inputs_are_known_by_name():
    model, batch = bert().train(), _batch()
    attach_losses(model, [_soft(0.5)])
    by_name = model(**batch).loss
    ids, mask, labels = batch["input_ids"], batch["attention_mask"], batch["labels"]
    assert torch.equal(model(ids, mask, labels=labels).loss, by_name)


@pytest.mark.parametrize("task_type", ["SEQ_CLS", None])
def test_peft_model_takes_positional_inputs(task_type):
    config = LoraConfig(r=2, target_modules=["query"], task_type=task_type)
    torch.manual_seed(0)
    model, batch = get_peft_model(bert(), config).train(), _batch()
    assert isinstance(model, PeftModel)
    attach_losses(model, [_soft(0.5)])
    by_name = model(**batch).loss
    by_place = model(batch["input_ids"], batch["attention_mask"], labels=batch["labels"]).loss
    assert torch.equal(by_place, by_name)


def test_teacher_sees_the_inputs_and_no_loop_arguments():
    teacher = FixedTeacher(bert(seed=9))
    model = bert().train()
    attach_losses(
        model, [_soft(teacher=teacher), WeightedTerm("hidden_size", HiddenSize(None), 1.0)]
    )
    model(**_batch(), num_items_in_batch=torch.tensor(8))
    assert set(teacher.calls[-1]["batch"]) == {"input_ids", "attention_mask", "labels"}


def test_terms_that_share_a_teacher_run_it_once():
    teacher = FixedTeacher(bert(seed=9))
    model = bert().train()
    attach_losses(model, [_soft(teacher=teacher), _soft(teacher=teacher, name="again")])
    model(**_batch())
    assert len(teacher.calls) == 1


def test_gradient_reaches_the_student_and_not_the_teacher():
    teacher = FixedTeacher(bert(seed=9))
    teacher.model.requires_grad_(True)
    model = bert().train()
    attach_losses(model, [WeightedTerm("task", weight=0.0), _soft(1.0, teacher=teacher)])
    model(**_batch()).loss.backward()
    assert gradients(model) and not gradients(teacher.model)


@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_hidden_states_reach_the_term_and_do_not_leak(is_checkpointed):
    model, batch = bert().train(), _batch()
    expected = (
        model(**batch, output_hidden_states=True).hidden_states[-1].square().mean((1, 2)).mean()
    )
    own = model(**batch).loss
    config = model.config.to_dict()
    if is_checkpointed:
        model.gradient_checkpointing_enable()
    attach_losses(model, [WeightedTerm("hidden_size", HiddenSize(None), 2.0)])
    output = model(**batch)
    assert float(output.loss) == pytest.approx(float(own + 2 * expected), rel=1e-6)
    assert output.get("hidden_states") is None
    assert model(**batch, output_hidden_states=True).hidden_states is not None
    assert model.config.to_dict() == config
    output.loss.backward()
    assert gradients(model)


def test_under_autocast_the_loss_stays_near():
    model, batch = bert().train(), _batch()
    attach_losses(model, [_soft(0.5)])
    exact = float(model(**batch).loss)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert float(model(**batch).loss) == pytest.approx(exact, rel=0.02)


def test_a_term_of_weight_zero_is_not_computed():
    teacher = FixedTeacher(bert(seed=9))
    model = bert().train()
    handle = attach_losses(model, [_soft(0.0, teacher=teacher)])
    model(**_batch())
    assert teacher.calls == [] and set(handle.pop_logs()) == {"task"}


def test_logs_are_unweighted_means_and_are_popped():
    model, batch = bert().train(), _batch()
    own, teacher = float(model(**batch).loss), FixedTeacher(bert(seed=9))
    soft = _soft_value(model, teacher, batch)
    handle = attach_losses(model, [_soft(0.1, teacher=teacher)])
    model(**batch)
    assert handle.pop_logs() == pytest.approx({"task": own, "soft": soft}, rel=1e-5)
    assert handle.pop_logs() == {}


def test_schedule_moves_the_weight():
    section = ScheduleSection(kind="linear", start=1.0, end=0.0, fraction=0.5)
    teacher = FixedTeacher(bert(seed=9))
    model, batch = bert().train(), _batch()
    soft = _soft_value(model, teacher, batch)
    own = float(model(**batch).loss)
    handle = attach_losses(model, [_soft(2.0, teacher=teacher, schedule=section)])
    for step, factor in ((0, 1.0), (25, 0.5), (50, 0.0), (90, 0.0)):
        handle.set_progress(step, 100)
        assert float(model(**batch).loss) == pytest.approx(own + 2 * factor * soft, rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "progress", "expected"),
    [
        ("linear", 0.0, 0.2),
        ("linear", 0.25, 0.6),
        ("linear", 1.0, 1.0),
        ("cosine", 0.0, 0.2),
        ("cosine", 0.125, 1.0 + (0.2 - 1.0) * (1 + math.cos(math.pi / 4)) / 2),
        ("cosine", 0.5, 1.0),
    ],
)
def test_schedule_factor_runs_from_start_to_end(kind, progress, expected):
    section = ScheduleSection(kind=kind, start=0.2, end=1.0, fraction=0.5)
    assert schedule_factor(section, progress) == pytest.approx(expected)


def test_probing_the_own_loss_leaves_the_random_state_alone():
    def losses(with_handle):
        model, batch = bert(hidden_dropout_prob=0.5).train(), _batch()
        if with_handle:
            attach_losses(model, [])
        torch.manual_seed(5)
        return [float(model(**batch, num_items_in_batch=torch.tensor(8)).loss) for _ in range(3)]

    assert losses(True) == pytest.approx(losses(False), rel=1e-6)


def test_a_causal_loss_that_uses_the_count_is_not_rescaled():
    model, batch = llama().train(), collate(causal_rows())
    expected = model(**batch, num_items_in_batch=torch.tensor(100)).loss
    attach_losses(model, [])
    assert torch.equal(model(**batch, num_items_in_batch=torch.tensor(100)).loss, expected)


def test_a_micro_batch_without_labelled_tokens_adds_nothing():
    model, batch = llama().train(), collate(causal_rows())
    batch["labels"] = torch.full_like(batch["labels"], -100)
    teacher = FixedTeacher(llama(seed=9))
    handle = attach_losses(model, [_soft(teacher=teacher)])
    assert float(model(**batch, num_items_in_batch=torch.tensor(10)).loss) == 0.0
    assert handle.pop_logs() == {}


def test_a_term_that_is_not_finite_is_named():
    class Broken(HiddenSize):
        def __call__(self, student, signal, batch):
            total, count = super().__call__(student, signal, batch)
            return total * math.nan, count

    model = bert().train()
    attach_losses(model, [WeightedTerm("hidden_size", Broken(None), 1.0)])
    with pytest.raises(
        ConfigError, match=r"loss 'hidden_size': must be finite; got nan; lower the"
    ):
        model(**_batch())


def test_a_schedule_without_progress_is_refused():
    section = ScheduleSection(kind="linear")
    model = bert().train()
    attach_losses(model, [_soft(schedule=section)])
    with pytest.raises(UsageError, match=r"'soft': its schedule needs .* call set_progress\(step"):
        model(**_batch())


def test_a_forward_without_labels_is_refused_while_terms_are_on():
    model, batch = bert().train(), _batch()
    del batch["labels"]
    handle = attach_losses(model, [_soft()])
    with pytest.raises(UsageError, match=r"must return a loss; got none, with no labels among its"):
        model(**batch)
    handle.remove()
    attach_losses(model, [])
    assert model(**batch).loss is None


def test_a_tuple_output_is_refused():
    model = bert().train()
    attach_losses(model, [_soft()])
    with pytest.raises(
        UnsupportedError, match=r"must return named outputs; got tuple; call it with"
    ):
        model(**_batch(), return_dict=False)


def test_inputs_without_names_are_refused():
    class Anonymous(nn.Module):
        def forward(self, *inputs):
            return inputs

    model = Anonymous().train()
    attach_losses(model, [WeightedTerm("task", weight=2.0)])
    with pytest.raises(
        UsageError, match=r"got 2 positional arguments for 0 names; call it with key"
    ):
        model(torch.ones(1), torch.ones(1))


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ([WeightedTerm("soft", SoftTargets(None))], "'soft': needs a teacher and has none; add"),
        (
            [WeightedTerm("hidden_size", HiddenSize(None), signal=FixedTeacher(nn.Linear(1, 1)))],
            "'hidden_size': uses no teacher; remove its `teacher`",
        ),
        ([WeightedTerm("task"), WeightedTerm("task")], "'task': each loss term may stand once"),
        ([WeightedTerm("soft")], "'soft': 'task' is the student's own loss and has no term"),
        ([WeightedTerm("task", HiddenSize(None))], "has no term; got HiddenSize"),
    ],
)
def test_terms_that_cannot_work_are_refused_at_once(terms, message):
    model = bert()
    with pytest.raises(ConfigError, match=message):
        attach_losses(model, terms)
    assert not model._forward_hooks


@pytest.mark.parametrize("is_named", [True, False])
def test_a_causal_loss_that_ignores_the_count_is_rescaled_by_the_shifted_labels(is_named):
    """Row 0 has a label on its first token, which predicts nothing and is not counted."""

    def mean_loss(logits, labels, vocab_size, **ignored):
        flat = logits[:, :-1].reshape(-1, vocab_size)
        return nn.functional.cross_entropy(flat, labels[:, 1:].reshape(-1))

    model, batch = llama().train(), collate(causal_rows())
    if not is_named:
        model.loss_type = "ForConditionalGeneration"
    model.loss_function = mean_loss
    own = model(**batch).loss
    attach_losses(model, [])
    labelled = int((batch["labels"][:, 1:] != -100).sum())
    assert labelled < int((batch["labels"] != -100).sum())
    found = model(**batch, num_items_in_batch=torch.tensor(100)).loss
    assert float(found) == pytest.approx(float(own) * labelled / 100, rel=1e-6)
