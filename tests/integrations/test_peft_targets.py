import peft
import pytest
import torch
from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from ftrt.errors import ConfigError
from ftrt.integrations.peft_targets import peft_targets, resolve_targets, shortest_suffixes
from ftrt.quantization.convert import quantize_linears


@pytest.fixture(scope="module")
def bert():
    config = BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=8,
    )
    return BertForSequenceClassification(config)


@pytest.fixture(scope="module")
def llama():
    config = LlamaConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=12,
    )
    return LlamaForCausalLM(config)


def selected_by_peft(model, target_modules, modules_to_save=None):
    config = peft.LoraConfig(target_modules=target_modules, modules_to_save=modules_to_save)
    return [n for n, _ in model.named_modules() if n and check_target_module_exists(config, n)]


def test_all_linear_leaves_out_new_modules(bert):
    names = resolve_targets(bert, "all-linear", new_modules=["classifier"])
    assert len(names) == 2 * 6 + 1  # six linear layers in each block, and the pooler
    assert "classifier" not in names


def test_all_linear_leaves_out_the_output_embeddings(llama):
    names = resolve_targets(llama, None)
    assert len(names) == 2 * 7
    assert "lm_head" not in names


def test_an_explicit_target_may_be_the_output_head(llama):
    assert resolve_targets(llama, ["lm_head"]) == ["lm_head"]


def test_int8_layers_are_the_same_targets_as_float_ones(llama):
    import copy

    int8 = copy.deepcopy(llama)
    quantize_linears(int8, "per_channel", [])
    assert resolve_targets(int8, ["q_proj", "up_proj"]) == resolve_targets(
        llama, ["q_proj", "up_proj"]
    )


@pytest.mark.parametrize(
    ("targets", "suffixes"),
    [
        (["q_proj"], ["q_proj"]),
        (["self_attn.q_proj", "v_proj"], ["q_proj", "v_proj"]),
        (["layers.1.self_attn.q_proj"], ["1.self_attn.q_proj"]),
    ],
)
def test_stored_suffixes_select_exactly_the_targets(llama, targets, suffixes):
    names = resolve_targets(llama, targets)
    stored = peft_targets(llama, names)
    assert selected_by_peft(llama, stored) == names
    if targets != ["layers.1.self_attn.q_proj"]:
        assert stored == suffixes
    else:
        assert stored == ["layers.1.self_attn.q_proj"]  # an ending never starts with a bare index


def test_all_linear_is_stored_as_a_few_readable_names(bert, llama):
    names = resolve_targets(bert, None, new_modules=["classifier"])
    assert peft_targets(bert, names) == ["dense", "key", "query", "value"]
    assert selected_by_peft(bert, ["dense", "key", "query", "value"], ["classifier"]) == names
    stored = peft_targets(llama, resolve_targets(llama, None))
    assert stored == [
        "down_proj",
        "gate_proj",
        "k_proj",
        "o_proj",
        "q_proj",
        "up_proj",
        "v_proj",
    ]


def test_suffixes_tell_like_named_layers_apart():
    names = ["a.dense", "b.0.dense"]
    assert shortest_suffixes(names, ["c.dense", "a", "b", "b.0"]) == ["a.dense", "b.0.dense"]
    assert shortest_suffixes(["x.0", "x.1"], ["x", "y.0", "y.1"]) == ["x.0", "x.1"]
    assert shortest_suffixes(["q", "m.q"], ["m"]) == ["q"]


def test_a_name_that_ends_another_is_stored_as_a_regular_expression():
    model = nn.ModuleDict(
        {"dense": nn.Linear(2, 2), "x": nn.ModuleDict({"dense": nn.Linear(2, 2)})}
    )
    stored = peft_targets(model, ["dense"])
    assert stored == "dense"
    assert selected_by_peft(model, stored) == ["dense"]


def test_a_module_that_ends_like_a_new_one_is_left_alone():
    model = nn.ModuleDict(
        {"q": nn.Linear(2, 2), "pre_classifier": nn.Linear(2, 2), "classifier": nn.Linear(2, 2)}
    )
    assert resolve_targets(model, None, new_modules=["classifier"]) == ["q"]


def test_a_misspelt_target_is_an_error_with_the_nearest_name(llama):
    with pytest.raises(ConfigError) as caught:
        resolve_targets(llama, ["q_porj"], where="method 'lora': targets")
    assert str(caught.value) == (
        "method 'lora': targets: no linear layer is called 'q_porj'; did you mean 'q_proj'?"
    )


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([], "targets: must name at least one layer; got []"),
        (["classifier"], "targets: must name layers that are not trained whole; classifier are"),
        ("nothing.*", "the regular expression must match a layer's full name; 'nothing.*' matches"),
    ],
)
def test_targets_that_select_nothing_are_errors(bert, targets, message):
    with pytest.raises(ConfigError, match="targets: ") as caught:
        resolve_targets(bert, targets, new_modules=["classifier"])
    assert message in str(caught.value)


def test_a_model_without_linear_layers_is_an_error():
    with pytest.raises(ConfigError, match="the model has no linear layer beside its output head"):
        resolve_targets(nn.Sequential(nn.Embedding(2, 2)), "all-linear")


def test_a_regular_expression_selects_by_full_name(llama):
    assert resolve_targets(llama, r".*\.1\..*q_proj") == ["model.layers.1.self_attn.q_proj"]


def test_targets_of_an_adapted_model_keep_their_own_names(llama):
    import copy

    model = peft.get_peft_model(copy.deepcopy(llama), peft.LoraConfig(target_modules=["q_proj"]))
    base = model.get_base_model()
    assert resolve_targets(base, None) == resolve_targets(llama, None)
    assert peft_targets(base, resolve_targets(base, ["q_proj"])) == ["q_proj"]
    assert torch.is_grad_enabled()
