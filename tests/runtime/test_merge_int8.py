"""`ftrt merge --dtype int8`: what it writes, what it measures, when it refuses."""

import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import ftrt
from ftrt.cli.run_layers import summary_of
from ftrt.errors import CheckpointError, ConfigError, UnsupportedError, UsageError
from ftrt.integrations import transformers as bridge
from ftrt.quantization.int8_layers import int8_layers
from ftrt.quantization.retention import LayerRetention
from ftrt.runtime import evaluate_run, load_run, merge_run
from ftrt.runtime.merge import Gain, MergeResult, _percent


@pytest.fixture(scope="module")
def learnt(tiny_bert_dir, many_reviews, tmp_path_factory):
    """A run on an int8 base whose adapter has learnt something."""
    return ftrt.train(
        {
            "model": {"path": str(tiny_bert_dir)},
            "quantization": {"dtype": "int8", "skip": ["encoder.layer.1.output.dense"]},
            "method": {"name": "lora", "rank": 8, "alpha": 8},
            "head": {"name": "sequence_classification"},
            "data": {
                "train": str(many_reviews),
                "validation": "10%",
                "test": 60,
                "max_length": 16,
            },
            "training": {
                "learning_rate": 0.01,
                "num_train_epochs": 8,
                "per_device_train_batch_size": 8,
                "use_cpu": True,
            },
            "output": str(tmp_path_factory.mktemp("learnt") / "run"),
        }
    ).run_dir


@pytest.fixture(scope="module")
def merged(learnt, tmp_path_factory):
    return merge_run(learnt, tmp_path_factory.mktemp("merged") / "int8", dtype="int8", force=True)


def float_merge(run):
    """Every weight of the run merged in float64 onto the original base."""
    from ftrt.integrations import peft as peft_bridge

    model = load_run(run, quantized=False).model
    return peft_bridge.merge(model).state_dict()


def test_every_layer_is_the_merged_weight_rounded_once(learnt, merged):
    expected = float_merge(learnt)
    stored = load_file(merged.folder / "model.safetensors")
    names = [n.removesuffix(".SCB") for n in stored if n.endswith(".SCB")]
    assert len(names) == 12 and "bert.encoder.layer.1.output.dense" not in names
    for name in names:
        weight, absmax = expected[f"{name}.weight"], stored[f"{name}.SCB"]
        assert absmax.dtype == torch.float32 and stored[f"{name}.weight"].dtype == torch.int8
        torch.testing.assert_close(absmax, weight.abs().amax(1), rtol=1e-6, atol=0)
        error = (stored[f"{name}.weight"] * absmax[:, None] / 127 - weight).abs()
        assert (error <= 0.5001 * absmax[:, None] / 127).all(), name
        torch.testing.assert_close(stored[f"{name}.bias"], expected[f"{name}.bias"])
    # adapted layers that stay in float, embeddings and the trained classifier are whole
    for name in set(expected) - {f"{n}.{part}" for n in names for part in ("weight", "bias")}:
        torch.testing.assert_close(stored[name], expected[name], rtol=1e-6, atol=1e-7)


def test_the_folder_is_a_model_a_run_and_says_how_it_was_made(learnt, merged):
    assert {file.name for file in merged.folder.iterdir()} >= {
        "config.json", "model.safetensors", "tokenizer.json", "ftrt.json", "README.md",
    }  # fmt: skip
    assert not [file for file in merged.folder.iterdir() if file.name.startswith(".")]
    config = json.loads((merged.folder / "config.json").read_text())
    assert config["quantization_config"]["load_in_8bit"] is True
    assert set(config["quantization_config"]["llm_int8_skip_modules"]) == {
        "bert.encoder.layer.1.output.dense", "classifier",
    }  # fmt: skip
    model = bridge.load_model(str(merged.folder), "AutoModelForSequenceClassification")
    assert len(int8_layers(model)) == 12
    info = json.loads((merged.folder / "ftrt.json").read_text())
    assert info["kind"] == "model" and len(info["quantized_layers"]) == 12
    assert info["merge"] == json.loads(json.dumps(merged.to_json()))
    assert [layer["name"] for layer in info["layers"]] == info["quantized_layers"]
    assert {(row["compute"], row["adapter"]) for row in info["layers"]} == {("w8a16", "none")}
    assert summary_of(merged.folder)["summary"].startswith("12 layers in int8, 12 compute w8a16")
    run = load_run(merged.folder)
    assert len(int8_layers(run.model)) == 12
    # the folder measures what merging reported
    assert evaluate_run(merged.folder)["accuracy"] == merged.gain.merged
    assert evaluate_run(learnt)["accuracy"] == merged.gain.adapter
    assert merged.gain.rows == 60 and merged.gain.split == "test"


