"""What calibration makes of batches that are not finite, or are no list of batches."""

import math

import pytest
import torch
from torch import nn

from ftrt.errors import UsageError
from ftrt.quantization import calibrate, quantize_linears


def test_an_input_that_is_not_finite_falls_back():
    model = nn.ModuleDict({"q": nn.Linear(8, 8), "k": nn.Linear(8, 8)})
    model.forward = lambda x: model["k"](model["q"](x) / 0)
    quantize_linears(model, compute="w8a8")
    fit, overflown = calibrate(model, [torch.randn(4, 8)])
    assert fit.compute == "w8a8"
    assert (overflown.compute, overflown.reason, overflown.error) == (
        "w8a16", "an input that is not finite reached it", None,
    )  # fmt: skip


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_batches_that_are_not_finite_are_an_error_and_change_nothing(value):
    model = nn.ModuleDict({"q": nn.Linear(8, 8)})
    model.forward = lambda x: model["q"](x)
    quantize_linears(model, compute="w8a8")
    x = torch.randn(4, 8)
    x[0, 0] = value
    with pytest.raises(UsageError) as caught:
        calibrate(model, [x])
    assert str(caught.value) == (
        "calibrate: the inputs of the layers must be finite; got NaN or infinity in all 1 of them,"
        " q the first. Check the batches and the model's weights"
    )
    assert model["q"].compute == "w8a8"


@pytest.mark.parametrize("batch", [{"x": torch.ones(2, 8)}, torch.ones(2, 8), "x"])
def test_a_single_batch_in_the_place_of_many_is_an_error(batch):
    model = nn.ModuleDict({"q": nn.Linear(8, 8)})
    quantize_linears(model, compute="w8a8")
    with pytest.raises(UsageError) as caught:
        calibrate(model, batch)
    assert str(caught.value) == (
        "calibrate: batches must be an iterable of batches; got a single"
        f" {type(batch).__name__}. Write [batch]"
    )
