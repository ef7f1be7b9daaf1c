"""int8 layers under PEFT's own methods: outputs, files, merging, and everything put back."""

import peft
import pytest
import torch
from peft_subjects import ShiftConfig, bert
from torch import nn

import ftrt
from ftrt.api import PeftMethod
from ftrt.errors import UnsupportedError
from ftrt.integrations import peft as bridge
from ftrt.integrations.peft_int8 import Int8AsLinear
from ftrt.nn import Int8Linear, is_linear


class Vera(PeftMethod):
    name = "vera"
    source = "this test"
    Config = ShiftConfig

    def peft_config(self, model):
        return peft.VeraConfig(r=4, target_modules=["query", "value"])


class Oft(Vera):
    name = "oft"

    def peft_config(self, model):
        return peft.OFTConfig(oft_block_size=4, target_modules=["query"])


@pytest.fixture
def batch():
    return torch.randint(0, 20, (3, 5), generator=torch.Generator().manual_seed(0))


def outputs(model, batch):
    with torch.no_grad():
        found = model(batch)
    return found.logits


def trained(model, batch):
    """Every trained tensor moved at random, so that the adapter has an effect."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.mark.parametrize("method", [Vera, Oft])
def test_outputs_are_those_over_the_dequantized_base(method, batch):
    int8, dense = bert(int8=True), bert(int8=True)
    ftrt.dequantize_linears(dense)
    over_int8 = trained(bridge.wrap(int8, method(ShiftConfig())), batch)
    over_float = trained(bridge.wrap(dense, method(ShiftConfig())), batch)

    torch.testing.assert_close(outputs(over_int8, batch), outputs(over_float, batch))
    merged = bridge.merge(over_int8)
    assert not any(isinstance(module, Int8Linear) for module in merged.modules())
    torch.testing.assert_close(
        outputs(merged, batch), outputs(over_float, batch), atol=1e-5, rtol=1e-4
    )


def test_only_targets_pass_for_nn_linear_and_their_weight_is_dequantized():
    model = bridge.wrap(bert(int8=True), Vera(ShiftConfig()))
    shown = [name for name, m in model.named_modules() if isinstance(m, Int8AsLinear)]

    assert shown and all(".query." in name or ".value." in name for name in shown)
    layer = model.get_submodule(shown[0])
    assert isinstance(layer, nn.Linear) and is_linear(layer)
    assert torch.equal(layer.weight, layer.dequantize())
    assert not layer.weight.requires_grad


def test_merging_in_place_is_refused_instead_of_lost(batch):
    model = trained(bridge.wrap(bert(int8=True), Vera(ShiftConfig())), batch)
    before = outputs(model, batch)

    with pytest.raises(UnsupportedError, match="cannot be merged into an int8 layer in place"):
        model.merge_adapter()
    assert torch.equal(outputs(model, batch), before)


def test_a_weight_that_is_not_its_own_cannot_be_written():
    model = bridge.wrap(bert(int8=True), Vera(ShiftConfig()))
    layer = next(m for m in model.modules() if isinstance(m, Int8AsLinear))

    layer.weight = layer.weight.clone()
    with pytest.raises(UnsupportedError, match="its weight cannot be written to"):
        layer.weight = layer.weight + 1


def test_files_are_those_of_a_float_base_and_are_read_back_on_int8(batch, tmp_path):
    model = trained(bridge.wrap(bert(int8=True), Vera(ShiftConfig())), batch)
    model.save_pretrained(tmp_path)

    again = ftrt.load(bert(int8=True), tmp_path)
    assert torch.equal(outputs(again, batch), outputs(model, batch))
    theirs = peft.PeftModel.from_pretrained(bert(), tmp_path)
    assert not torch.equal(outputs(theirs.eval(), batch), outputs(bert(), batch))


def test_unloading_leaves_int8_layers_that_dequantize(batch):
    base = bert(int8=True)
    expected = outputs(base, batch)
    plain = bridge.wrap(base, Vera(ShiftConfig())).unload()

    assert torch.equal(outputs(plain, batch), expected)
    assert ftrt.dequantize_linears(plain)
    assert not any(isinstance(module, Int8Linear) for module in plain.modules())


def test_layers_under_a_prompt_keep_their_own_names():
    base = bert(int8=True)
    expected = [layer.name for layer in ftrt.layer_report(base)]
    config = peft.PromptTuningConfig(
        task_type="SEQ_CLS", num_virtual_tokens=2, token_dim=16, num_layers=1, num_attention_heads=2
    )
    prompted = peft.get_peft_model(base, config)

    assert [layer.name for layer in ftrt.layer_report(prompted)] == expected
