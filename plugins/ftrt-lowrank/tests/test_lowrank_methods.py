from importlib.metadata import entry_points

import peft
import pytest
import torch
from ftrt_lowrank.lora import LoraConfig, LoraMethod
from ftrt_lowrank.lora_fa import LoraFaConfig, LoraFaMethod
from ftrt_lowrank.lora_xs import LoraXsAdapter, LoraXsConfig, LoraXsMethod
from pydantic import ValidationError
from torch import nn

import ftrt
from ftrt import quantize_linears
from ftrt.errors import UnsupportedError
from ftrt.nn import Int8Linear
from ftrt.testing import check_method


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rank": 1, "alpha": 0.5},
        {"rank": 8, "dropout": 0.2, "init": "gaussian"},
        {"rank": 8, "rslora": True, "targets": ["up", "down"]},
        {"rank": 4, "dora": True},
        {"rank": 4, "dora": True, "dropout": 0.2},
        {"rank": 4, "lr_ratio": 16},
    ],
)
def test_lora_keeps_the_method_contract(options):
    check_method(LoraMethod, options)


@pytest.mark.parametrize("options", [{}, {"rank": 1, "targets": ["up"]}])
def test_lora_fa_keeps_the_method_contract(options):
    check_method(LoraFaMethod, options)


def test_lora_fa_trains_b_alone_and_computes_its_formula():
    adapter = LoraFaMethod(LoraFaConfig(rank=3, alpha=6)).adapter(nn.Linear(12, 7))
    assert [tuple(p.shape) for p in adapter.parameters() if p.requires_grad] == [(7, 3)]
    assert set(adapter.state_dict()) == {"lora_a", "lora_b"}
    nn.init.normal_(adapter.lora_b)
    base, x = nn.Linear(12, 7), torch.randn(5, 12)
    a, b = adapter.lora_a.double(), adapter.lora_b.double()
    expected = base(x).double() + 2.0 * x.double() @ a.T @ b.T
    torch.testing.assert_close(adapter(base, x).double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(adapter.delta_weight().double(), 2.0 * b @ a)


def test_lora_plus_puts_b_apart_at_a_multiple_of_the_rate():
    method = LoraMethod(LoraConfig(rank=2, lr_ratio=16))
    run = ftrt.attach(
        nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)), {"method": {"name": "lora", "rank": 2}}
    )
    slow, fast = method.param_groups(run.model)
    assert fast["lr_ratio"] == 16 and "lr_ratio" not in slow
    assert {tuple(p.shape) for p in fast["params"]} == {(5, 2), (3, 2)}
    assert {tuple(p.shape) for p in slow["params"]} == {(2, 6), (2, 5)}
    assert LoraMethod(LoraConfig()).param_groups(run.model) is None


@pytest.mark.parametrize("options", [{}, {"rank": 1}, {"rank": 32, "targets": ["up"]}])
def test_lora_xs_keeps_the_method_contract(options):
    check_method(LoraXsMethod, options)


@pytest.mark.parametrize(
    ("config", "options", "field"),
    [
        (LoraConfig, {"rank": 0}, "greater than or equal to 1"),
        (LoraConfig, {"alpha": 0}, "greater than 0"),
        (LoraConfig, {"dropout": 1.0}, "less than 1"),
        (LoraConfig, {"dropout": -0.1}, "greater than or equal to 0"),
        (LoraConfig, {"lr_ratio": 0.5}, "greater than or equal to 1"),
        (LoraFaConfig, {"rank": 0}, "greater than or equal to 1"),
        (LoraConfig, {"init": "pissa"}, "'kaiming' or 'gaussian'"),
        (LoraConfig, {"lora_rank": 4}, "Extra inputs are not permitted"),
        (LoraXsConfig, {"rank": 0}, "greater than or equal to 1"),
        (LoraXsConfig, {"alpha": -1}, "greater than 0"),
    ],
)
def test_options_out_of_range_are_refused(config, options, field):
    with pytest.raises(ValidationError, match=field):
        config(**options)


