import pytest
import torch
from torch import nn

from ftrt.errors import UsageError
from ftrt.nn import Int8Linear, dense_weight, is_linear, linear_names
from ftrt.quantization import PerChannel


class Wrapper(nn.Module):
    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer


def test_only_the_two_exact_types_are_linear():
    class Sub(nn.Linear):
        pass

    assert is_linear(nn.Linear(2, 3)) and is_linear(Int8Linear(2, 3))
    assert not is_linear(Sub(2, 3)) and not is_linear(nn.Conv1d(2, 3, 1))


def test_dense_weight_follows_wrappers():
    layer = nn.Linear(4, 3)
    int8 = Int8Linear.from_linear(layer, PerChannel())
    assert dense_weight(layer) is layer.weight
    assert dense_weight(Wrapper(Wrapper(layer))) is layer.weight
    assert torch.equal(dense_weight(Wrapper(int8)), int8.qweight * int8.scale)
    with pytest.raises(UsageError, match=r"dense_weight: must be given a linear.*; got ReLU"):
        dense_weight(nn.ReLU())


def test_linear_names_leave_out_the_head_and_what_is_excluded():
    model = nn.ModuleDict(
        {
            "a": nn.Linear(2, 2),
            "block": nn.ModuleDict({"q": Int8Linear(2, 2), "norm": nn.LayerNorm(2)}),
            "lm_head": nn.Linear(2, 5),
        }
    )
    assert linear_names(model) == ["a", "block.q"]
    assert linear_names(model, exclude=["block"]) == ["a"]
    assert linear_names(model, exclude=["q"]) == ["a"]
    model.get_output_embeddings = lambda: model["a"]
    assert linear_names(model) == ["block.q"]
