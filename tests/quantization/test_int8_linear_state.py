"""Int8Linear holds panels and speaks row-major: state dicts, memory, copies, w8a8."""

import copy
import io

import pytest
import torch
from torch import nn

from ftrt.errors import UsageError
from ftrt.ops import pack_int8
from ftrt.quantization import Int8Linear, PerChannel, PerGroup, choose_qparams, quantize
from ftrt.quantization import affine as affine_module

SIZES = [(1, 1), (7, 12), (16, 4), (17, 5), (33, 70), (48, 64)]


def layer_of(out_features=7, in_features=12, *, granularity=None, bias=True, dtype=torch.float32):
    torch.manual_seed(0)
    linear = nn.Linear(in_features, out_features, bias=bias, dtype=dtype)
    return Int8Linear.from_linear(linear, granularity or PerChannel())


def row_major(layer):
    """A state dict as a plain layer with a row-major buffer would have it."""
    return {
        "qweight": layer.qweight.clone(),
        "scale": layer.scale.clone(),
        "bias": layer.bias.detach().clone(),
    }


def x_of(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("size", SIZES)
def test_qweight_is_what_was_quantized_and_stands_in_memory_once(size):
    torch.manual_seed(0)
    linear = nn.Linear(size[1], size[0])
    scale = choose_qparams(linear.weight, PerChannel())
    layer = Int8Linear.from_linear(linear, PerChannel())
    assert torch.equal(layer.qweight, quantize(linear.weight, scale))
    padded = -(-size[0] // 16) * 16 * -(-size[1] // 4) * 4
    tensors = [*layer.buffers(), *layer.parameters()]
    held = sum(t.untyped_storage().nbytes() for t in tensors if t is not layer.bias)
    assert held == padded + 4 * size[0]
    assert layer.weight is layer.packed
    assert not any(t.dim() == 2 and t.dtype == torch.int8 for t in vars(layer).values() if
                   isinstance(t, torch.Tensor))  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
def test_state_dict_round_trip_is_bit_equal_and_row_major(size):
    layer = layer_of(*size)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert sorted(state) == ["bias", "qweight", "scale"]
    assert state["qweight"].shape == size and torch.equal(state["qweight"], layer.qweight)
    fresh = Int8Linear(size[1], size[0])
    assert fresh.load_state_dict(state) == ([], [])
    assert torch.equal(fresh.packed, layer.packed) and torch.equal(fresh.scale, layer.scale)
    assert torch.equal(fresh(x_of(3, size[1])), layer(x_of(3, size[1])))


def test_a_state_dict_of_a_row_major_layer_loads_below_a_prefix():
    layer = layer_of(17, 5)
    model = nn.ModuleDict({"q": Int8Linear(5, 17)})
    before = model["q"].packed
    model.load_state_dict({f"q.{name}": value for name, value in row_major(layer).items()})
    assert torch.equal(model["q"].packed, layer.packed)
    # in place, as for every tensor that is not assigned
    assert model["q"].packed is before


def test_a_layer_on_meta_takes_a_state_dict_by_assignment():
    layer = layer_of(17, 5, dtype=torch.bfloat16)
    empty = Int8Linear(5, 17, device="meta", dtype=torch.bfloat16)
    state = row_major(layer)
    empty.load_state_dict(state, assign=True)
    assert torch.equal(empty.packed, layer.packed) and empty.scale is state["scale"]
    assert torch.equal(empty(x_of(3, 5)), layer(x_of(3, 5)))
    assert empty.to(torch.float32).float_dtype == torch.float32
    assert empty.to("cpu").to_linear().weight.dtype == torch.float32


def test_faults_of_a_state_dict_are_reported_as_torch_does():
    state = row_major(layer_of())
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "qweight"'):
        Int8Linear(12, 7).load_state_dict({k: v for k, v in state.items() if k != "qweight"})
    with pytest.raises(RuntimeError, match=r"size mismatch for qweight: .* shape \(7, 12\)"):
        Int8Linear(8, 7).load_state_dict(state)
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "packed"'):
        Int8Linear(12, 7).load_state_dict({**state, "packed": pack_int8(state["qweight"])})
    with pytest.raises(UsageError, match=r"qweight: must be torch.int8 in a state dict; got"):
        Int8Linear(12, 7).load_state_dict({**state, "qweight": state["qweight"].float()})


def test_from_quantized_keeps_scale_and_bias_and_refuses_what_does_not_fit():
    layer = layer_of(17, 5, granularity=PerGroup(5))
    again = Int8Linear.from_quantized(layer.qweight, layer.scale, layer.bias.detach())
    assert again.scale is layer.scale and torch.equal(again(x_of(3, 5)), layer(x_of(3, 5)))
    assert again.float_dtype == torch.float32
    with pytest.raises(UsageError) as caught:
        Int8Linear.from_quantized(layer.qweight, layer.scale.double())
    assert str(caught.value) == (
        "Int8Linear.from_quantized: qweight must be (out_features, in_features) int8 and scale"
        " (out_features, groups) float32; got (17, 5) torch.int8 and (17, 1) torch.float64"
    )


@pytest.mark.parametrize("granularity", [PerChannel(), PerGroup(5)])
def test_quantizing_a_few_rows_at_a_time_changes_nothing(granularity, monkeypatch):
    weight = x_of(23, 10)
    scale = choose_qparams(weight, granularity)
    qweight = quantize(weight, scale)
    monkeypatch.setattr(affine_module, "_CHUNK", 30)
    assert torch.equal(choose_qparams(weight, granularity), scale)
    assert torch.equal(quantize(weight, scale), qweight)


def test_w8a8_quantizes_x_per_token_forward_and_backward():
    layer, x = layer_of(33, 70), x_of(2, 9, 70)
    exact = layer(x)
    layer.set_compute("w8a8")
    assert 0 < (layer(x) - exact).norm() / exact.norm() < 1.5e-2
    got = x.clone().requires_grad_()
    grad = x_of(2, 9, 33)
    layer(got).backward(grad)
    want = grad @ layer.dequantize()
    assert 0 < (got.grad - want).norm() / want.norm() < 1.5e-2


def test_outlier_columns_leave_the_other_columns_their_precision():
    layer, x = layer_of(33, 70), x_of(64, 70)
    x[:, [3, 40]] *= 60
    exact = layer(x)
    layer.set_compute("w8a8")
    without = (layer(x) - exact).norm() / exact.norm()
    layer.set_compute("w8a8", [40, 3])
    assert layer.outlier_columns == (3, 40) and layer.outliers.tolist() == [3, 40]
    assert (layer(x) - exact).norm() / exact.norm() < without / 5
    layer.set_compute("w8a16")
    assert layer.outliers is None and torch.equal(layer(x), exact)


def test_how_a_layer_computes_is_copied_and_moved_but_is_no_state():
    layer = layer_of(33, 70)
    layer.set_compute("w8a8", [3])
    x = x_of(4, 70)
    other = copy.deepcopy(layer)
    assert torch.equal(other(x), layer(x)) and other.compute == "w8a8"
    assert sorted(layer.state_dict()) == ["bias", "qweight", "scale"]
    assert layer.to("meta").outliers.is_meta
    assert repr(other).endswith("bias=True, per_channel, w8a8, outliers=1)")


@pytest.mark.parametrize(
    ("compute", "outliers", "message"),
    [
        ("w4a4", (), "Int8Linear: compute must be one of w8a16, w8a8; got 'w4a4'"),
        (
            "w8a8",
            (12,),
            "Int8Linear: outliers must be columns below in_features, each once, with compute w8a8;"
            " got [12], in_features 12, compute 'w8a8'",
        ),
        ("w8a8", (3, 3), "got [3, 3], in_features 12, compute 'w8a8'"),
        ("w8a8", (-1,), "got [-1], in_features 12, compute 'w8a8'"),
        ("w8a16", (3,), "got [3], in_features 12, compute 'w8a16'"),
    ],
)
def test_a_compute_that_does_not_fit_is_an_error(compute, outliers, message):
    layer = layer_of()
    with pytest.raises(UsageError) as caught:
        layer.set_compute(compute, outliers)
    assert message in str(caught.value)
    assert layer.compute == "w8a16" and layer.outliers is None


def test_w8a8_needs_one_scale_per_output_feature():
    with pytest.raises(UsageError) as caught:
        layer_of(granularity=PerGroup(4)).set_compute("w8a8")
    assert str(caught.value) == (
        "Int8Linear: compute w8a8 needs one scale per output feature; got 3 groups. Quantize"
        " per_channel, or compute w8a16"
    )