def test_gain_is_measured_with_the_adapter_off_on_and_merged(learnt, merged):
    gain = merged.gain
    assert gain.metric == "accuracy" and gain.adapter > gain.base
    assert merged.decided_by == "gain" and merged.retained == gain.share
    assert gain.share == pytest.approx((gain.merged - gain.base) / (gain.adapter - gain.base))
    # off: the trained classifier on the base's own features
    run = load_run(learnt)
    for layer in run.model.modules():
        for factor in getattr(layer, "lora_B", {}).values():
            factor.weight.data.zero_()
    from ftrt.runtime.load import held_out, measure

    assert measure(run, run.model, held_out(run)[0])["accuracy"] == gain.base


def test_a_recipe_may_start_from_the_merged_model(merged, recipe_tree):
    recipe_tree["model"]["path"] = str(merged.folder)
    recipe_tree["quantization"] = None
    result = ftrt.train(recipe_tree)
    info = json.loads((result.run_dir / "ftrt.json").read_text())
    assert len(info["quantized_layers"]) == 12
    assert evaluate_run(result.run_dir)["accuracy"] == result.after["accuracy"]


def test_the_merged_model_has_no_base_and_reads_in_float(merged):
    with pytest.raises(UsageError, match=r"holds a full model, which has no base; got base 'x'"):
        load_run(merged.folder, base="x")
    whole = load_run(merged.folder, quantized=False).model
    assert not int8_layers(whole)
    weight = whole.bert.pooler.dense.weight
    assert torch.equal(weight, load_run(merged.folder).model.bert.pooler.dense.dequantize())


def test_merging_the_merged_model_is_refused(merged, tmp_path):
    with pytest.raises(UsageError, match="holds a full model already"):
        merge_run(merged.folder, tmp_path / "again", dtype="int8")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    "quantization", [None, {"granularity": "per_group", "group_size": 8}, {"compute": "w8a8"}]
)
def test_any_base_merges_into_the_same_int8_weights(recipe_tree, tmp_path, quantization):
    """Per channel from the float weights, however the base was held while it was trained."""
    recipe_tree["quantization"] = quantization
    recipe_tree["training"]["max_steps"] = 6
    run = ftrt.train(recipe_tree).run_dir
    result = merge_run(run, tmp_path / "int8", dtype="int8", force=True)
    expected = float_merge(run)
    model = bridge.load_model(str(result.folder), "AutoModelForSequenceClassification")
    layers = int8_layers(model)
    assert len(layers) == 13 and all(
        layer.group_size == layer.in_features for layer in layers.values()
    )
    for name, layer in layers.items():
        step = layer.scale
        assert ((layer.dequantize() - expected[f"{name}.weight"]).abs() <= 0.5001 * step).all()


@pytest.mark.parametrize(
    "method",
    [{"name": "lora_xs", "rank": 4}, {"name": "lora", "rank": 2, "targets": ["query", "value"]}],
)
def test_any_mergeable_method_merges(recipe_tree, tmp_path, method):
    recipe_tree["method"] = method
    run = ftrt.train(recipe_tree).run_dir
    result = merge_run(run, tmp_path / "int8", dtype="int8", force=True)
    adapted = 13 if method["name"] == "lora_xs" else 4
    assert len(result.layers) == adapted
    batch = dict(load_run(run).tokenizer(["good warm film", "dull plot cast"], return_tensors="pt"))
    with torch.no_grad():
        expected = load_run(run, quantized=False).model(**batch).logits
        found = load_run(result.folder).model(**batch).logits
    assert (found - expected).norm() / expected.norm() < 0.1


