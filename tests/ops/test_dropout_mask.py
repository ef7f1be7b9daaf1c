"""The dropout mask is the documented hash, and drops what it says."""

import pytest
import torch
from op_subjects import COMPUTES, kept, layer_of, randn

import ftrt.nn.low_rank as low_rank
from ftrt.nn import lora_forward
from ftrt.ops import draw_seed
from ftrt.ops.dropout import dropout_mask

DEVICES = ["cpu", *["cuda"] * torch.cuda.is_available()]
SEEDS = [0, 1, 2**31, 2**32 - 1, 2**32, 0x123456789ABCDEF1, 2**63 - 1]


@pytest.mark.parametrize("seed", SEEDS)
def test_mask_is_the_documented_hash(seed):
    for dropout in (0.0, 0.1, 0.5, 0.999):
        assert torch.equal(
            dropout_mask(torch.tensor(seed), 13, 21, dropout), kept(seed, 13, 21, dropout)
        )


def test_some_rows_of_a_mask_are_those_of_the_whole():
    whole = dropout_mask(torch.tensor(SEEDS[-2]), 40, 21, 0.5)
    part = dropout_mask(torch.tensor(SEEDS[-2]), 13, 21, 0.5, first_row=17)
    assert torch.equal(part, whole[17:30])


def test_the_hash_has_the_values_of_murmurhash3():
    # as other implementations of fmix32 have them
    from op_subjects import mixed

    assert (mixed(0), mixed(1), mixed(0xFFFFFFFF)) == (0, 0x514E28B7, 0x81F16F39)


@pytest.mark.parametrize("dropout", [0.01, 0.1, 0.5, 0.9])
def test_kept_share_is_one_minus_dropout_overall_in_rows_and_in_columns(dropout):
    rows, columns = 1000, 1024
    mask = dropout_mask(torch.tensor(7), rows, columns, dropout).double()
    deviation = (dropout * (1 - dropout)) ** 0.5
    for share, count in (
        (mask.mean(), mask.numel()),
        (mask.mean(1), columns),
        (mask.mean(0), rows),
    ):
        # 5 standard deviations of a binomial: exceeded once in 1.7 million draws
        assert (share - (1 - dropout)).abs().max() < 5 * deviation / count**0.5


def test_masks_of_two_seeds_two_rows_and_two_columns_are_unrelated():
    half = [dropout_mask(torch.tensor(s), 400, 400, 0.5).double() - 0.5 for s in (5, 6, 5 + 2**32)]
    pairs = [
        (half[0], half[1]),
        (half[0], half[2]),
        (half[0][1:], half[0][:-1]),
        (half[0][:, 1:], half[0][:, :-1]),
    ]
    for left, right in pairs:
        assert abs((left * right).mean()) * 4 < 5 / left.numel() ** 0.5


@pytest.mark.parametrize("device", DEVICES)
def test_seeds_are_drawn_on_the_device_by_its_global_generator(device):
    torch.manual_seed(3)
    first, second = draw_seed(device), draw_seed(device)
    torch.manual_seed(3)
    assert first.dtype == torch.int64 and first.shape == () and first.device.type == device
    assert draw_seed(device) == first and draw_seed(device) == second and first != second


def test_a_layer_draws_its_seed_where_x_is(monkeypatch):
    drawn = []
    monkeypatch.setattr(low_rank, "draw_seed", lambda device: drawn.append(device))
    monkeypatch.setattr(low_rank, "lora_linear", lambda x, *arguments, **options: x)
    monkeypatch.setattr(low_rank, "computed_dtype", lambda x: x.dtype)
    x = torch.ones(2, 4, device="meta")
    lora_forward(torch.nn.Linear(4, 4).requires_grad_(False), x, x, x.t(), 1.0, dropout=0.5)
    assert drawn == [x.device]


@pytest.mark.parametrize("compute", COMPUTES)
def test_the_op_drops_by_that_hash(isa, compute):
    # With a = I, b = I and no weight the op is drop(x) itself.
    layer = layer_of(compute, 16, 16, 16, dropout=0.25, bias=False)
    for tensor in (layer.qweight, layer.float_weight):
        tensor.zero_()
    layer.a, layer.b = torch.eye(16), torch.eye(16)
    x = randn(40, 16).abs() + 1
    y = layer(x)
    mask = kept(layer.seed.item(), 40, 16, 0.25)
    assert torch.equal(y != 0, mask)
    assert torch.allclose(y, 0.75 * x * mask / 0.75, rtol=1e-5)
