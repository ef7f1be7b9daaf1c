"""The method `example` against the formula in float64, and through ftrt's conformance kit."""

import math

import pytest
import torch
from ftrt.testing import check_method
from pydantic import ValidationError
from torch import nn

from ftrt_example.example import Example, ExampleConfig


def test_conformance():
    check_method(Example)


@pytest.mark.parametrize(("rank", "alpha"), [(1, 1.0), (4, 8.0), (17, 0.5)])
def test_output_follows_the_formula(rank, alpha):
    torch.manual_seed(0)
    base = nn.Linear(7, 5).requires_grad_(False)
    adapter = Example(ExampleConfig(rank=rank, alpha=alpha)).adapter(base)
    nn.init.normal_(adapter.lora_b)
    x = torch.randn(3, 2, 7)

    weight = base.weight.double()
    a, b = adapter.lora_a.double(), adapter.lora_b.double()
    expected = x.double() @ (weight + alpha / math.sqrt(rank) * b @ a).T + base.bias.double()

    torch.testing.assert_close(adapter(base, x).double(), expected, rtol=1e-4, atol=1e-5)


def test_merging_adds_what_the_adapter_adds():
    torch.manual_seed(0)
    base = nn.Linear(7, 5, bias=False).requires_grad_(False)
    adapter = Example(ExampleConfig(rank=2)).adapter(base)
    nn.init.normal_(adapter.lora_b)
    x = torch.randn(3, 7)

    merged = x @ (base.weight + adapter.delta_weight()).T

    torch.testing.assert_close(merged, adapter(base, x), rtol=1e-4, atol=1e-5)


def test_rank_must_be_positive():
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        ExampleConfig(rank=0)