def scaled(run, folder, factor):
    """The run with an adapter whose factors are so many times as large."""
    import shutil

    from safetensors.torch import save_file

    shutil.copytree(run, folder)
    file = folder / "adapter_model.safetensors"
    weights = load_file(file)
    weights = {k: v * factor if "lora_" in k else v for k, v in weights.items()}
    save_file(weights, file, metadata={"format": "pt"})
    return folder


def test_a_tiny_adapter_is_refused_by_its_delta_and_forced(learnt, tmp_path):
    run = scaled(learnt, tmp_path / "tiny", 1e-3)
    out = tmp_path / "int8"
    with pytest.raises(UnsupportedError) as refused:
        merge_run(run, out, dtype="int8", evaluate=False)
    message = str(refused.value)
    assert "must keep at least 90% of the adapter's weights; it keeps" in message
    assert "rounded away" in message and "--force" in message and "--dtype bfloat16" in message
    assert not out.exists(), "nothing is written"
    result = merge_run(run, out, dtype="int8", evaluate=False, force=True)
    assert result.total.retained < 0.5 and result.decided_by == "delta" and result.gain is None
    assert json.loads((out / "ftrt.json").read_text())["merge"]["retained"] < 0.5


def test_a_refusal_by_gain_has_the_three_figures(learnt, tmp_path, monkeypatch):
    figures = iter([0.9, 0.5, 0.7])
    monkeypatch.setattr(
        "ftrt.runtime.merge.measure", lambda *args: {"accuracy": next(figures), "loss": 1.0}
    )
    (tmp_path / "int8").mkdir()
    with pytest.raises(
        UnsupportedError,
        match=r"at least 90% of what the adapter gained on the 60 test rows; it keeps 50%"
        r" \(accuracy: 0\.5000 without the adapter, 0\.9000 with it, 0\.7000 merged\)",
    ):
        merge_run(learnt, tmp_path / "int8", dtype="int8")
    assert list((tmp_path / "int8").iterdir()) == [], "the folder that was there is as it was"


def test_an_adapter_that_gains_nothing_is_judged_by_its_delta(learnt, tmp_path, monkeypatch):
    monkeypatch.setattr("ftrt.runtime.merge.measure", lambda *args: {"accuracy": 0.5})
    result = merge_run(learnt, tmp_path / "int8", dtype="int8", min_retained=0.0)
    assert result.gain.share is None and result.decided_by == "delta"
    assert result.retained == result.total.retained


@pytest.mark.parametrize(
    ("base", "adapter", "merged", "greater", "share"),
    [
        (0.5, 0.9, 0.8, True, 0.75),
        (0.5, 0.9, 0.95, True, 1.125),
        (0.5, 0.9, 0.4, True, -0.25),
        (2.0, 1.0, 1.25, False, 0.75),
        (2.0, 1.0, math.nan, False, -math.inf),
        (0.5, 0.5, 0.5, True, None),
        (0.9, 0.5, 0.5, True, None),
        (1.0, 2.0, 1.0, False, None),
        (math.nan, 0.5, 0.5, True, None),
    ],
)
def test_the_share_of_the_gain(base, adapter, merged, greater, share):
    found = Gain("m", "test", 9, base, adapter, merged, greater).share
    assert found == (None if share is None else pytest.approx(share))


def test_without_layers_everything_is_kept(tmp_path):
    assert MergeResult(tmp_path, "int8").retained == 1.0
    lost = LayerRetention("a", delta=1, aligned=0, error=1, seen=1, seen_error=1)
    assert MergeResult(tmp_path, "int8", (lost,)).retained == 0.0


def test_wrong_values_are_refused_before_anything_is_read(learnt, tmp_path):
    with pytest.raises(ConfigError, match="float32, bfloat16, float16 or int8; got 'int4'"):
        merge_run(learnt, tmp_path / "out", dtype="int4")
    for share in (1.5, -0.1, math.nan):
        with pytest.raises(UsageError, match=rf"--min-retained must be within 0\.\.1; got {share}"):
            merge_run(learnt, tmp_path / "out", dtype="int8", min_retained=share)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", [{"min_retained": 0.9}, {"force": True}, {"evaluate": False}])
