"""What a recipe says reaches the trainer: each test fails if one wire between the parts is cut."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import ftrt
from ftrt.errors import ConfigError
from ftrt.recipe import parse
from ftrt.registry import Registry
from ftrt.runtime import evaluate_run
from ftrt.runtime.attachment import build_parts

GROUPED = """
    from ftrt import ModelMethod, PluginConfig, hookimpl

    ftrt_hookspec = 1
    STEPS = []

    class Grouped(ModelMethod):
        '''Everything trains; the backbone at a learning rate of zero.'''
        name = "grouped"
        source = "made up"
        Config = PluginConfig
        supports_quantized_base = False

        def prepare(self, model, new_modules):
            model.requires_grad_(True)

        def param_groups(self, model):
            named = dict(model.named_parameters())
            head = [p for name, p in named.items() if name.startswith("classifier")]
            rest = [p for name, p in named.items() if not name.startswith("classifier")]
            return [{"params": rest, "lr": 0.0, "weight_decay": 0.0}, {"params": head}]

        def on_step(self, model, step, total_steps):
            STEPS.append((step, total_steps))

    @hookimpl
    def register_methods():
        return [Grouped]

    @hookimpl
    def after_attach(run):
        STEPS.append("attached")
"""


def weights(folder, name="adapter_model.safetensors"):
    return load_file(folder / name)


def logged(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def full(tree):
    return {**{k: v for k, v in tree.items() if k != "quantization"}, "method": {"name": "full"}}


def test_a_methods_groups_and_steps_reach_the_trainer(recipe_tree, plugin_folder, tiny_bert_dir):
    plugin_folder.add(
        "ftrt-grouped", {"method.grouped": "grouped_plugin"}, {"grouped_plugin": GROUPED}
    )
    result = ftrt.train({**full(recipe_tree), "method": {"name": "grouped"}})
    import grouped_plugin

    assert grouped_plugin.STEPS[0] == "attached"
    assert grouped_plugin.STEPS[1:] == [(n, result.steps) for n in range(1, result.steps + 1)]
    before = load_file(tiny_bert_dir / "model.safetensors")
    after = weights(result.run_dir, "model.safetensors")
    assert all(torch.equal(after[f"bert.{name}"], value) for name, value in before.items())
    assert after["classifier.bias"].abs().max() > 0


def test_overwrite_leaves_nothing_of_the_old_run(recipe_tree):
    old = ftrt.train(recipe_tree)
    (old.run_dir / "stale.txt").write_text("from the old run")
    lines = len(logged(old.run_dir))
    ftrt.train(recipe_tree, overwrite=True)
    assert not (old.run_dir / "stale.txt").exists()
    assert len(logged(old.run_dir)) == lines


def test_the_saved_weights_are_those_of_the_best_checkpoint_also_when_it_is_not_the_last(
    recipe_tree,
):
    # the worst loss is called best, so the first of two epochs must win
    recipe_tree["training"].update(metric_for_best_model="eval_loss", greater_is_better=True)
    result = ftrt.train(full(recipe_tree))
    losses = {row["step"]: row["eval_loss"] for row in logged(result.run_dir) if "eval_loss" in row}
    first, last = min(losses), max(losses)
    assert losses[first] > losses[last]
    saved = weights(result.run_dir, "model.safetensors")
    checkpoints = result.run_dir / "checkpoints"
    best = weights(checkpoints / f"checkpoint-{first}", "model.safetensors")
    worst = weights(checkpoints / f"checkpoint-{last}", "model.safetensors")
    assert all(torch.equal(saved[name], best[name]) for name in saved)
    assert any(not torch.equal(saved[name], worst[name]) for name in saved)


def test_a_trained_classifier_keeps_its_own_order_of_labels(recipe_tree, tmp_path):
    recipe_tree["training"].update(learning_rate=0.005, num_train_epochs=6)
    reversed_head = {"name": "sequence_classification", "labels": ["1", "0"]}
    first = ftrt.train({**full(recipe_tree), "head": reversed_head})
    assert first.after["accuracy"] > 0.8
    recipe_tree["training"].update(learning_rate=0.0, num_train_epochs=1)
    again = {**full(recipe_tree), "model": {"path": str(first.run_dir)}}
    second = ftrt.train({**again, "output": str(tmp_path / "second")})
    assert second.after["accuracy"] == first.after["accuracy"]
    assert evaluate_run(second.run_dir)["accuracy"] == first.after["accuracy"]


def test_terms_with_the_same_teacher_share_it():
    teacher = {"name": "online", "path": "somewhere"}
    losses = [
        {"name": "logit_kl", "teacher": teacher},
        {"name": "hidden_mse", "teacher": teacher},
    ]
    parts = build_parts(parse({"method": {"name": "lora"}, "losses": losses}), Registry())
    first, second = (signal for _, _, signal in parts.losses)
    assert first is second
    losses[1]["teacher"] = {"name": "online", "path": "elsewhere"}
    parts = build_parts(parse({"method": {"name": "lora"}, "losses": losses}), Registry())
    first, second = (signal for _, _, signal in parts.losses)
    assert first is not second


def test_a_teacher_its_schedule_and_its_logs_reach_the_trainer(recipe_tree, tmp_path):
    teacher = ftrt.train({**full(recipe_tree), "output": str(tmp_path / "teacher")})
    fading = {"kind": "linear", "start": 1.0, "end": 0.0, "fraction": 0.5}
    term = {"name": "logit_kl", "teacher": str(teacher.run_dir), "schedule": fading}
    recipe_tree["training"].update(logging_steps=1)
    faded = ftrt.train({**recipe_tree, "losses": [term], "output": str(tmp_path / "faded")})
    rows = [row for row in logged(faded.run_dir) if "task" in row]
    assert len(rows) == faded.steps
    # a term whose weight has come to zero is no longer computed
    assert ["logit_kl" in row for row in rows].index(False) == pytest.approx(faded.steps / 2, abs=1)
    steady = {key: value for key, value in term.items() if key != "schedule"}
    kept = ftrt.train({**recipe_tree, "losses": [steady], "output": str(tmp_path / "kept")})
    a, b = weights(faded.run_dir), weights(kept.run_dir)
    assert any(not torch.equal(a[name], b[name]) for name in a)


def test_a_run_whose_every_loss_has_weight_zero_is_refused(recipe_tree):
    with pytest.raises(ConfigError, match="losses: at least one weight must be > 0"):
        ftrt.train({**recipe_tree, "losses": [{"name": "task", "weight": 0.0}]})


def test_a_loss_that_diverges_ends_the_run(recipe_tree):
    recipe_tree["training"].update(learning_rate=1e38, max_grad_norm=0.0, logging_steps=1)
    with pytest.raises(ConfigError, match="must be finite; got nan; lower the learning rate"):
        ftrt.train(full(recipe_tree))
    assert not (Path(recipe_tree["output"]) / "ftrt.json").exists()


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_logged_loss_must_be_finite_whichever_model_computed_it(tmp_path, loss):
    from transformers import TrainerState

    from ftrt.integrations.transformers_callbacks import RecordCallback

    record = RecordCallback(tmp_path / "metrics.jsonl")
    with pytest.raises(ConfigError, match=rf"must stay finite; it is {loss} at step 7"):
        record.on_log(None, TrainerState(global_step=7), None, logs={"loss": loss})
    assert not (tmp_path / "metrics.jsonl").exists()
