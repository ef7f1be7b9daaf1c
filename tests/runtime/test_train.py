"""Whole runs on a tiny model: what they write, that they learn, that they go on after an
interruption.
"""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import ftrt
from ftrt.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    InterruptedRun,
    UnsupportedError,
    UsageError,
)
from ftrt.quantization.int8_layers import int8_layers
from ftrt.runtime import evaluate_run, merge_run, predict_run


def test_run_learns_and_writes_its_folder(recipe_tree, many_reviews):
    recipe_tree["method"] = {"name": "lora", "rank": 8, "alpha": 8}
    recipe_tree["training"].update(learning_rate=0.01, num_train_epochs=8, logging_steps=20)
    recipe_tree["data"].update(train=str(many_reviews), validation="10%", test=60)
    result = ftrt.train({**recipe_tree, "baseline": True})
    assert result.after["accuracy"] >= max(0.7, result.before["accuracy"] + 0.1)
    names = {file.name for file in result.run_dir.iterdir()}
    assert names >= {
        "adapter_config.json", "adapter_model.safetensors", "ftrt.json", "metrics.jsonl",
        "loss.png", "README.md", "tokenizer.json",
    }  # fmt: skip
    assert "model.safetensors" not in names
    info = json.loads((result.run_dir / "ftrt.json").read_text())
    assert info["plugins"].keys() >= {"ftrt-lowrank", "ftrt-heads"}
    assert len(info["quantized_layers"]) == 13
    assert info["ops"]["int8_linear"]
    assert info["results"]["after"]["accuracy"] == result.after["accuracy"]
    assert info["head"]["state"]["labels"] == ["0", "1"]
    steps = [
        json.loads(line) for line in (result.run_dir / "metrics.jsonl").read_text().splitlines()
    ]
    assert any("loss" in row for row in steps) and any("eval_accuracy" in row for row in steps)
    assert (result.run_dir / "loss.png").read_bytes()[:4] == b"\x89PNG"
    assert "accuracy" in (result.run_dir / "README.md").read_text()


def test_evaluating_the_run_gives_the_figure_training_reported(recipe_tree):
    result = ftrt.train(recipe_tree)
    again = evaluate_run(result.run_dir)
    assert again["accuracy"] == result.after["accuracy"]
    assert again["loss"] == pytest.approx(result.after["loss"], abs=1e-6)
    assert again["rows"] == 20


@pytest.mark.parametrize(
    "method", [{"name": "lora"}, {"name": "lora_xs", "rank": 4}, {"name": "full"}]
)
def test_every_method_trains_reloads_and_predicts(recipe_tree, method):
    tree = {**recipe_tree, "method": method}
    if method["name"] == "full":
        tree.pop("quantization")
    result = ftrt.train(tree)
    answers = predict_run(result.run_dir, ["good great film", "awful dull film"])
    assert [set(answer) >= {"label", "probability"} for answer in answers] == [True, True]
    assert evaluate_run(result.run_dir)["accuracy"] == result.after["accuracy"]


def test_merged_folder_is_plain_transformers(recipe_tree, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tree = {k: v for k, v in recipe_tree.items() if k != "quantization"}
    result = ftrt.train(tree)
    folder = merge_run(result.run_dir, tmp_path / "merged").folder
    plain = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(["good warm film", "dull plot"], return_tensors="pt", padding=True)
    run = ftrt.load_run(result.run_dir)
    with torch.no_grad():
        torch.testing.assert_close(
            plain(**batch).logits, run.model(**batch).logits, atol=1e-5, rtol=0
        )


def test_adapter_loads_with_plain_peft_on_a_float_base(recipe_tree, tiny_bert_dir):
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tree = {k: v for k, v in recipe_tree.items() if k != "quantization"}
    result = ftrt.train(tree)
    base = AutoModelForSequenceClassification.from_pretrained(tiny_bert_dir, num_labels=2)
    plain = PeftModel.from_pretrained(base, result.run_dir).eval()
    tokenizer = AutoTokenizer.from_pretrained(result.run_dir)
    batch = tokenizer(["good warm film", "dull plot"], return_tensors="pt", padding=True)
    run = ftrt.load_run(result.run_dir)
    with torch.no_grad():
        torch.testing.assert_close(
            plain(**batch).logits, run.model(**batch).logits, atol=1e-5, rtol=0
        )


def test_interrupted_run_resumes_to_the_same_weights(recipe_tree, tmp_path):
    tree = {**recipe_tree, "data": {**recipe_tree["data"], "validation": None}}
    tree["training"] = {
        **tree["training"],
        "lr_scheduler_type": "constant",
        "dataloader_num_workers": 0,
    }
    straight = ftrt.train({**tree, "output": str(tmp_path / "straight")})

    class StopAtStep5:
        began = None

        def message(self, text): ...
        def started(self, step, total_steps):
            self.began = step

        def evaluated(self, step, metrics): ...
        def finished(self): ...
        def advanced(self, step, values):
            if step == 4:
                os.kill(os.getpid(), signal.SIGINT)

    broken = {**tree, "output": str(tmp_path / "broken")}
    with pytest.raises(InterruptedRun, match=r"SIGINT at step 5 of \d+.*--resume"):
        ftrt.train(broken, listener=StopAtStep5())
    listener = StopAtStep5()
    resumed = ftrt.train(broken, resume=True, listener=listener)
    assert listener.began == 5
    assert resumed.steps == straight.steps
    a = load_file(straight.run_dir / "adapter_model.safetensors")
    b = load_file(resumed.run_dir / "adapter_model.safetensors")
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-6, rtol=0)


