"""What cannot work is refused with a message that says what must hold."""

import pytest
from peft_subjects import Shift, ShiftConfig, bert, layers_of, lora, shift
from torch import nn

from ftrt.api import LinearAdapter, LinearMethod, ModelMethod, PluginConfig
from ftrt.errors import ConfigError, PluginError, UnsupportedError, UsageError
from ftrt.integrations import peft as bridge
from ftrt.integrations.peft_tuner import FtrtConfig


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
        ({"init": "pissa"}, "LoRA on int8: init_lora_weights must be one of True, False, gaussian"),
    ],
)
def test_lora_variants_that_read_the_weight_are_refused_on_int8(options, message):
    with pytest.raises(UnsupportedError) as caught:
        bridge.wrap(bert(int8=True), lora(**options), new_modules=["classifier"])
    assert message in str(caught.value)


def test_a_peft_method_that_wants_nn_linear_itself_is_refused_on_int8():
    import peft

    from ftrt.api import PeftMethod

    class Glora(PeftMethod):
        name = "glora"
        source = "this test"
        Config = ShiftConfig

        def peft_config(self, model):
            return peft.GloraConfig(target_modules=["query"])

    adapted = bridge.wrap(bert(), Glora(ShiftConfig()))
    assert adapted.peft_config["default"].target_modules == {"query"}
    base = bert(int8=True)
    kinds = [type(module) for module in base.modules()]
    with pytest.raises(UnsupportedError, match="method 'glora': cannot adapt Bert"):
        bridge.wrap(base, Glora(ShiftConfig()))
    assert [type(module) for module in base.modules()] == kinds


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