def test_what_guards_int8_is_refused_with_another_dtype(learnt, tmp_path, option):
    with pytest.raises(UsageError) as caught:
        merge_run(learnt, tmp_path / "out", dtype="bfloat16", **option)
    assert str(caught.value) == (
        "merge: --min-retained, --force and --no-eval must come with --dtype int8, where a part of"
        " the adapter may be lost; got bfloat16. Leave them out, or merge into int8"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kept", "bound", "said"),
    [
        (0.5, 0.9, "50%"),
        (0.999990612, 1.0, "99.999%"),
        (0.994, 0.9949, "99.4%"),
        (-math.inf, 0.9, "-inf%"),
    ],
)
def test_a_refusal_never_says_that_the_bound_is_met(kept, bound, said):
    assert _percent(kept, bound) == said


def test_a_diverged_adapter_names_the_layer(learnt, tmp_path):
    run = scaled(learnt, tmp_path / "huge", 1e20)
    with pytest.raises(CheckpointError, match=r"merge of bert\.encoder\.layer\.0\."):
        merge_run(run, tmp_path / "int8", dtype="int8", evaluate=False)
    assert not (tmp_path / "int8").exists()


@pytest.mark.parametrize("dtype", ["int8", "float32"])
@pytest.mark.parametrize("fails", ["model", "tokenizer"])
def test_a_disk_that_fills_up_leaves_nothing(learnt, tmp_path, monkeypatch, dtype, fails):
    def full(self, folder, *args, **kwargs):
        (tmp_path / "int8" / "marker").parent.mkdir(exist_ok=True)
        raise OSError(28, "No space left on device")

    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    if fails == "tokenizer":
        monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", full)
    elif dtype == "int8":
        monkeypatch.setattr(
            "ftrt.integrations.transformers_saving.save_file", lambda *a, **k: full(None, None)
        )
    else:
        monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
    options = {"force": True, "evaluate": False} if dtype == "int8" else {}
    with pytest.raises(CheckpointError, match=r"written whole; the disk is full.*Nothing was"):
        merge_run(learnt, tmp_path / "int8", dtype=dtype, **options)
    assert not (tmp_path / "int8").exists()


def test_an_interruption_leaves_nothing(learnt, tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("ftrt.runtime.merge.save_llm_int8", interrupt)
    with pytest.raises(KeyboardInterrupt):
        merge_run(learnt, tmp_path / "int8", dtype="int8", force=True, evaluate=False)
    assert not (tmp_path / "int8").exists()


def test_merging_twice_into_one_folder_is_refused(learnt, merged):
    before = {file: file.stat().st_mtime_ns for file in merged.folder.iterdir()}
    with pytest.raises(CheckpointError, match="must be empty or new"):
        merge_run(learnt, merged.folder, dtype="int8")
    assert {file: file.stat().st_mtime_ns for file in merged.folder.iterdir()} == before


def test_the_command_reports_and_refuses(learnt, tmp_path, capsys):
    from ftrt.cli import run as cli

    out = str(tmp_path / "int8")
    code = cli(["merge", str(learnt), out, "--dtype", "int8", "--force", "--json"], as_json=True)
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert code == 0 and result["output"] == out and result["dtype"] == "int8"
    assert result["gain"]["metric"] == "accuracy" and len(result["layers"]) == 12
    assert set(result["delta"]) == {"retained", "projection", "residual", "delta_norm"}
    assert cli(["merge", str(learnt), f"{out}2", "--dtype", "int8", "--force", "--no-eval"]) == 0
    shown = capsys.readouterr().out
    assert "all adapted layers" in shown and "merged model in" in shown and "accuracy" not in shown
    tiny = scaled(learnt, tmp_path / "tiny", 1e-3)
    assert cli(["merge", str(tiny), f"{out}3", "--dtype", "int8", "--no-eval"]) == 3
    assert "Nothing was written" in capsys.readouterr().err
    assert not (tmp_path / "int83").exists()
    assert cli(["merge", str(learnt), f"{out}4"]) == 0
    with safe_open(f"{out}4/model.safetensors", framework="pt") as file:
        assert not [name for name in file.keys() if name.endswith(".SCB")]
