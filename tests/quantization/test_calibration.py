"""ftrt.calibrate: outlier columns are found, what cannot be remedied falls back, nothing else
changes."""

import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import ftrt
from ftrt.errors import ConfigError, UsageError
from ftrt.integrations import peft as peft_bridge
from ftrt.nn import lora_forward
from ftrt.ops import int8_linear
from ftrt.quantization import calibrate, quantize_linears
from ftrt.quantization.choices import LayerChoice
from ftrt.quantization.int8_layers import apply_choices, int8_layers
from ftrt.quantization.observation import cut, sequences_in

WIDTH = 96
PLANTED = (5, 41, 77)


class Attention(nn.Module):
    """query, key and value of one x; what stands out in x stands out for all three."""

    def __init__(self):
        super().__init__()
        self.query, self.key = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x):
        return torch.tanh(self.query(x) * self.key(x)) * self.value(x)


class Spiky(nn.Module):
    """Multiplies one column of each token, another one in each, as a gated product may."""

    def __init__(self, width=512, size=40.0):
        super().__init__()
        self.down, self.width, self.size = nn.Linear(width, WIDTH), width, size

    def forward(self, x):
        tokens = x.reshape(-1, WIDTH).shape[0]
        spread = torch.randn(tokens, self.width, generator=torch.Generator().manual_seed(2))
        column = torch.arange(tokens) * 7 % WIDTH
        spread[torch.arange(tokens), column] = self.size
        return self.down(spread).view(x.shape) + x


class Model(nn.Module):
    def __init__(self, *, gain=30.0, size=40.0):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(50, WIDTH)
        self.attention, self.spiky = Attention(), Spiky(size=size)
        self.plain, self.classifier = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)
        self.dropout = nn.Dropout(0.5)
        gains = torch.ones(WIDTH)
        gains[list(PLANTED)] = gain
        self.register_buffer("gains", gains)

    def forward(self, input_ids, labels=None):
        x = self.dropout(self.embed(input_ids))
        x = self.attention(x * self.gains)
        logits = self.classifier(torch.tanh(self.plain(self.spiky(x))).mean(1))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SimpleNamespace(loss=loss, logits=logits)


def batches(count=3, size=8, labels=True):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        batch = {"input_ids": torch.randint(0, 50, (size, 6), generator=generator)}
        if labels:
            batch["labels"] = torch.randint(0, 2, (size,), generator=generator)
        yield batch


def w8a8(**options):
    model = Model(**options)
    quantize_linears(model, compute="w8a8")
    return model


ATTENTION = ["attention.query", "attention.key", "attention.value"]


def test_planted_columns_are_found_and_the_error_falls():
    model = w8a8(gain=60.0)
    choices = {choice.name: choice for choice in calibrate(model, batches())}
    assert list(choices) == [*ATTENTION, "spiky.down", "plain"]
    for name in ATTENTION:
        choice, layer = choices[name], model.get_submodule(name)
        assert choice.compute == layer.compute == "w8a8"
        assert choice.outliers == layer.outlier_columns == PLANTED
        assert choice.error < 1.5e-2 and choice.error < 0.3 * choice.error_before
        assert choice.reason == "3 outlier columns in float"


def test_the_recorded_error_is_that_of_the_layer_on_its_inputs():
    model = w8a8()
    seen = {}
    handles = [
        layer.register_forward_hook(lambda m, args, y, name=name: seen.update({name: args[0]}))
        for name, layer in int8_layers(model).items()
    ]
    (batch,) = batches(1)
    choices = calibrate(model, [batch])
    for handle in handles:
        handle.remove()
    for choice in choices:
        layer, x = model.get_submodule(choice.name), seen[choice.name]
        want = x.double() @ layer.dequantize().double().T
        got = int8_linear(x, layer.packed, layer.scale, compute="w8a8")
        error = ((got - want).norm() / want.norm()).item()
        assert choice.error_before == pytest.approx(error, rel=0.05)


def test_spikes_that_move_from_token_to_token_fall_back_to_w8a16(caplog):
    caplog.set_level(logging.INFO)
    model = w8a8()
    choices = {choice.name: choice for choice in calibrate(model, batches())}
    choice = choices["spiky.down"]
    assert (choice.compute, choice.outliers) == ("w8a16", ())
    assert model.spiky.down.compute == "w8a16" and choice.error > 0.02
    assert choice.reason == f"output error {choice.error:.4f} > 0.02"
    assert model.spiky.down.choice is choice
    assert f"spiky.down computes w8a16: {choice.reason}" in caplog.text
    assert (
        "calibrated on 24 sequences: 4 of 5 int8 layers compute w8a8 (3 with outlier columns"
        in caplog.text
    )
    assert "1 fall back to w8a16" in caplog.text and "no loss" not in caplog.text


