"""One optimizer step has one gradient, however transformers.Trainer cuts its batch."""

import pytest
import torch
from loss_subjects import (
    FixedTeacher,
    SoftConfig,
    SoftTargets,
    bert,
    causal_rows,
    classification_rows,
    collate,
    cross_entropy_sum,
    gradients,
    llama,
    llama_classifier,
)
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainerCallback, TrainingArguments

from ftrt.losses import WeightedTerm, attach_losses

KINDS = {
    "bert": (bert, classification_rows, "SEQ_CLS"),
    "llama_classifier": (llama_classifier, classification_rows, "SEQ_CLS"),
    "llama": (llama, causal_rows, "CAUSAL_LM"),
}


class _Gradients(TrainerCallback):
    def __init__(self):
        self.first = None

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.first = self.first or gradients(model)


def _wrap(model, task_type):
    config = LoraConfig(r=2, target_modules="all-linear", task_type=task_type)
    torch.manual_seed(1)
    wrapped = get_peft_model(model, config)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return wrapped


def _first_step(kind, tmp_path, *, micro_batch, is_peft=False, terms=True, rows=8, **arguments):
    build, make_rows, task_type = KINDS[kind]
    model = _wrap(build(), task_type) if is_peft else build()
    weighted = []
    if terms:
        weighted = [
            WeightedTerm("task", weight=0.3),
            WeightedTerm(
                "soft", SoftTargets(SoftConfig()), 0.7, signal=FixedTeacher(build(seed=9))
            ),
        ]
    handle = attach_losses(model, weighted)
    args = TrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=-(-rows // micro_batch),
        max_steps=1,
        max_grad_norm=0.0,
        learning_rate=0.0,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        seed=0,
        remove_unused_columns=False,
        train_sampling_strategy="sequential",
        **arguments,
    )
    seen = _Gradients()
    trainer = Trainer(
        model, args, train_dataset=make_rows(rows), data_collator=collate, callbacks=[seen]
    )
    trainer.train()
    return seen.first, trainer.state.log_history, handle


def _distance(one, other):
    assert one.keys() == other.keys() and one
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("is_peft", [False, True], ids=["plain", "peft"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("terms", [True, False], ids=["soft", "own_loss_only"])
def test_accumulation_keeps_the_gradient(kind, is_peft, terms, tmp_path):
    whole, _, _ = _first_step(kind, tmp_path, micro_batch=8, is_peft=is_peft, terms=terms)
    cut, _, _ = _first_step(kind, tmp_path, micro_batch=2, is_peft=is_peft, terms=terms)
    assert _distance(whole, cut) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_accumulation_with_an_uneven_last_micro_batch_keeps_the_gradient(kind, tmp_path):
    whole, _, _ = _first_step(kind, tmp_path, micro_batch=8, rows=7)
    cut, _, _ = _first_step(kind, tmp_path, micro_batch=3, rows=7)
    assert _distance(whole, cut) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_the_stated_objective(kind, tmp_path):
    build, make_rows, _ = KINDS[kind]
    cut, _, _ = _first_step(kind, tmp_path, micro_batch=2)
    model, teacher = build(), build(seed=9).eval()
    model.double().train(), teacher.double()
    batch = collate(make_rows(8))
    labels = batch.pop("labels")
    ours, theirs = model(**batch).logits, teacher(**batch).logits.detach()
    if ours.dim() == 3:
        ours, theirs = ours[:, :-1].reshape(-1, 50), theirs[:, :-1].reshape(-1, 50)
        labels = labels[:, 1:].reshape(-1)
    marked = labels != -100
    soft = torch.nn.functional.kl_div(
        ours[marked].log_softmax(-1), theirs[marked].softmax(-1), reduction="sum"
    )
    (0.3 * cross_entropy_sum(ours, labels) + 0.7 * soft).div(marked.sum()).backward()
    assert _distance(gradients(model), cut) < 1e-6


def test_without_the_handle_transformers_multiplies_a_classifiers_gradient(tmp_path):
    """The fault that the handle undoes; when this fails, transformers has mended it."""
    build, make_rows, _ = KINDS["bert"]
    found = {}
    for micro_batch in (8, 2):
        seen = _Gradients()
        args = TrainingArguments(
            str(tmp_path),
            per_device_train_batch_size=micro_batch,
            max_steps=1,
            use_cpu=True,
            gradient_accumulation_steps=8 // micro_batch,
            max_grad_norm=0.0,
            learning_rate=0.0,
            report_to=[],
            disable_tqdm=True,
            save_strategy="no",
            remove_unused_columns=False,
        )
        Trainer(
            build(), args, train_dataset=make_rows(8), data_collator=collate, callbacks=[seen]
        ).train()
        found[micro_batch] = float(seen.first["classifier.weight"].norm())
    assert found[2] == pytest.approx(4 * found[8], rel=1e-4)


def test_gradient_checkpointing_keeps_the_gradient(tmp_path):
    plain, _, _ = _first_step("llama", tmp_path, micro_batch=2)
    saved, _, _ = _first_step("llama", tmp_path, micro_batch=2, gradient_checkpointing=True)
    assert _distance(plain, saved) < 1e-6


def test_bfloat16_training_adds_the_terms(tmp_path):
    found, _, handle = _first_step("bert", tmp_path, micro_batch=2, bf16=True)
    exact, _, _ = _first_step("bert", tmp_path, micro_batch=2)
    logs = handle.pop_logs()
    assert set(logs) == {"task", "soft"}
    assert _distance(found, exact) < 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_logs_are_means_over_the_items_of_the_step(kind, tmp_path):
    _, _, whole = _first_step(kind, tmp_path, micro_batch=8)
    _, _, cut = _first_step(kind, tmp_path, micro_batch=2)
    expected, found = whole.pop_logs(), cut.pop_logs()
    # a KL of 1e-4 is a difference of logs of size 1: its rounding is absolute
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert cut.pop_logs() == {}
