"""Third-party methods as PeftModels: PEFT's functions work on them, on float and int8 bases."""

import copy
import json
import warnings

import pytest
import torch
from peft import PeftModel
from peft_subjects import (
    BASES,
    IDS,
    LABELS,
    METHODS,
    bert,
    layers_of,
    logits,
    lora,
    shift,
    train,
    wrapped,
)

from ftrt.errors import UnsupportedError
from ftrt.integrations import peft as bridge
from ftrt.nn import Int8Linear


@METHODS
@BASES
def test_wrap_starts_as_the_base_and_trains_adapters_and_head_only(method, int8):
    model = wrapped(method, int8=int8)
    torch.testing.assert_close(logits(model), logits(bert(int8=int8)))
    assert isinstance(model, PeftModel)
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trainable
    assert all(
        ".ftrt_adapters." in name or ".lora_" in name or "classifier.modules_to_save" in name
        for name in trainable
    )
    assert not any(name.endswith("frozen") for name in trainable)
    assert len(layers_of(model)) == 13


@METHODS
@BASES
def test_every_trainable_parameter_gets_a_gradient(method, int8):
    model = wrapped(method, int8=int8, steps=2)
    model.train()
    model(input_ids=IDS, labels=LABELS).loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None, name


@METHODS
@BASES
def test_adapters_are_float32_on_a_bfloat16_base(method, int8):
    base = bert(int8=int8, dtype=torch.bfloat16)
    model = bridge.wrap(base, method(), new_modules=["classifier"], task_type="SEQ_CLS")
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "classifier" not in name:
            assert parameter.dtype == torch.float32, name
    assert logits(model).dtype == torch.bfloat16
    train(model, 2)
    assert torch.isfinite(logits(model)).all()


def test_the_saved_config_is_small_and_names_method_options_and_targets(tmp_path):
    wrapped(shift, steps=1, size=2).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "FTRT"
    assert config["method"] == "shift"
    assert config["options"] == {"targets": "all-linear", "size": 2}
    assert config["target_modules"] == ["dense", "key", "query", "value"]
    assert config["modules_to_save"] == ["classifier", "score"]
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_int8_leaves_no_trace_in_the_files_of_lora(tmp_path):
    wrapped(lora, steps=1).save_pretrained(tmp_path / "float")
    wrapped(lora, int8=True, steps=1).save_pretrained(tmp_path / "int8")
    trees = [
        json.loads((tmp_path / name / "adapter_config.json").read_text())
        for name in ("float", "int8")
    ]
    for tree in trees:
        tree["target_modules"].sort()
    assert trees[0] == trees[1]
    assert trees[0]["peft_type"] == "LORA"


def test_an_int8_lora_loads_with_plain_peft_on_the_dequantized_base(tmp_path):
    model = wrapped(lora, int8=True, steps=4)
    expected = logits(model)
    model.save_pretrained(tmp_path)
    base = bert(int8=True)
    for name, module in list(base.named_modules()):
        if isinstance(module, Int8Linear):
            parent, _, child = name.rpartition(".")
            setattr(base.get_submodule(parent), child, module.to_linear())
    plain = PeftModel.from_pretrained(base, tmp_path)
    assert type(layers_of_peft(plain)[0]).__module__.startswith("peft.")
    torch.testing.assert_close(logits(plain), expected, atol=1e-4, rtol=1e-4)


def layers_of_peft(model):
    from peft.tuners.lora import LoraLayer

    return [m for m in model.modules() if isinstance(m, LoraLayer)]


@METHODS
@BASES
def test_disable_adapter_gives_the_base_exactly(method, int8):
    model = wrapped(method, int8=int8, steps=3)
    adapted = logits(model)
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(bert(int8=int8)))
    assert torch.equal(logits(model), adapted)
    assert not torch.equal(adapted, logits(bert(int8=int8)))


def test_disabling_keeps_what_the_method_froze_frozen():
    model = wrapped(shift, steps=1)
    with model.disable_adapter():
        pass
    model.set_adapter("default")
    model.set_requires_grad("default", True)
    assert not any(p.requires_grad for n, p in model.named_parameters() if n.endswith(".frozen"))