def test_the_bound_and_the_number_of_columns_are_the_callers():
    lenient = calibrate(w8a8(), batches(), max_error=0.5, max_gradient_error=0.5)
    assert {c.compute for c in lenient} == {"w8a8"}
    strict = calibrate(w8a8(), batches(), max_error=1e-4)
    assert {c.compute for c in strict} == {"w8a16"}
    for choice in calibrate(w8a8(), batches(), max_outliers=2):
        assert len(choice.outliers) <= 2
    assert all(not c.outliers for c in calibrate(w8a8(), batches(), max_outliers=0))


def test_columns_that_do_not_stand_out_are_not_taken():
    for choice in calibrate(w8a8(gain=1.0), batches()):
        assert choice.outliers == ()


def test_gradients_are_measured_where_there_is_a_loss(caplog):
    caplog.set_level(logging.INFO)
    for choice in calibrate(w8a8(), batches()):
        assert 0 < choice.gradient_error < 0.05
    for choice in calibrate(w8a8(), batches(labels=False)):
        assert choice.gradient_error is None
    assert "gradients were not measured, the model returned no loss" in caplog.text


def test_a_gradient_that_cannot_be_quantized_falls_back():
    class Gradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y):
            return y.view_as(y)

        @staticmethod
        def backward(ctx, grad):
            spikes = torch.randn(grad.shape, generator=torch.Generator().manual_seed(3))
            spikes.view(-1, WIDTH)[:, 0] = 20.0
            return spikes

    class Hard(Model):
        def forward(self, input_ids, labels=None):
            x = self.plain(self.embed(input_ids))
            return {"loss": Gradient.apply(x).square().sum() if labels is not None else None}

    model = Hard()
    quantize_linears(model, skip=["attention", "spiky"], compute="w8a8")
    (choice,) = calibrate(model, batches(), max_error=0.01, max_gradient_error=0.01)
    assert choice.error < 0.01 < choice.gradient_error
    assert choice.compute == model.plain.compute == "w8a16"
    assert choice.reason == f"gradient error {choice.gradient_error:.4f} > 0.01"


def test_the_model_is_left_as_it_was_but_for_the_choice():
    model = w8a8().train()
    model.classifier.eval()
    model.embed.weight.requires_grad_(False)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    random = torch.get_rng_state()
    calibrate(model, batches())
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_an_error_puts_the_layers_back(monkeypatch):
    model = w8a8()
    model.plain.set_compute("w8a8", [3])

    def broken():
        yield from batches(1)
        yield {"input_ids": torch.full((2, 6), 50)}

    with pytest.raises(IndexError):
        calibrate(model, broken())
    layers = int8_layers(model).values()
    assert {layer.compute for layer in layers} == {"w8a8"}
    assert model.plain.outlier_columns == (3,)
    assert not any(layer._forward_pre_hooks for layer in layers)


def test_calibrating_again_gives_the_same_choice():
    assert calibrate(w8a8(), batches()) == calibrate(w8a8(), batches())


def test_layers_that_nothing_reaches_or_nothing_but_zeros_fall_back():
    class Idle(Model):
        def forward(self, input_ids):
            return self.plain(torch.zeros(*input_ids.shape, WIDTH))

    model = Idle()
    quantize_linears(model, compute="w8a8")
    choices = calibrate(model, [torch.zeros(2, 6, dtype=torch.long)])
    assert {(c.compute, c.reason) for c in choices} == {
        ("w8a16", "no input other than zero reached it")
    }


def test_layers_of_a_peft_model_are_measured_under_their_own_names():
    model = peft_bridge.wrap(w8a8(), _lora())
    choices = calibrate(model, batches())
    assert [c.name for c in choices] == [*ATTENTION, "spiky.down", "plain"]
    assert choices[0].outliers == PLANTED
    bare = {c.name: c.error_before for c in calibrate(w8a8(), batches())}
    for choice in choices:
        assert choice.error_before == pytest.approx(bare[choice.name], rel=1e-3)
    assert {row.adapter for row in ftrt.layer_report(model)} == {"fused"}


