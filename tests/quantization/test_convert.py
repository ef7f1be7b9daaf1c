import gc
import weakref

import pytest
import torch
from torch import nn

import ftrt
from ftrt.errors import ConfigError, UnsupportedError
from ftrt.quantization import Int8Linear, PerGroup, dequantize_linears, quantize_linears
from ftrt.testing.tolerances import assert_close


class Block(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.query = nn.Linear(width, width)
        self.value = nn.Linear(width, width, bias=False)
        self.norm = nn.LayerNorm(width)

    def forward(self, x):
        return self.norm(self.value(self.query(x).relu()) + x)


class Model(nn.Module):
    """An encoder with an untied classifier, as transformers lays them out."""

    def __init__(self, blocks=2):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(5, 8)
        self.layers = nn.ModuleList(Block() for _ in range(blocks))
        self.classifier = nn.Linear(8, 3)

    def forward(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.classifier(x.mean(1))


ALL = ["layers.0.query", "layers.0.value", "layers.1.query", "layers.1.value"]
TOKENS = torch.tensor([[0, 1, 2], [3, 4, 0]])


def names_of(model, kind):
    return [name for name, module in model.named_modules() if type(module) is kind]


def test_every_linear_but_the_output_head_is_converted():
    model = Model()
    expected = model(TOKENS)
    assert quantize_linears(model) == ALL
    assert names_of(model, Int8Linear) == ALL and names_of(model, nn.Linear) == ["classifier"]
    assert (model(TOKENS) - expected).norm() / expected.norm() < 2e-2


def test_it_is_public_at_the_top_level():
    assert ftrt.quantize_linears is quantize_linears
    assert ftrt.dequantize_linears is dequantize_linears


@pytest.mark.parametrize("name", ["lm_head", "classifier", "score", "qa_outputs"])
def test_an_output_head_is_known_by_its_name_also_when_it_is_a_block(name):
    model = nn.ModuleDict({"body": nn.Linear(4, 4), name: nn.Sequential(nn.Linear(4, 2))})
    assert quantize_linears(model) == ["body"]


def test_an_output_head_is_known_by_get_output_embeddings():
    model = Model()
    model.get_output_embeddings = lambda: model.layers[1].value
    assert quantize_linears(model) == ALL[:3]


@pytest.mark.parametrize(
    ("skip", "left"),
    [
        (["query"], ["layers.0.query", "layers.1.query"]),
        (["layers.0.query"], ["layers.0.query"]),
        (["0.query", "1.value"], ["layers.0.query", "layers.1.value"]),
        (["layers.1"], ["layers.1.query", "layers.1.value"]),
        (["classifier"], []),
        (["norm"], []),
    ],
)
def test_skip_names_layers_or_what_holds_them(skip, left):
    assert quantize_linears(Model(), skip=skip) == [name for name in ALL if name not in left]


@pytest.mark.parametrize(
    ("skip", "text"),
    [
        (["qurey"], "must name a layer of the model; got 'qurey'; did you mean 'query'?"),
        (["layers.0.qery"], "got 'layers.0.qery'; did you mean 'layers.0.query'?"),
        (["uery"], "got 'uery'; did you mean 'query'?"),
        ("query", "quantization.skip: must be a list of names; got the string 'query'"),
    ],
)
def test_a_skip_entry_that_matches_nothing_is_an_error(skip, text):
    model = Model()
    with pytest.raises(ConfigError) as caught:
        quantize_linears(model, skip=skip)
    assert text in str(caught.value) and not names_of(model, Int8Linear)


def test_nothing_to_convert_is_an_error_that_counts():
    with pytest.raises(ConfigError) as caught:
        quantize_linears(Model(), skip=["layers"])
    assert str(caught.value) == (
        "quantization: Model must have a linear layer to convert; of 5 nn.Linear layers, 1 are the"
        " output head, 0 share their weight and 4 are skipped"
    )
    model = Model()
    quantize_linears(model)
    with pytest.raises(ConfigError, match=r"of 1 nn\.Linear layers, 1 are the output head"):
        quantize_linears(model)
    with pytest.raises(ConfigError, match="must be given a model that holds layers; got a bare"):
        quantize_linears(nn.Linear(2, 2))


def test_a_subclass_of_linear_stays_float():
    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = Model()
    model.layers[0].query = Scaled(8, 8)
    assert quantize_linears(model) == ALL[1:]
    assert type(model.layers[0].query) is Scaled


def test_a_weight_shared_with_an_embedding_stays_float():
    model = Model()
    model.layers[1].query = nn.Linear(8, 5)
    model.layers[1].query.weight = model.embed.weight
    assert quantize_linears(model) == [ALL[0], ALL[1], ALL[3]]
    assert model.layers[1].query.weight is model.embed.weight


def test_a_layer_that_stands_in_two_places_stays_one_layer():
    model = Model()
    model.layers[1] = model.layers[0]
    model.again = model.layers[0].query
    assert quantize_linears(model) == ALL[:2]
    assert type(model.again) is Int8Linear
    assert model.again is model.layers[0].query is model.layers[1].query
    assert names_of(model, nn.Linear) == ["classifier"]


def test_group_size_is_per_group_only():
    model = Model()
    quantize_linears(model, "per_group", group_size=4)
    assert model.layers[0].query.scale.shape == (8, 2)
    assert quantize_linears(Model(), PerGroup(2)) == ALL
    with pytest.raises(ConfigError, match="got 4 with 'per_channel'"):
        quantize_linears(Model(), group_size=4)


@pytest.mark.parametrize("damage", ["nan", "group", "hook", "meta"])
def test_a_model_that_cannot_be_converted_is_left_unchanged(damage):
    model = Model()
    granularity = PerGroup(4)
    last = model.layers[1].value
    if damage == "nan":
        last.weight.data[0, 0] = float("nan")
    elif damage == "group":
        granularity = PerGroup(3)
    elif damage == "hook":
        last.register_forward_hook(lambda *a: None)
    else:
        last.to("meta")
    with pytest.raises(ConfigError) as caught:
        quantize_linears(model, granularity)
    expected = {
        "nan": "quantization of layers.1.value: weight must be finite to be quantized",
        "group": "quantization of layers.0.query: group_size must divide in_features; got"
        " group_size 3, in_features 8",
        "hook": "quantization of layers.1.value: the layer must carry no module hooks; got 1",
        "meta": "quantization of layers.1.value: weight must be (out_features, in_features) float,"
        " with data; got (8, 8) torch.float32 on meta",
    }
    assert expected[damage] in str(caught.value)
    assert isinstance(caught.value, UnsupportedError) == (damage == "hook")
    assert not names_of(model, Int8Linear)


def test_float_weights_are_freed():
    model = Model()
    float_weights = [weakref.ref(model.get_submodule(name).weight) for name in ALL]
    quantize_linears(model)
    gc.collect()
    assert [ref() for ref in float_weights] == [None] * 4


def test_dequantize_gives_the_same_outputs_back():
    model = Model().to(torch.bfloat16).float()
    quantize_linears(model, skip=["layers.0.value"])
    expected = model(TOKENS)
    assert dequantize_linears(model) == [ALL[0], *ALL[2:]]
    assert not names_of(model, Int8Linear)
    assert_close(model(TOKENS), expected, k=8)
    assert dequantize_linears(model) == []


def test_state_dict_of_a_converted_model_loads_into_another():
    model, other = Model(), Model()
    other.layers[0].query.weight.data.mul_(2)
    for each in (model, other):
        quantize_linears(each)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(TOKENS), model(TOKENS))


def test_gradients_reach_through_a_converted_model_to_what_trains():
    model = Model()
    quantize_linears(model)
    model(TOKENS).sum().backward()
    assert model.embed.weight.grad.abs().sum() > 0
    assert model.layers[0].norm.weight.grad is not None
    assert all(
        model.get_submodule(name).bias is None or model.get_submodule(name).bias.grad is None
        for name in ALL
    )
