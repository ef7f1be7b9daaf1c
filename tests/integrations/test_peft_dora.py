"""DoRA through the fused op, on float and on int8 bases, against PEFT's own layers."""

import copy

import peft
import pytest
import torch
from peft.tuners.lora import Linear as LoraLinear
from peft_subjects import IDS, LABELS, bert, logits, lora, train
from torch import nn

import ftrt
import ftrt.integrations.peft_dora as dora_module
from ftrt.errors import UnsupportedError
from ftrt.integrations import peft as bridge
from ftrt.integrations.peft_dora import column_scale
from ftrt.integrations.peft_lora import FusedLoraLinear, Int8LoraLinear
from ftrt.quantization import PerGroup, dequantize_linears, quantize_linears


def on_float(*, dropout=0.0, base=None, rslora=False):
    """PEFT's own DoRA model that knows nothing of ftrt, trained a little."""
    torch.manual_seed(5)
    config = peft.LoraConfig(
        r=4,
        lora_alpha=8,
        task_type="SEQ_CLS",
        target_modules=["query", "value", "dense"],
        use_dora=True,
        use_rslora=rslora,
        lora_dropout=dropout,
    )
    return train(peft.get_peft_model(base if base is not None else bert(), config), 3)


def on_int8(tmp_path, reference, granularity="per_channel", group_size=None):
    """The adapters of `reference` on an int8 base whose weight `reference` has in float."""
    reference.save_pretrained(tmp_path)
    base = bert()
    quantize_linears(base, granularity, ["classifier"], group_size=group_size)
    return bridge.load(base, tmp_path, is_trainable=True)


def rounded_base():
    base = bert(int8=True)
    dequantize_linears(base)
    return base


