import copy
import pickle

import pytest
import torch
from torch import nn

from ftrt.errors import UsageError
from ftrt.quantization import Int8Linear, PerChannel, PerGroup
from ftrt.testing.tolerances import assert_close


def linear(bias=True, dtype=torch.float32, in_features=12, out_features=7):
    torch.manual_seed(0)
    return nn.Linear(in_features, out_features, bias=bias, dtype=dtype)


def x_of(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("granularity", [PerChannel(), PerGroup(4)])
def test_output_is_that_of_the_dequantized_weight(granularity, bias):
    layer = Int8Linear.from_linear(linear(bias), granularity)
    x = x_of(2, 3, 12)
    expected = x.double() @ layer.dequantize().double().T
    assert_close(layer(x), expected + (layer.bias.double() if bias else 0), k=12)
    assert_close(layer.to_linear()(x), layer(x), k=12)


def test_output_is_near_that_of_the_float_layer():
    layer = linear()
    x = x_of(64, 12)
    got, want = Int8Linear.from_linear(layer, PerChannel())(x), layer(x)
    assert (got - want).norm() / want.norm() < 1e-2


def test_it_is_no_nn_linear_and_trains_nothing():
    layer = Int8Linear.from_linear(linear(), PerChannel())
    assert not isinstance(layer, nn.Linear)
    assert [name for name, p in layer.named_parameters() if p.requires_grad] == []
    assert layer.weight.dtype == torch.int8


def test_a_bias_that_is_set_to_train_does():
    layer = Int8Linear.from_linear(linear(), PerChannel())
    layer.bias.requires_grad_()
    layer(x_of(3, 12)).sum().backward()
    assert torch.equal(layer.bias.grad, torch.full((7,), 3.0))


def test_compute_dtype_follows_x():
    layer = Int8Linear.from_linear(linear(), PerChannel())
    assert layer(x_of(3, 12)).dtype == torch.float32
    assert layer(x_of(3, 12, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float16, torch.float64])
def test_casting_the_model_keeps_the_scale(cast):
    model = nn.Sequential(Int8Linear.from_linear(linear(), PerChannel()))
    scale, qweight = model[0].scale.clone(), model[0].qweight.clone()
    model.to(cast)
    assert model[0].scale.dtype == torch.float32 and torch.equal(model[0].scale, scale)
    assert torch.equal(model[0].qweight, qweight)
    assert model[0].bias.dtype == cast and model[0].float_dtype == cast
    model.to(torch.float32)
    assert torch.equal(model[0].scale, scale)


def test_moving_to_another_device_moves_everything():
    layer = Int8Linear.from_linear(linear(), PerChannel()).to("meta", torch.bfloat16)
    assert layer.scale.is_meta and layer.qweight.is_meta and layer.bias.is_meta
    assert layer.scale.dtype == torch.float32


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_to_linear_has_the_dtype_the_float_layer_had(bias, dtype):
    layer = Int8Linear.from_linear(linear(bias, dtype), PerChannel())
    back = layer.to_linear()
    assert back.weight.dtype == dtype and not back.weight.requires_grad
    assert (back.bias is None) == (not bias)
    assert layer.to_linear(torch.float64).weight.dtype == torch.float64
    assert type(back) is nn.Linear and (back.in_features, back.out_features) == (12, 7)


@pytest.mark.parametrize("granularity", [PerChannel(), PerGroup(4)])
def test_state_dict_round_trip(granularity):
    layer = Int8Linear.from_linear(linear(), granularity)
    state = layer.state_dict()
    assert sorted(state) == ["bias", "qweight", "scale"]
    fresh = Int8Linear(12, 7, groups=layer.scale.shape[1])
    fresh.load_state_dict(state)
    assert torch.equal(fresh(x_of(3, 12)), layer(x_of(3, 12)))


def test_a_state_dict_of_another_granularity_or_dtype_is_an_error():
    state = Int8Linear.from_linear(linear(), PerGroup(4)).state_dict()
    with pytest.raises(RuntimeError, match="size mismatch for scale"):
        Int8Linear(12, 7).load_state_dict(state)
    state["scale"] = state["scale"].bfloat16()
    with pytest.raises(UsageError) as caught:
        nn.ModuleDict({"q": Int8Linear(12, 7, groups=3)}).load_state_dict(
            {f"q.{name}": value for name, value in state.items()}
        )
    assert "q.scale: must be torch.float32 in a state dict; got torch.bfloat16 (7, 3)" in str(
        caught.value
    )


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_equal_and_independent(clone):
    layer = Int8Linear.from_linear(linear(), PerChannel())
    other = clone(layer)
    x = x_of(3, 12)
    before = layer(x)
    assert torch.equal(other(x), before)
    other.scale.mul_(2)
    assert torch.equal(layer(x), before)


def test_from_linear_leaves_the_layer_as_it_was_and_keeps_its_mode():
    layer = linear().eval()
    before = layer.weight.detach().clone()
    assert not Int8Linear.from_linear(layer, PerChannel()).training
    assert torch.equal(layer.weight, before) and layer.weight.requires_grad
    assert layer.bias.requires_grad


def test_repr_says_what_it_is():
    assert repr(Int8Linear.from_linear(linear(), PerChannel())) == (
        "Int8Linear(in_features=12, out_features=7, bias=True, per_channel)"
    )
    assert repr(Int8Linear.from_linear(linear(bias=False), PerGroup(4))) == (
        "Int8Linear(in_features=12, out_features=7, bias=False, per_group, group_size=4)"
    )


def test_groups_that_do_not_divide_are_an_error():
    with pytest.raises(UsageError) as caught:
        Int8Linear(12, 7, groups=5)
    assert str(caught.value) == (
        "Int8Linear: groups must divide in_features; got groups 5, in_features 12"
    )


@pytest.mark.parametrize("features", [11, 13, 16])
def test_an_input_of_another_width_is_an_error(features):
    layer = Int8Linear.from_linear(linear(in_features=13 if features != 13 else 12), PerChannel())
    with pytest.raises(UsageError, match="with in_features 1[23]; got"):
        layer(torch.ones(2, features))


@pytest.mark.parametrize("compute", ["w8a16", "w8a8"])
def test_it_runs_on_the_meta_device_forward_and_backward(compute):
    layer = Int8Linear.from_linear(linear(), PerChannel())
    layer.set_compute(compute)
    layer.to("meta")
    x = torch.ones(2, 3, 12, device="meta", requires_grad=True)
    y = layer(x)
    assert (y.shape, y.device.type) == ((2, 3, 7), "meta")
    y.sum().backward()
    assert x.grad.shape == x.shape
