"""Checkpoints that do not fit or are broken: an error that names file, tensor or layer."""

import json
import logging

import pytest
import torch
import transformers
from loading_subjects import changed, same, write_model

import ftrt
from ftrt.errors import CheckpointError, ConfigError, UnsupportedError
from ftrt.integrations import transformers as bridge
from ftrt.quantization.shards import Shards


def test_a_weight_that_is_not_finite_is_named_with_its_figures(tmp_path):
    path, auto_class = write_model(tmp_path, "language model")

    def spoil(weights):
        weights["model.layers.1.mlp.up_proj.weight"][3:5, 7] = float("nan")

    changed(tmp_path, spoil)
    with pytest.raises(ConfigError, match=r"layers\.1\.mlp\.up_proj: .*got 2 NaN .* of 1536"):
        ftrt.load_quantized(path, auto_class)


def test_blocks_of_rows_give_the_figures_of_the_whole_weight(tmp_path, monkeypatch):
    monkeypatch.setattr("ftrt.quantization.deferred.BLOCK_WEIGHTS", 64)
    test_a_weight_that_is_not_finite_is_named_with_its_figures(tmp_path)


def test_a_weight_of_another_shape_is_refused_with_both(tmp_path):
    path, auto_class = write_model(tmp_path, "language model")

    def shrink(weights):
        weights["model.layers.0.self_attn.q_proj.weight"] = torch.zeros(16, 32)
        weights["model.norm.weight"] = torch.zeros(3)

    changed(tmp_path, shrink)
    with pytest.raises(
        CheckpointError, match=r"q_proj\.weight is \(16, 32\) in the file, \(32, 32"
    ):
        ftrt.load_quantized(path, auto_class)
    with pytest.raises(CheckpointError, match=r"norm\.weight is \(3,\) in the file, \(32,\)"):
        ftrt.load_quantized(path, auto_class)


def test_a_classifier_of_another_size_is_refused(tmp_path):
    path, _ = write_model(tmp_path, "encoder")
    with bridge.quiet():
        model = transformers.AutoModelForSequenceClassification.from_pretrained(path, num_labels=4)
        model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"classifier\.weight is \(4, 32\) in the file, \(2"):
        ftrt.load_quantized(path, "AutoModelForSequenceClassification", options={"num_labels": 2})


def test_missing_and_surplus_tensors_are_logged_by_name(tmp_path, caplog):
    path, auto_class = write_model(tmp_path, "language model")

    def change(weights):
        del weights["model.layers.1.mlp.up_proj.weight"]
        weights["stray"] = torch.zeros(2)

    changed(tmp_path, change)
    expected = []
    for load in (
        lambda: ftrt.load_quantized(path, auto_class),
        lambda: bridge.load_model(path, auto_class),
    ):
        torch.manual_seed(5)
        with caplog.at_level(logging.DEBUG, logger="ftrt"):
            expected.append(load())
    ftrt.quantize_linears(expected[1])
    assert same(*expected), "a missing layer starts as from_pretrained starts it"
    assert "model.layers.1.mlp.up_proj.weight start untrained" in caplog.text
    assert "stray of the checkpoint have no place" in caplog.text


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    path, auto_class = write_model(tmp_path, "language model")
    changed(
        tmp_path,
        lambda weights: [weights.update({f"other.{n}": weights.pop(n)}) for n in [*weights]],
    )
    with pytest.raises(CheckpointError, match=r"none of their \d+ tensors has a place in it"):
        ftrt.load_quantized(path, auto_class)


def test_a_shard_that_is_cut_short_is_a_checkpoint_error(tmp_path):
    path, auto_class = write_model(tmp_path, "language model")
    file = sorted(tmp_path.glob("*.safetensors"))[1]
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=f"{file.name}: must be a whole safetensors file"):
        ftrt.load_quantized(path, auto_class)


def test_a_file_that_vanishes_while_the_model_is_read_is_named(tmp_path, monkeypatch):
    path, auto_class = write_model(tmp_path, "language model")

    def fail(self, name, scratch=None):
        raise CheckpointError(f"{self.file(name)}: tensor {name} must be readable; gone")

    monkeypatch.setattr(Shards, "read", fail)
    with pytest.raises(CheckpointError, match=r"tensor .* must be readable; gone"):
        ftrt.load_quantized(path, auto_class)


def test_pickled_weights_are_refused_for_int8(tmp_path):
    path, auto_class = write_model(tmp_path, "language model")
    for file in tmp_path.glob("*.safetensors*"):
        file.unlink()
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin, a pickle"):
        ftrt.load_quantized(path, auto_class)


def test_another_quantization_is_refused(tmp_path):
    path, auto_class = write_model(tmp_path, "language model")
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for load in (ftrt.load_quantized, bridge.load_model):
        with pytest.raises(UnsupportedError, match=r"float or LLM\.int8; .* 'gptq'"):
            load(path, auto_class)


def test_a_dtype_or_an_auto_class_that_is_none_is_not_the_checkpoints_fault(tmp_path):
    path, auto_class = write_model(tmp_path, "language model")
    with pytest.raises(ConfigError) as caught:
        ftrt.load_quantized(path, auto_class, dtype="int4")
    expected = "dtype: must be one of float32, bfloat16, float16; got 'int4'"
    assert str(caught.value) == expected
    with pytest.raises(ConfigError) as caught:
        ftrt.load_model(path, dtype="int4")
    assert str(caught.value) == expected
    with pytest.raises(ConfigError) as caught:
        ftrt.load_quantized(path, "AutoModelForCausaLM")
    assert str(caught.value) == (
        "auto_class: must be the name of a transformers Auto class, say AutoModelForCausalLM; got"
        " 'AutoModelForCausaLM'; did you mean 'AutoModelForCausalLM'?"
    )
