"""Models quantized as they are read are, bit for bit, models read whole and then quantized."""

import subprocess
import sys

import pytest
import torch
import transformers
from loading_subjects import KINDS, SIZES, same, write_model
from torch import nn

import ftrt
from ftrt import checkpoint
from ftrt.errors import ConfigError
from ftrt.integrations import transformers as bridge
from ftrt.quantization.deferred import deferred_source, has_deferred, materialize
from ftrt.quantization.int8_layers import int8_layers
from ftrt.recipe import ModelSection, QuantizationSection
from ftrt.runtime.base import quantize_base, read_base


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_quantized_as_it_is_read_is_the_quantized_model(tmp_path, kind, dtype):
    path, auto_class = write_model(tmp_path, kind)
    torch.manual_seed(3)
    expected = bridge.load_model(path, auto_class, dtype=dtype)
    names = ftrt.quantize_linears(expected)
    drawn = torch.rand(4)
    torch.manual_seed(3)
    model = ftrt.load_quantized(path, auto_class, dtype=dtype)
    assert torch.equal(torch.rand(4), drawn), "the random generator moved otherwise"
    assert list(int8_layers(model)) == names and not has_deferred(model)
    assert same(model, expected)
    assert checkpoint.base_fingerprint(model) == checkpoint.base_fingerprint(expected)


@pytest.mark.parametrize(
    "options",
    [
        {"skip": ["q_proj", "model.layers.1.mlp"]},
        {"granularity": "per_group", "group_size": 16},
        {"compute": "w8a8"},
    ],
)
def test_every_option_is_that_of_quantize_linears(tmp_path, options):
    path, auto_class = write_model(tmp_path, "language model")
    expected = bridge.load_model(path, auto_class)
    ftrt.quantize_linears(expected, **options)
    model = ftrt.load_quantized(path, auto_class, **options)
    assert same(model, expected)
    computes = {name: layer.compute for name, layer in int8_layers(expected).items()}
    assert {name: layer.compute for name, layer in int8_layers(model).items()} == computes


def test_the_model_computes_and_learns_no_weight(tmp_path):
    path, auto_class = write_model(tmp_path, "tied language model")
    model = ftrt.load_quantized(path, auto_class)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    tokens = torch.arange(12).reshape(2, 6)
    loss = model(tokens, labels=tokens).loss
    loss.backward()
    assert torch.isfinite(loss) and model.model.embed_tokens.weight.grad is not None


def test_only_what_can_become_int8_waits_on_disk(tmp_path):
    path, auto_class = write_model(tmp_path, "language model")
    model = bridge.load_deferred(path, auto_class)
    waiting = {n for n, m in model.named_modules() if deferred_source(m) is not None}
    assert len(waiting) == 14 and "lm_head" not in waiting
    assert all(model.get_submodule(name).weight.is_meta for name in waiting)
    materialize(model)
    with bridge.quiet():
        assert same(model, bridge.load_model(path, auto_class))


class Head:
    """As much of a head as reading needs."""

    auto_class = "AutoModelForSequenceClassification"

    def model_options(self):
        return {"num_labels": 3}


@pytest.mark.parametrize("layers", [None, [1], [1, 0]])
def test_a_recipes_base_is_the_same_quantized_as_it_is_read(tiny_bert_dir, layers):
    model_section = ModelSection(path=str(tiny_bert_dir), layers=layers)
    section = QuantizationSection(skip=["encoder.layer.0.output.dense"])
    torch.manual_seed(0)
    expected = read_base(model_section, Head())
    names = quantize_base(expected, section, ["classifier"])
    torch.manual_seed(0)
    model = read_base(model_section, Head(), quantization=section)
    fingerprint = checkpoint.base_fingerprint(model)
    assert quantize_base(model, section, ["classifier"]) == names
    assert same(model, expected)
    assert fingerprint == checkpoint.base_fingerprint(expected)


def test_blocks_that_are_left_out_are_never_read(tiny_bert_dir, tmp_path, monkeypatch):
    from ftrt.quantization.shards import Shards

    read = []
    whole = Shards.read_rows
    monkeypatch.setattr(
        Shards, "read_rows", lambda self, name, *rest: read.append(name) or whole(self, name, *rest)
    )
    section = QuantizationSection()
    model = read_base(
        ModelSection(path=str(tiny_bert_dir), layers=[1]), Head(), quantization=section
    )
    quantize_base(model, section, ["classifier"])
    assert len(read) == 7 and not any(".layer.0." in name for name in read)


