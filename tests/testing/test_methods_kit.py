"""The kit can fail: each broken method is caught, and the message says what is wrong."""

import random

import numpy
import pytest
import torch
from pydantic import BaseModel
from torch import nn

from ftrt.api import LinearAdapter, LinearMethod, ModelMethod, PeftMethod, PluginConfig
from ftrt.testing.methods import check_method
from ftrt.testing.toy_model import ToyModel


class ShiftConfig(PluginConfig):
    targets: str | list[str] = "all-linear"


class ShiftAdapter(LinearAdapter):
    """y = base(x) + x Δᵀ with Δ (out_features, in_features) trained whole."""

    def __init__(self, linear):
        super().__init__()
        self.delta = nn.Parameter(torch.zeros(linear.out_features, linear.in_features))

    def forward(self, base, x):
        y = base(x)
        return y + (x.float() @ self.delta.T).to(y.dtype)

    def delta_weight(self):
        return self.delta


class Shift(LinearMethod):
    name = "shift"
    source = "this test"
    Config = ShiftConfig
    adapter_class: type[LinearAdapter] = ShiftAdapter

    def adapter(self, linear):
        return self.adapter_class(linear)


def method_with(adapter_class, **attributes):
    return type("Broken", (Shift,), {"adapter_class": adapter_class, **attributes})


def failure_of(method_class, **kwargs):
    with pytest.raises(AssertionError) as caught:
        check_method(method_class, **kwargs)
    return str(caught.value)


def test_a_right_method_passes():
    check_method(Shift)


