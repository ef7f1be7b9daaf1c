from importlib.metadata import entry_points

import pytest
import torch
from ftrt_full.full import FullConfig, FullMethod
from torch import nn

from ftrt import quantize_linears
from ftrt.errors import ConfigError, UnsupportedError
from ftrt.testing import check_method


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embeddings = nn.Embedding(5, 4)
        self.layer = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 2)


def trained(new_modules=(), **options):
    model = Model()
    FullMethod(FullConfig(**options)).prepare(model, list(new_modules))
    return {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    "options", [{}, {"train_embeddings": False}, {"frozen": ["blocks.0", "norm"]}]
)
def test_full_keeps_the_method_contract(options):
    check_method(FullMethod, options)


def test_everything_trains_by_default_also_what_was_frozen_before():
    model = Model().requires_grad_(False)
    FullMethod(FullConfig()).prepare(model, [])
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_embeddings_can_be_left_out():
    everything = trained()
    assert everything - trained(train_embeddings=False) == {"embeddings.weight"}


def test_named_modules_can_be_frozen():
    names = trained(frozen=["layer.0", "norm"])
    assert names == {
        "embeddings.weight",
        "layer.1.weight",
        "layer.1.bias",
        "head.weight",
        "head.bias",
    }


def test_new_modules_train_even_when_frozen():
    names = trained(new_modules=["head"], frozen=["head", "layer"])
    assert {"head.weight", "head.bias"} <= names
    assert not any(name.startswith("layer") for name in names)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"frozen": ["norn"]},
            "method 'full': frozen: no module is called 'norn'; did you mean 'norm'?",
        ),
        (
            {"frozen": ["layer.2"]},
            "method 'full': frozen: no module is called 'layer.2'; did you mean 'layer.1'?",
        ),
        (
            {"frozen": ["embeddings", "layer", "norm", "head"]},
            "method 'full': something must be left to train; `frozen` covers the whole model",
        ),
    ],
)
def test_a_wrong_freeze_is_an_error(options, message):
    with pytest.raises(ConfigError) as caught:
        trained(**options)
    assert str(caught.value) == message


def test_an_int8_base_is_refused():
    model = Model()
    quantize_linears(model, "per_channel", ["head"])
    with pytest.raises(UnsupportedError) as caught:
        FullMethod(FullConfig()).prepare(model, [])
    assert str(caught.value) == (
        "method 'full': trains the base's own weights, which int8 cannot be; 2 layers are int8,"
        " layer.0 the first. Remove `quantization`, or choose an adapter method such as lora"
    )
    assert torch.is_grad_enabled()


def test_the_installed_plugin_offers_the_method():
    (point,) = entry_points(group="ftrt", name="method.full")
    assert point.load().register_methods() == [FullMethod]