def test_best_checkpoint_is_what_is_saved(recipe_tree):
    result = ftrt.train(recipe_tree)
    rows = [json.loads(x) for x in (result.run_dir / "metrics.jsonl").read_text().splitlines()]
    scores = {row["step"]: row["eval_accuracy"] for row in rows if "eval_accuracy" in row}
    best = int(result.best_checkpoint.rpartition("-")[2])
    assert scores[best] == max(scores.values())


def test_early_stopping_ends_a_run_that_no_longer_improves(recipe_tree):
    tree = {**recipe_tree, "early_stopping": {"patience": 1}}
    tree["training"] = {**tree["training"], "learning_rate": 0.0, "num_train_epochs": 8}
    result = ftrt.train(tree)
    per_epoch = -(-len(open(recipe_tree["data"]["train"]).readlines()) // 8)
    assert result.steps < per_epoch * 3


def test_same_recipe_gives_the_same_weights(recipe_tree, tmp_path):
    first = ftrt.train({**recipe_tree, "output": str(tmp_path / "a")})
    second = ftrt.train({**recipe_tree, "output": str(tmp_path / "b")})
    a = load_file(first.run_dir / "adapter_model.safetensors")
    b = load_file(second.run_dir / "adapter_model.safetensors")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_full_fine_tuning_on_int8_is_refused_before_anything_is_read(recipe_tree, tmp_path):
    tree = {**recipe_tree, "method": {"name": "full"}, "model": {"path": "/does/not/exist"}}
    with pytest.raises(UnsupportedError, match="method 'full'.*int8 cannot.*Remove `quantization`"):
        ftrt.train(tree)


def test_missing_sections_are_all_named(tmp_path):
    with pytest.raises(ConfigError) as caught:
        ftrt.train({"method": {"name": "lora"}})
    message = str(caught.value)
    assert all(
        f"recipe: {key}: must be given" in message
        for key in ("model", "head", "data.train", "output")
    )


def test_a_used_output_is_refused_and_overwrite_replaces_it(recipe_tree, tmp_path):
    ftrt.train(recipe_tree)
    with pytest.raises(CheckpointError, match="output must be empty or new.*--resume.*--overwrite"):
        ftrt.train(recipe_tree)
    ftrt.train(recipe_tree, overwrite=True)


def test_overwrite_never_deletes_a_folder_that_is_not_a_run(recipe_tree, tmp_path):
    precious = tmp_path / "run"
    precious.mkdir()
    (precious / "thesis.tex").write_text("years of work")
    (precious / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match=r"--overwrite takes run folders only.*thesis\.tex"):
        ftrt.train(recipe_tree, overwrite=True)
    assert (precious / "thesis.tex").read_text() == "years of work"


def test_wrong_base_is_refused(recipe_tree, tiny_bert_dir, tmp_path):
    from transformers import AutoTokenizer, BertConfig, BertModel

    result = ftrt.train(recipe_tree)
    other = tmp_path / "other"
    config = BertConfig.from_pretrained(tiny_bert_dir)
    BertModel(config).save_pretrained(other)
    AutoTokenizer.from_pretrained(tiny_bert_dir).save_pretrained(other)
    with pytest.raises(CheckpointError, match="must be the model it was trained on.*--base"):
        ftrt.load_run(result.run_dir, base=str(other))


def test_a_float_run_reads_in_int8_and_back_when_asked(recipe_tree):
    recipe_tree["quantization"] = None
    path = ftrt.train(recipe_tree).run_dir
    assert len(int8_layers(ftrt.load_run(path, quantized=True).model)) == 13
    assert not int8_layers(ftrt.load_run(path).model)
    with pytest.raises(ConfigError, match=r"^dtype: must be one of float32, .*; got 'int8'$"):
        ftrt.load_run(path, dtype="int8")
    assert ftrt.load_run(path, dtype="float16").model.dtype == torch.float16


@pytest.mark.skipif(
    ftrt.ops.implementation_report()["int8_linear"] == "reference",
    reason="the reference computes any dtype",
)
@pytest.mark.parametrize("compute", ["w8a16", "w8a8"])
def test_int8_between_float16_is_refused_before_a_step(recipe_tree, monkeypatch, compute):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    recipe_tree["quantization"]["compute"] = compute
    path = ftrt.train(recipe_tree).run_dir
    message = (
        "quantization: the floats of an int8 model on the CPU must be float32 or bfloat16; got"
        " float16. Write model: {dtype: bfloat16}, or leave quantization out"
    )
    with pytest.raises(UnsupportedError) as caught:
        ftrt.load_run(path, dtype="float16")
    assert str(caught.value) == message
    recipe_tree["model"]["dtype"] = "float16"
    recipe_tree["output"] += "-half"
    with pytest.raises(UnsupportedError) as caught:
        ftrt.train(recipe_tree)
    assert str(caught.value) == message
    assert not list(Path(recipe_tree["output"]).iterdir())


def test_shallower_student_keeps_the_named_blocks(recipe_tree):
    recipe_tree["model"]["layers"] = [1]
    result = ftrt.train(recipe_tree)
    run = ftrt.load_run(result.run_dir)
    assert run.model.config.num_hidden_layers == 1
    assert evaluate_run(result.run_dir)["accuracy"] == result.after["accuracy"]


def test_layers_out_of_range_are_refused(recipe_tree):
    recipe_tree["model"]["layers"] = [0, 7]
    with pytest.raises(ConfigError, match=r"must name blocks 0..1; got \[0, 7\]"):
        ftrt.train(recipe_tree)


def test_resume_never_writes_into_a_folder_that_is_not_a_run(recipe_tree, tmp_path):
    foreign = tmp_path / "run"
    foreign.mkdir()
    (foreign / "README.md").write_text("mine")
    with pytest.raises(CheckpointError, match="--resume takes run folders only"):
        ftrt.train(recipe_tree, resume=True)
    assert (foreign / "README.md").read_text() == "mine"


def test_overwrite_keeps_the_old_run_until_the_new_one_can_start(recipe_tree):
    ftrt.train(recipe_tree)
    broken = {**recipe_tree, "data": {**recipe_tree["data"], "train": "nowhere.jsonl"}}
    with pytest.raises(DataError):
        ftrt.train(broken, overwrite=True)
    assert evaluate_run(recipe_tree["output"])["rows"] == 20


def test_overwrite_refuses_to_delete_its_own_input(recipe_tree):
    full = {k: v for k, v in recipe_tree.items() if k != "quantization"}
    result = ftrt.train({**full, "method": {"name": "full"}})
    again = {**full, "model": {"path": str(result.run_dir)}}
    with pytest.raises(ConfigError, match="must not lie in the output folder"):
        ftrt.train(again, overwrite=True)


def test_resume_and_overwrite_together_are_refused(recipe_tree):
    with pytest.raises(UsageError, match="give one"):
        ftrt.train(recipe_tree, resume=True, overwrite=True)


def test_resuming_with_another_rank_is_a_checkpoint_error(recipe_tree):
    ftrt.train(recipe_tree)
    recipe_tree["method"]["rank"] = 8
    recipe_tree["training"]["num_train_epochs"] = 3
    with pytest.raises(CheckpointError, match="must be a whole checkpoint of this very recipe"):
        ftrt.train(recipe_tree, resume=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_merge_takes_every_dtype(recipe_tree, tmp_path, dtype):
    result = ftrt.train(recipe_tree)
    folder = merge_run(result.run_dir, tmp_path / "merged", dtype=dtype).folder
    weights = load_file(folder / "model.safetensors")
    assert {str(w.dtype).removeprefix("torch.") for w in weights.values()} == {dtype}


def test_evaluation_falls_back_to_validation_as_training_does(recipe_tree):
    recipe_tree["data"].pop("test")
    result = ftrt.train(recipe_tree)
    again = evaluate_run(result.run_dir)
    assert again["split"] == "validation"
    assert again["accuracy"] == result.after["accuracy"]