def test_a_right_method_passes_on_a_given_model_and_leaves_it_alone():
    model = ToyModel()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    check_method(Shift, {"targets": ["up"]}, model=model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_callers_random_state_is_left_alone():
    torch.manual_seed(3)
    random.seed(3)
    before = torch.get_rng_state(), random.getstate()
    check_method(Shift)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


def test_all_failing_claims_are_listed():
    class Wrong(ShiftAdapter):
        def __init__(self, linear):
            super().__init__(linear)
            nn.init.ones_(self.delta)

        def delta_weight(self):
            return 2 * self.delta

    message = failure_of(method_with(Wrong))
    assert message.startswith("Broken: ")
    assert "- starts as the base: " in message
    assert "- merges: merged outputs must equal the adapter's" in message


def test_a_start_other_than_the_base_is_caught():
    class Offset(ShiftAdapter):
        def forward(self, base, x):
            return super().forward(base, x) + 0.1

    assert "before training the outputs must be the base's" in failure_of(method_with(Offset))


def test_frozen_adapters_are_caught():
    class Frozen(ShiftAdapter):
        def __init__(self, linear):
            super().__init__(linear)
            self.delta.requires_grad_(False)

    message = failure_of(method_with(Frozen))
    assert "some parameter must require gradients; none does" in message


def test_an_unused_parameter_is_caught():
    class Idle(ShiftAdapter):
        def __init__(self, linear):
            super().__init__(linear)
            self.idle = nn.Parameter(torch.zeros(3))

    message = failure_of(method_with(Idle))
    assert "every trainable parameter must get a gradient within 4 steps" in message
    assert "idle" in message


def test_a_base_that_trains_is_caught():
    class Thaws(ShiftAdapter):
        def forward(self, base, x):
            for parameter in base.parameters():
                parameter.requires_grad_(True)
            return super().forward(base, x)

    assert "frozen parameters must keep their values" in failure_of(
        method_with(Thaws, param_groups=lambda self, model: [{"params": [*model.parameters()]}])
    )


def test_a_wrong_delta_weight_is_caught():
    class Doubled(ShiftAdapter):
        def delta_weight(self):
            return 2 * self.delta

    message = failure_of(method_with(Doubled))
    assert "merged outputs must equal the adapter's; delta_weight() and forward()" in message


def test_a_transposed_delta_weight_is_caught():
    class Transposed(ShiftAdapter):
        def delta_weight(self):
            return self.delta.T

    message = failure_of(method_with(Transposed))
    assert "delta_weight: must be (out_features, in_features) = (48, 32); got (32, 48)" in message


def test_state_in_a_plain_attribute_is_caught():
    class Scattered(ShiftAdapter):
        def __init__(self, linear):
            super().__init__(linear)
            self.directions = torch.randn(linear.in_features, linear.in_features)

        def forward(self, base, x):
            y = base(x)
            return y + (x.float() @ self.directions @ self.delta.T).to(y.dtype)

        def delta_weight(self):
            return self.delta @ self.directions.T

    message = failure_of(method_with(Scattered))
    assert "outputs must be bit-equal after save and reload" in message
    assert "must be a parameter or a persistent buffer" in message


def test_state_of_training_that_is_not_saved_is_caught():
    class Counting(Shift):
        """Grows its update with the steps it has seen, and forgets them when saved."""

        def __init__(self, config):
            super().__init__(config)
            self.seen = 0

        def on_step(self, model, step, total_steps):
            self.seen += 1
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter.mul_(1 + 0.5 * self.seen)

    message = failure_of(Counting)
    assert "a resumed run must equal one without a break" in message


@pytest.mark.parametrize(
    ("action", "what"),
    [
        (lambda: torch.manual_seed(0), "torch's seed"),
        (lambda: random.random(), "Python's random state"),
        (lambda: numpy.random.rand(), "numpy's random state"),
        (lambda: torch.set_default_dtype(torch.float64), "torch's default dtype"),
        (lambda: torch.set_grad_enabled(False), "torch's gradient mode"),
    ],
)
def test_touching_global_state_is_caught(action, what):
    class Careless(Shift):
        def __init__(self, config):
            super().__init__(config)
            action()

    assert f"building must leave {what} alone; it changed" in failure_of(Careless)
    assert torch.get_default_dtype() is torch.float32
    assert torch.is_grad_enabled()


def test_a_method_that_needs_float_but_claims_int8_is_caught():
    class ReadsWeight(ShiftAdapter):
        def forward(self, base, x):
            return nn.functional.linear(x, base.weight + self.delta.to(x.dtype), base.bias)

    message = failure_of(method_with(ReadsWeight))
    # the weight of an int8 layer stands in panels, which no float weight can be added to
    assert "runs on int8: must not raise; raised RuntimeError" in message
    assert "runs on w8a8: must not raise; raised RuntimeError" in message


def test_an_unmergeable_method_must_be_refused_by_name_and_passes_when_it_is():
    class NoDelta(ShiftAdapter):
        delta_weight = LinearAdapter.delta_weight

    assert "merges: must not raise; raised UnsupportedError" in failure_of(method_with(NoDelta))
    check_method(method_with(NoDelta, mergeable=False))


def test_outputs_of_another_dtype_are_caught():
    class Widens(ShiftAdapter):
        def forward(self, base, x):
            return base(x) + x.float() @ self.delta.T

    message = failure_of(method_with(Widens))
    assert "runs on bfloat16" in message


def test_an_adapter_that_owns_its_base_is_caught():
    class Owns(ShiftAdapter):
        def __init__(self, linear):
            super().__init__(linear)
            self.linear = linear

    assert "must not own its base" in failure_of(method_with(Owns))


def test_param_groups_with_a_gap_and_with_a_double_are_caught():
    def first_only(self, model):
        return [{"params": [p for p in model.parameters() if p.requires_grad][:1]}]

    def frozen_too(self, model):
        return [{"params": list(model.parameters())}]

    for groups in (first_only, frozen_too):
        message = failure_of(method_with(ShiftAdapter, param_groups=groups))
        assert "param_groups must hold each trainable parameter once and no other" in message


def test_a_loose_config_is_caught():
    class Loose(PluginConfig):
        model_config = {"extra": "ignore"}  # noqa: RUF012
        targets: str = "all-linear"

    class Foreign(BaseModel):
        targets: str = "all-linear"

    assert "`Config` must refuse unknown options" in failure_of(
        method_with(ShiftAdapter, Config=Loose)
    )
    assert "`Config` must derive from ftrt.api.PluginConfig" in failure_of(
        method_with(ShiftAdapter, Config=Foreign)
    )


@pytest.mark.parametrize(
    ("attribute", "value", "sentence"),
    [
        ("name", "Two Words", "`name` must be lower_case letters, digits and underscores"),
        ("source", "", "`source` must name the paper; got ''"),
    ],
)
def test_a_missing_name_or_source_is_caught(attribute, value, sentence):
    assert sentence in failure_of(method_with(ShiftAdapter, **{attribute: value}))


def test_something_else_than_a_method_is_refused():
    with pytest.raises(AssertionError, match="must be a class that derives from one of"):
        check_method(ToyModel)


def test_a_peft_method_that_forgets_to_train_is_caught():
    class Frozen(PeftMethod):
        name = "frozen"
        source = "this test"
        Config = ShiftConfig

        def peft_config(self, model):
            import peft

            return peft.LoraConfig(r=2, target_modules="all-linear", inference_mode=True)

    assert "some parameter must require gradients; none does" in failure_of(Frozen)


class HalfMethod(ModelMethod):
    """Trains the classifier only."""

    name = "half"
    source = "this test"
    Config = ShiftConfig
    supports_quantized_base = False

    def prepare(self, model, new_modules):
        model.requires_grad_(False)
        model.classifier.requires_grad_(True)


def test_a_model_method_passes():
    check_method(HalfMethod)


def test_a_model_method_that_changes_weights_at_once_is_caught():
    class Resets(HalfMethod):
        def prepare(self, model, new_modules):
            super().prepare(model, new_modules)
            nn.init.ones_(model.classifier.weight)

    assert "before training the outputs must be the base's" in failure_of(Resets)


def test_a_model_method_that_trains_nothing_is_caught():
    class Nothing(HalfMethod):
        def prepare(self, model, new_modules):
            model.requires_grad_(False)

    assert "some parameter must require gradients; none does" in failure_of(Nothing)
