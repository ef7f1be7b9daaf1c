"""Merging, unmerging and unloading: outputs kept, int8 bases restored bit for bit."""

import copy

import pytest
import torch
from peft_subjects import (
    BASES,
    METHODS,
    bert,
    layers_of,
    logits,
    lora,
    shift,
    train,
    wrapped,
)
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from ftrt.errors import UnsupportedError, UsageError
from ftrt.integrations import peft as bridge
from ftrt.nn import Int8Linear, dense_weight


@METHODS
@BASES
def test_merging_keeps_the_outputs_and_unmerging_restores_int8_bit_for_bit(method, int8):
    model = wrapped(method, int8=int8, steps=5)
    expected, keys = logits(model), list(model.state_dict())
    kept = [copy.deepcopy(layer.base_layer) for layer in layers_of(model)]
    model.merge_adapter()
    assert all(type(layer.base_layer) is nn.Linear for layer in layers_of(model))
    torch.testing.assert_close(logits(model), expected, atol=2e-5, rtol=1e-4)
    model.unmerge_adapter()
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(logits(model), expected, atol=2e-5, rtol=1e-4)
    if int8 or method is shift:
        assert torch.equal(logits(model), expected)
        for layer, before in zip(layers_of(model), kept, strict=True):
            assert type(layer.base_layer) is type(before)
            for name, value in before.state_dict().items():
                assert torch.equal(layer.base_layer.state_dict()[name], value)


@METHODS
def test_merging_over_int8_adds_the_delta_to_the_dequantized_weight(method):
    model = wrapped(method, int8=True, steps=3)
    layer = layers_of(model)[0]
    dense = dense_weight(layer.base_layer).double()
    if method is shift:
        adapter = layer.ftrt_adapters["default"]
        delta = adapter.gain.double() * (adapter.up * adapter.frozen).double()
        delta = delta @ adapter.down.weight.double()
    else:
        a, b = layer.lora_A["default"].weight.double(), layer.lora_B["default"].weight.double()
        delta = 2.0 * b @ a
    layer.merge()
    torch.testing.assert_close(layer.base_layer.weight.double(), dense + delta, atol=1e-6, rtol=0)


@METHODS
@BASES
def test_merge_gives_a_plain_float_model(method, int8):
    model = wrapped(method, int8=int8, steps=5)
    expected = logits(model)
    merged = bridge.merge(model)
    assert type(merged) is type(bert())
    assert [type(m) for m in merged.modules()] == [type(m) for m in bert().modules()]
    assert list(merged.state_dict()) == list(bert().state_dict())
    torch.testing.assert_close(logits(merged), expected, atol=2e-5, rtol=1e-4)


def test_merge_dequantizes_layers_that_no_adapter_targets():
    model = bridge.wrap(
        bert(int8=True), shift(targets=["query"]), new_modules=["classifier"], task_type="SEQ_CLS"
    )
    merged = bridge.merge(model)
    assert not any(isinstance(module, Int8Linear) for module in merged.modules())


@METHODS
@BASES
def test_unload_gives_the_base_back(method, int8):
    model = wrapped(method, int8=int8, steps=3)
    base = model.unload()
    base.classifier = bert().classifier
    assert torch.equal(logits(base), logits(bert(int8=int8)))
    assert sum(isinstance(m, Int8Linear) for m in base.modules()) == (13 if int8 else 0)


def test_unload_while_merged_gives_the_base_back():
    model = wrapped(shift, int8=True, steps=3)
    model.merge_adapter()
    base = model.unload()
    assert sum(isinstance(m, Int8Linear) for m in base.modules()) == 13


def test_nan_in_an_adapter_is_refused_by_merge_and_leaves_the_base():
    from ftrt.errors import CheckpointError

    for method in (shift, lora):
        model = wrapped(method, int8=True, steps=1)
        parameter = next(p for p in model.parameters() if p.requires_grad)
        with torch.no_grad():
            parameter.fill_(float("nan"))
        with pytest.raises(CheckpointError, match="the merged weight must be finite"):
            bridge.merge(model)


def test_an_adapter_cannot_be_added_while_one_is_merged():
    model = wrapped(shift, steps=1)
    model.merge_adapter()
    config = bridge.config_for(model, shift(), new_modules=["classifier"], task_type="SEQ_CLS")
    with pytest.raises(UsageError, match=r"default is\. Call unmerge_adapter\(\) first"):
        model.add_adapter("second", config)
    assert list(model.peft_config) == ["default"]


def test_adapters_of_different_dtypes_live_together_and_merge():
    model = wrapped(shift, steps=3)
    first = logits(model)
    model.add_adapter("second", bridge.config_for(model, shift(), new_modules=["classifier"]))
    model.set_adapter("second")
    train(model, 2)
    for layer in layers_of(model):
        layer.ftrt_adapters["second"].to(torch.bfloat16)
    second = logits(model)
    assert torch.isfinite(second).all()
    model.merge_adapter()
    torch.testing.assert_close(logits(model), second, atol=2e-2, rtol=2e-2)
    model.unmerge_adapter()
    model.set_adapter("default")
    assert torch.equal(logits(model), first)


def test_merging_a_layer_that_shares_its_weight_is_refused():
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=20,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=12,
            tie_word_embeddings=True,
        )
    )
    for method in (shift, lora):
        adapted = bridge.wrap(copy.deepcopy(model), method(targets=["lm_head"]))
        with pytest.raises(UnsupportedError, match="lm_head shares its weight with another module"):
            bridge.merge(adapted)