@METHODS
@BASES
@pytest.mark.usefixtures("installed_shift")
def test_several_adapters_live_beside_each_other(method, int8, tmp_path):
    model = wrapped(method, int8=int8, steps=3)
    first = logits(model)
    config = bridge.config_for(model, method(), new_modules=["classifier"], task_type="SEQ_CLS")
    model.add_adapter("second", config)
    assert torch.equal(logits(model), first)
    model.set_adapter("second")
    torch.testing.assert_close(logits(model), logits(bert(int8=int8)))
    train(model, 3)
    second = logits(model)
    assert not torch.equal(first, second)
    model.set_adapter("default")
    assert torch.equal(logits(model), first)

    model.save_pretrained(tmp_path)
    again = bridge.load(bert(int8=int8), tmp_path)
    assert torch.equal(logits(again), first)
    model.delete_adapter("second")
    assert torch.equal(logits(model), first)
    assert list(model.peft_config) == ["default"]


def test_active_adapters_compose_to_the_sum_of_their_updates():
    base = bert()
    model = wrapped(shift, steps=3, targets=["query"])
    config = bridge.config_for(model, shift(targets=["query"]), new_modules=["classifier"])
    model.add_adapter("second", config)
    model.set_adapter("second")
    train(model, 3)
    layer = layers_of(model)[0]
    x = torch.randn(2, 16)
    layer.set_adapter(["default", "second"])
    linear = base.get_submodule("bert.encoder.layer.0.attention.self.query")
    with torch.no_grad():
        delta = layer.ftrt_adapters["default"].delta_weight()
        delta = delta + layer.ftrt_adapters["second"].delta_weight()
        expected = x.double() @ (linear.weight + delta).double().T + linear.bias.double()
        torch.testing.assert_close(layer(x).double(), expected, atol=1e-5, rtol=1e-5)


def test_adapters_may_target_different_layers():
    model = wrapped(shift, steps=2, targets=["query"])
    first = logits(model)
    config = bridge.config_for(
        model, shift(targets=["value"]), new_modules=["classifier"], task_type="SEQ_CLS"
    )
    model.add_adapter("second", config)
    assert torch.equal(logits(model), first)
    model.set_adapter("second")
    assert torch.equal(logits(model), logits(bert()))


def test_state_dict_keys_are_stable():
    keys = [key for key in wrapped(shift).state_dict() if ".0.attention.self.query" in key]
    prefix = "base_model.model.bert.encoder.layer.0.attention.self.query"
    assert keys == [
        f"{prefix}.base_layer.weight",
        f"{prefix}.base_layer.bias",
        f"{prefix}.ftrt_adapters.default.up",
        f"{prefix}.ftrt_adapters.default.frozen",
        f"{prefix}.ftrt_adapters.default.gain",
        f"{prefix}.ftrt_adapters.default.down.weight",
    ]


def test_several_adapters_in_one_batch_are_refused():
    model = wrapped(shift)
    with pytest.raises(UnsupportedError, match=r"adapter_names .* works with PEFT's LoRA only"):
        model(input_ids=IDS, adapter_names=["default"] * len(IDS))


def test_model_status_knows_the_method_type():
    model = wrapped(shift)
    status = model.get_model_status()
    assert status.peft_types == {"default": "FTRT"}
    assert status.num_adapter_layers == 14
    assert status.enabled is True


def test_a_wrapped_model_can_be_copied():
    model = wrapped(shift, steps=2)
    assert torch.equal(logits(copy.deepcopy(model)), logits(model))


def test_peft_can_combine_int8_adapters():
    model = wrapped(lora, int8=True, steps=2)
    expected = logits(model)
    layer = layers_of(model)[0]
    config = bridge.config_for(model, lora(), task_type=None)
    config.modules_to_save = None
    model.add_adapter("second", config)
    model.base_model.add_weighted_adapter(["default"], [1.0], "copy", combination_type="linear")
    a, b = layer.lora_A["copy"].weight, layer.lora_B["copy"].weight
    torch.testing.assert_close(
        b @ a * layer.scaling["copy"], layer.get_delta_weight("default"), atol=1e-6, rtol=1e-5
    )
    assert torch.equal(logits(model), expected)


def test_no_warning_is_raised_on_the_way():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # transformers' own, about an attribute that PEFT reads
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")
        wrapped(shift)
        wrapped(lora)
        wrapped(lora, int8=True)
