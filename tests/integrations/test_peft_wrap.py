"""Third-party methods as PeftModels: PEFT's functions work on them, on float and int8 bases."""

import copy
import json
import warnings

import pytest
import torch
from peft import PeftModel
from peft_subjects import IDS, LABELS, Shift, ShiftConfig, bert, logits, lora, shift, train
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from ftrt.api import LinearAdapter, LinearMethod, ModelMethod, PluginConfig
from ftrt.errors import ConfigError, PluginError, UnsupportedError, UsageError
from ftrt.integrations import peft as bridge
from ftrt.integrations.peft_layer import FtrtLayer
from ftrt.integrations.peft_lora import FusedLoraLinear
from ftrt.integrations.peft_tuner import FtrtConfig
from ftrt.nn import Int8Linear, dense_weight

METHODS = pytest.mark.parametrize("method", [shift, lora], ids=["ftrt", "lora"])
BASES = pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])


def wrapped(method, *, int8=False, steps=0, **options):
    torch.manual_seed(5)
    model = bridge.wrap(
        bert(int8=int8), method(**options), new_modules=["classifier"], task_type="SEQ_CLS"
    )
    return train(model, steps) if steps else model.eval()


def layers_of(model):
    return [m for m in model.modules() if isinstance(m, (FtrtLayer, FusedLoraLinear))]


@METHODS
@BASES
def test_wrap_starts_as_the_base_and_trains_adapters_and_head_only(method, int8):
    model = wrapped(method, int8=int8)
    assert torch.equal(logits(model), logits(bert(int8=int8)))
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
    assert torch.equal(logits(model), logits(bert(int8=int8)))
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


class Unmergeable(Shift):
    name = "unmergeable"
    mergeable = False


class FloatOnly(Shift):
    name = "float_only"
    supports_quantized_base = False


def test_an_unmergeable_method_is_refused_by_name():
    model = bridge.wrap(bert(), Unmergeable(ShiftConfig()))
    for merging in (bridge.merge, lambda m: m.merge_and_unload(), lambda m: m.merge_adapter()):
        with pytest.raises(UnsupportedError, match="method 'unmergeable' cannot be merged"):
            merging(model)
    assert not any(layer.merged for layer in layers_of(model))


def test_a_method_that_needs_a_float_base_refuses_int8():
    with pytest.raises(UnsupportedError) as caught:
        bridge.wrap(bert(int8=True), FloatOnly(ShiftConfig()))
    assert str(caught.value) == (
        "method 'float_only': needs a float base; 13 layers are int8,"
        " bert.encoder.layer.0.attention.self.query the first. Remove `quantization`, or choose a"
        " method that supports it, such as lora"
    )


def test_a_new_module_in_int8_is_refused():
    with pytest.raises(UnsupportedError, match=r"bert\.pooler\.dense is new and must train"):
        bridge.wrap(bert(int8=True), shift(), new_modules=["pooler"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dora": True}, "LoRA on int8: Dora needs the base's float weight"),
        ({"init": "pissa"}, "LoRA on int8: init_lora_weights must be one of True, False, gaussian"),
    ],
)
def test_lora_variants_that_read_the_weight_are_refused_on_int8(options, message):
    with pytest.raises(UnsupportedError) as caught:
        bridge.wrap(bert(int8=True), lora(**options), new_modules=["classifier"])
    assert message in str(caught.value)


def test_another_peft_method_is_refused_on_int8():
    import peft

    from ftrt.api import PeftMethod

    class Ia3(PeftMethod):
        name = "ia3"
        source = "this test"
        Config = ShiftConfig

        def peft_config(self, model):
            return peft.IA3Config(target_modules=["query"], feedforward_modules=[])

    assert bridge.wrap(bert(), Ia3(ShiftConfig())).peft_config["default"].target_modules == [
        "query"
    ]
    with pytest.raises(UnsupportedError, match="method 'ia3': PEFT's IA3 cannot adapt int8"):
        bridge.wrap(bert(int8=True), Ia3(ShiftConfig()))


class Foreign(ModelMethod):
    name = "foreign"
    source = "this test"
    Config = PluginConfig

    def prepare(self, model, new_modules):
        pass


class ReturnsLinear(Shift):
    name = "returns_linear"

    def adapter(self, linear):
        return nn.Linear(2, 2)


class OwnsBase(LinearMethod):
    name = "owns_base"
    source = "this test"
    Config = ShiftConfig

    def adapter(self, linear):
        adapter = LinearAdapter()
        adapter.base = linear
        return adapter


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: bridge.wrap(bert(), shift(targets=["qurey"])),
            ConfigError,
            "method 'shift': targets: no linear layer is called 'qurey'; did you mean 'query'?",
        ),
        (
            lambda: bridge.wrap(bert(), shift(), task_type="SEQ_CLASS"),
            ConfigError,
            "task_type: must be one of PEFT's; got 'SEQ_CLASS'; did you mean 'SEQ_CLS'?",
        ),
        (
            lambda: bridge.wrap(bert(), Foreign(PluginConfig())),
            UsageError,
            "method must be a LinearMethod or a PeftMethod; got Foreign",
        ),
        (
            lambda: bridge.wrap(bridge.wrap(bert(), shift()), shift()),
            UsageError,
            "must be a model without adapters; it has some",
        ),
        (
            lambda: bridge.wrap(bert(), shift(), adapter_name="a.b"),
            UsageError,
            "wrap: adapter_name must be a name without dots; got 'a.b'",
        ),
        (
            lambda: bridge.wrap(bert(), ReturnsLinear(ShiftConfig())),
            PluginError,
            "method 'returns_linear': adapter(linear) must return a LinearAdapter; got Linear",
        ),
        (
            lambda: bridge.wrap(bert(), OwnsBase(ShiftConfig())),
            PluginError,
            "method 'owns_base': an adapter must not own its base",
        ),
        (
            lambda: bridge.merge(bert()),
            UsageError,
            "merge: must be given a peft.PeftModel; got BertForSequenceClassification",
        ),
    ],
)
def test_wrong_use_is_an_error_that_says_what_must_hold(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)


def test_a_method_that_no_plugin_offers_is_an_error_that_names_the_distribution(tmp_path):
    config = FtrtConfig(method="gone", plugin="ftrt-gone 1.2")
    with pytest.raises(PluginError) as caught:
        config.resolve()
    assert str(caught.value) == (
        "method 'gone': its plugin must be installed; none offers it; it was"
        " ftrt-gone 1.2: pip install ftrt-gone"
    )
    with pytest.raises(PluginError, match="plugin must be installed; none offers it"):
        FtrtConfig(method="gone").resolve()