@pytest.mark.parametrize(("rslora", "scaling"), [(False, 8.0), (True, 16.0)])
def test_lora_options_reach_peft(rslora, scaling):
    config = LoraMethod(LoraConfig(rank=4, alpha=32, dropout=0.1, rslora=rslora)).peft_config(
        nn.Sequential(nn.Linear(4, 4))
    )
    config.target_modules = ["0"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (4, 32, 0.1)
    assert isinstance(config.lora_alpha, int)
    model = peft.get_peft_model(nn.Sequential(nn.Linear(4, 4)), config)
    assert model.base_model.model[0].scaling == {"default": scaling}


def test_lora_xs_spans_the_leading_singular_directions():
    torch.manual_seed(0)
    linear = nn.Linear(24, 17)
    adapter = LoraXsMethod(LoraXsConfig(rank=5)).adapter(linear)
    u, s, vh = torch.linalg.svd(linear.weight.detach().double(), full_matrices=False)
    best = u[:, :5] @ torch.diag(s[:5]) @ vh[:5]
    got = adapter.lora_b.double() @ adapter.lora_a.double()
    torch.testing.assert_close(got, best, atol=1e-3, rtol=1e-3)
    eye = adapter.lora_a @ adapter.lora_a.T
    torch.testing.assert_close(eye, torch.eye(5), atol=1e-5, rtol=0)


@pytest.mark.parametrize("int8", [False, True])
def test_lora_xs_computes_its_formula(int8):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 7))
    if int8:
        quantize_linears(model, "per_channel", [])
    linear = model[0]
    adapter = LoraXsMethod(LoraXsConfig(rank=3, alpha=6)).adapter(linear)
    nn.init.normal_(adapter.core)
    x = torch.randn(2, 5, 12)
    weight = linear.dequantize() if isinstance(linear, Int8Linear) else linear.weight
    a, b, core = adapter.lora_a.double(), adapter.lora_b.double(), adapter.core.double()
    expected = x.double() @ weight.double().T + linear.bias.double()
    expected = expected + 2.0 * x.double() @ a.T @ core.T @ b.T
    torch.testing.assert_close(adapter(linear, x).double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(adapter.delta_weight().double(), 2.0 * b @ core @ a)


def test_lora_xs_trains_rank_squared_numbers_and_saves_the_factors():
    adapter = LoraXsMethod(LoraXsConfig(rank=3)).adapter(nn.Linear(12, 7))
    assert isinstance(adapter, LoraXsAdapter)
    assert [p.numel() for p in adapter.parameters() if p.requires_grad] == [9]
    assert set(adapter.state_dict()) == {"core", "lora_a", "lora_b"}


def test_a_rank_above_the_layer_is_an_error():
    with pytest.raises(UnsupportedError) as caught:
        LoraXsMethod(LoraXsConfig(rank=9)).adapter(nn.Linear(12, 8))
    assert str(caught.value) == (
        "method 'lora_xs': rank must not exceed the smaller side of a targeted layer; got rank 9"
        " for (8, 12). Lower it, or leave that layer out of `targets`"
    )


@pytest.mark.parametrize("name", ["lora", "lora_fa", "lora_xs"])
def test_the_installed_plugin_offers_the_method(name):
    (point,) = entry_points(group="ftrt", name=f"method.{name}")
    (found,) = point.load().register_methods()
    assert found.name == name
    assert found.__module__ == f"ftrt_lowrank.{name}"


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("name", ["lora", "lora_fa", "lora_xs"])
def test_a_saved_adapter_is_read_back_by_the_name_of_its_method(name, int8, tmp_path):
    def base():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(12, 16), nn.GELU(), nn.Linear(16, 8))

    recipe = {"method": {"name": name, "rank": 3}}
    if int8:
        recipe["quantization"] = {"dtype": "int8"}
    model = ftrt.attach(base(), recipe).model
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
    model.save_pretrained(tmp_path)
    again = base()
    if int8:
        ftrt.quantize_linears(again)
    x = torch.randn(5, 12)
    assert torch.equal(ftrt.load(again, tmp_path)(x), model.eval()(x))