def test_layers_under_a_plugins_adapter_are_measured():
    class Wrapped(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base_layer = base

        def forward(self, x):
            a, b = torch.ones(2, WIDTH), torch.zeros(WIDTH, 2)
            return lora_forward(self.base_layer, x, a, b, 1.0)

    model = w8a8()
    for name in ("query", "key", "value"):
        setattr(model.attention, name, Wrapped(getattr(model.attention, name)))
    choices = {c.name: c for c in calibrate(model, batches())}
    assert [choices[name].outliers for name in ATTENTION] == [PLANTED] * 3


def test_at_most_so_many_sequences_are_used():
    used = []

    class Counting(Model):
        def forward(self, input_ids, labels=None):
            used.append(len(input_ids))
            return super().forward(input_ids, labels)

    model = Counting()
    quantize_linears(model, compute="w8a8")
    calibrate(model, batches(100, 8, labels=False), max_sequences=20)
    # the pass for gradients, then both others
    assert used == [8, 8, 4, 4, 8, 8, 4]


@pytest.mark.parametrize(
    ("batch", "rows"),
    [
        (torch.ones(5, 2), 5),
        ({"x": torch.ones(5, 2), "scale": torch.ones(())}, 5),
        ((torch.ones(5, 2), None), 5),
    ],
)
def test_batches_of_every_form_are_counted_and_cut(batch, rows):
    assert sequences_in(batch) == rows
    assert sequences_in(cut(batch, 2)) == 2 and cut(batch, 7) is batch


@pytest.mark.parametrize(
    ("make", "given", "options", "message"),
    [
        (
            Model,
            list(batches()),
            {},
            "calibrate: some layer must compute w8a8; none does. Convert the model with"
            ' quantize_linears(model, compute="w8a8") first',
        ),
        (w8a8, [], {}, "calibrate: batches must hold at least one sequence; got none"),
        (w8a8, [{}], {}, "calibrate: a batch must hold a tensor with a row a sequence; got dict"),
        (
            w8a8,
            list(batches()),
            {"max_error": 0, "max_gradient_error": 1000},
            "calibrate: max_error and max_gradient_error must be above 0 and at most 1,"
            " max_outliers at least 0 and max_sequences at least 1; got 0, 1000, 16 and 128",
        ),
    ],
)
def test_what_cannot_be_calibrated_is_an_error(make, given, options, message):
    with pytest.raises(UsageError) as caught:
        calibrate(make(), given, **options)
    assert str(caught.value) == message


def test_choices_come_back_from_json_and_are_put_back():
    model = w8a8()
    choices = calibrate(model, batches())
    again = w8a8()
    read = [LayerChoice.from_json({**c.to_json(), "kind": "int8"}) for c in choices]
    assert read == choices
    apply_choices(again, read)
    for name, layer in int8_layers(again).items():
        other = model.get_submodule(name)
        assert (layer.compute, layer.outlier_columns) == (other.compute, other.outlier_columns)
        assert layer.choice == other.choice


def test_choices_of_another_model_are_an_error():
    choice = calibrate(w8a8(), batches())[0]
    with pytest.raises(ConfigError) as caught:
        apply_choices(w8a8(), [replace(choice, name="attention.qurey")], where="ftrt.json")
    assert str(caught.value) == (
        "ftrt.json: attention.qurey must be an int8 layer of Model; it has 5 others. The recipe's"
        " quantization or the base has changed"
    )
    with pytest.raises(ConfigError, match=r"ftrt\.json: attention\.query: Int8Linear: outliers"):
        apply_choices(w8a8(), [replace(choice, outliers=(WIDTH,))], where="ftrt.json")
    for damage in ({"compute": "w4a4"}, {"outliers": 3}, {"name": None}, {"outliers": ["1"]}):
        with pytest.raises(
            ConfigError, match="layers: each layer must have a name, a compute of w8"
        ):
            LayerChoice.from_json({**choice.to_json(), **damage})


def _lora():
    from ftrt.api import PeftMethod, PluginConfig

    class Lora(PeftMethod):
        name, source, Config = "plain", "these tests", PluginConfig

        def peft_config(self, model):
            import peft

            targets = ["query", "key", "value", "down", "plain"]
            return peft.LoraConfig(r=4, target_modules=targets)

    return Lora(PluginConfig())