def gradients(model):
    model.train()
    model.zero_grad()
    torch.manual_seed(3)
    model(input_ids=IDS, labels=LABELS).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def layers_of(model):
    return [m for m in model.modules() if isinstance(m, FusedLoraLinear)]


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_fused_dora_gives_pefts_outputs_and_gradients(dropout, rslora, monkeypatch):
    model = on_float(dropout=dropout, rslora=rslora)
    fused = bridge.fuse(copy.deepcopy(model))
    # PEFT's own forward must not be what runs
    monkeypatch.setattr(dora_module.DoraLinearLayer, "forward", None)
    got, got_logits = gradients(fused), logits(fused)
    monkeypatch.undo()
    want, want_logits = gradients(model), logits(model)
    torch.testing.assert_close(got_logits, want_logits, atol=1e-5, rtol=1e-4)
    assert got.keys() == want.keys() and any("magnitude" in name for name in got)
    for name, grad in want.items():
        torch.testing.assert_close(got[name], grad, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_dora_on_int8_is_pefts_dora_on_the_dequantized_weight(tmp_path, dropout):
    reference = on_float(base=rounded_base(), dropout=dropout)
    model = on_int8(tmp_path, reference)
    torch.testing.assert_close(logits(model), logits(reference), atol=1e-5, rtol=1e-4)
    got, want = gradients(model), gradients(reference)
    assert got.keys() == want.keys() and any("magnitude" in name for name in got)
    for name, grad in want.items():
        torch.testing.assert_close(got[name], grad, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("group_size", [None, 4])
def test_the_norm_is_that_of_the_sum_which_is_never_formed(group_size):
    base = bert()
    granularity = PerGroup(group_size) if group_size else "per_channel"
    quantize_linears(base, granularity, ["classifier"])
    model = bridge.wrap(base, lora(dora=True), task_type="SEQ_CLS")
    for layer in layers_of(model):
        assert torch.equal(column_scale(layer, "default"), torch.ones(layer.out_features))
        nn.init.normal_(layer.lora_B["default"].weight)
        weight = layer.base_layer.dequantize().double() + layer.get_delta_weight("default").double()
        magnitude = layer.lora_magnitude_vector["default"].weight.detach().double()
        want = magnitude / torch.linalg.vector_norm(weight, dim=1)
        torch.testing.assert_close(column_scale(layer, "default").double(), want, atol=0, rtol=1e-5)
        # frozen in the formula: only the magnitude learns
        column_scale(layer, "default").sum().backward()
        assert layer.lora_B["default"].weight.grad is None


def test_the_norm_is_added_up_a_few_rows_at_a_time_with_the_same_result(monkeypatch):
    layer = layers_of(bridge.wrap(bert(int8=True), lora(dora=True), task_type="SEQ_CLS"))[0]
    whole = layer.lora_magnitude_vector["default"].squared_norm
    monkeypatch.setattr(dora_module, "_CHUNK", 1)
    torch.testing.assert_close(dora_module._squared_norm(layer.base_layer), whole)


def test_dora_on_int8_saves_and_loads_as_peft_does(tmp_path):
    model = bridge.wrap(
        bert(int8=True), lora(dora=True), new_modules=["classifier"], task_type="SEQ_CLS"
    )
    train(model, 3)
    expected = logits(model)
    model.save_pretrained(tmp_path)
    again = bridge.load(bert(int8=True), tmp_path)
    assert torch.equal(logits(again), expected)
    plain = peft.PeftModel.from_pretrained(rounded_base(), tmp_path).eval()
    assert {type(m) for m in plain.modules() if isinstance(m, LoraLinear)} == {LoraLinear}
    torch.testing.assert_close(logits(plain), expected, atol=1e-5, rtol=1e-4)


def test_merging_dora_on_int8_keeps_the_outputs_and_unmerging_restores_them(tmp_path):
    model = on_int8(tmp_path, on_float(base=rounded_base()))
    expected, kept = logits(model), [m.base_layer for m in layers_of(model)]
    model.merge_adapter()
    torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=1e-4)
    model.unmerge_adapter()
    assert [m.base_layer for m in layers_of(model)] == kept
    assert torch.equal(logits(model), expected)
    torch.testing.assert_close(logits(bridge.merge(model)), expected, atol=1e-4, rtol=1e-4)


def test_two_active_dora_adapters_on_int8_are_what_peft_makes_of_them(tmp_path):
    reference = on_float(base=rounded_base())
    model = on_int8(tmp_path, reference)
    for each in (reference, model):
        config = copy.deepcopy(each.peft_config["default"])
        each.add_adapter("second", config)
    weights = {n: p for n, p in reference.named_parameters() if ".second" in n}
    for name, parameter in model.named_parameters():
        if ".second" in name:
            with torch.no_grad():
                parameter.copy_(weights[name].normal_(std=0.1))
    for each in (reference, model):
        for layer in each.modules():
            if isinstance(layer, LoraLinear):
                layer.set_adapter(["default", "second"])
    torch.testing.assert_close(logits(model), logits(reference), atol=1e-4, rtol=1e-4)
    model.merge_adapter(["default", "second"])
    reference.merge_adapter(["default", "second"])
    torch.testing.assert_close(logits(model), logits(reference), atol=1e-4, rtol=1e-4)


def test_dora_on_int8_runs_fused_and_keeps_no_second_weight():
    model = bridge.wrap(
        bert(int8=True), lora(dora=True), new_modules=["classifier"], task_type="SEQ_CLS"
    )
    adapted = [row for row in ftrt.layer_report(model) if row.kind == "int8"]
    assert {(row.adapter, row.adapter_reason) for row in adapted} == {("fused", "")}
    layer = next(m for m in model.modules() if isinstance(m, Int8LoraLinear))
    held = layer.lora_magnitude_vector["default"].squared_norm
    assert held.shape == (layer.out_features,)
    assert "squared_norm" not in "".join(model.state_dict())


def test_the_holder_of_the_magnitude_is_not_run_alone():
    model = bridge.wrap(bert(int8=True), lora(dora=True), task_type="SEQ_CLS")
    with pytest.raises(UnsupportedError, match="DoRA on int8: the layer must be run as a whole"):
        layers_of(model)[0].lora_magnitude_vector["default"](torch.ones(1, 16))