def test_a_misspelt_skip_is_refused(tiny_bert_dir):
    with pytest.raises(ConfigError, match="'qeury'; did you mean 'query'"):
        ftrt.load_quantized(str(tiny_bert_dir), "AutoModel", skip=["qeury"])


def test_an_int8_model_keeps_its_granularity(tiny_bert_dir):
    model = ftrt.load_quantized(str(tiny_bert_dir), "AutoModel")
    again = quantize_base(model, QuantizationSection(), [])
    assert again == list(int8_layers(model))
    section = QuantizationSection(granularity="per_group", group_size=8)
    with pytest.raises(ConfigError, match=r"query has 1 scales a row, and PerGroup.* for 2"):
        quantize_base(model, section, [])
    with pytest.raises(ConfigError, match=r"skip: .*pooler\.dense is int8 already"):
        quantize_base(model, QuantizationSection(skip=["pooler"]), [])
    with pytest.raises(ConfigError, match=r"trains must be float; pooler\.dense is int8"):
        quantize_base(model, QuantizationSection(), ["pooler"])


@pytest.mark.parametrize("rows", [1, 2, 5, 48])
def test_blocks_of_rows_change_nothing(tmp_path, monkeypatch, rows):
    path, auto_class = write_model(tmp_path, "language model")
    expected = bridge.load_model(path, auto_class)
    ftrt.quantize_linears(expected)
    monkeypatch.setattr("ftrt.quantization.deferred.BLOCK_WEIGHTS", 32 * rows)
    assert same(ftrt.load_quantized(path, auto_class), expected)


MEASURE = """
import sys
import ftrt
from ftrt.integrations import transformers as bridge

def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key)) * 1024

ftrt.load_quantized(sys.argv[1], "AutoModelForCausalLM")
start = status("VmRSS")
if sys.argv[3] == "whole":
    model = bridge.load_model(sys.argv[2], "AutoModelForCausalLM", dtype="bfloat16")
    ftrt.quantize_linears(model)
else:
    model = ftrt.load_quantized(sys.argv[2], "AutoModelForCausalLM", dtype="bfloat16")
tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}.values()
print(status("VmHWM") - start, sum(t.nbytes for t in tensors))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_peak_memory_is_the_int8_model_and_one_tensor(tmp_path):
    small, _ = write_model(tmp_path / "small", "tied language model")
    with torch.random.fork_rng(), bridge.quiet():
        config = transformers.Qwen2Config(
            **{**SIZES, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 5},
            tie_word_embeddings=True,
        )
        model = transformers.Qwen2ForCausalLM(config).bfloat16()
        model.save_pretrained(tmp_path / "large", max_shard_size="60MB")
    largest = max(p.nbytes for p in model.parameters())
    floats = sum(p.nbytes for p in model.parameters())
    del model

    def measure(how):
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, small, str(tmp_path / "large"), how],
            capture_output=True,
            text=True,
            check=True,
        )
        return map(int, done.stdout.split())

    peak, size = measure("one by one")
    slack = 6 << 20  # holes in the heap, and what imports lazily
    assert size < 0.55 * floats
    assert peak <= size + largest + slack, f"{peak / size:.2f} of the int8 model's size"
    assert next(measure("whole")) > floats


@pytest.mark.asset
@pytest.mark.parametrize(
    ("asset", "auto_class"),
    [
        ("all-MiniLM-L6-v2", "AutoModelForSequenceClassification"),
        ("smollm2-135m-instruct", "AutoModelForCausalLM"),
    ],
)
def test_a_real_model_quantized_as_it_is_read_is_the_quantized_model(asset, auto_class):
    from ftrt.errors import DataError

    torch.manual_seed(0)
    try:
        expected = bridge.load_model(f"asset:{asset}", auto_class, dtype="bfloat16")
    except DataError as error:
        pytest.skip(str(error))
    ftrt.quantize_linears(expected)
    torch.manual_seed(0)
    model = ftrt.load_quantized(f"asset:{asset}", auto_class, dtype="bfloat16")
    assert same(model, expected)
    assert not any(isinstance(m, nn.Linear) and m.weight.is_meta for m in model.modules())
