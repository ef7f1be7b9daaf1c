import pytest
import torch

from ftrt.errors import ConfigError
from ftrt.quantization import PerChannel, PerGroup, choose_qparams, dequantize, quantize
from ftrt.quantization.granularity import parse_granularity


def weight(out_features=7, in_features=12, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(out_features, in_features, generator=generator).to(dtype)


@pytest.mark.parametrize("granularity", [PerChannel(), PerGroup(4), PerGroup(1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_no_weight_is_off_by_more_than_half_a_step(granularity, dtype):
    w = weight(dtype=dtype)
    scale = choose_qparams(w, granularity)
    back = dequantize(quantize(w, scale), scale, torch.float64)
    step = scale.double().repeat_interleave(12 // scale.shape[1], 1)
    assert ((back - w.double()).abs() <= step / 2 * (1 + 1e-6)).all()


def test_per_channel_is_llm_int8():
    w = weight()
    scale = choose_qparams(w, PerChannel())
    absmax = w.abs().amax(1)
    assert scale.dtype == torch.float32 and scale.shape == (7, 1)
    assert torch.equal(scale[:, 0], absmax / 127)
    assert torch.equal(quantize(w, scale), (w * (127 / absmax)[:, None]).round().to(torch.int8))


def test_per_group_is_per_channel_of_each_group():
    w = weight()
    scale = choose_qparams(w, PerGroup(4))
    q = quantize(w, scale)
    for group in range(3):
        part = w[:, 4 * group : 4 * group + 4]
        alone = choose_qparams(part, PerChannel())
        assert torch.equal(scale[:, group], alone[:, 0])
        assert torch.equal(q[:, 4 * group : 4 * group + 4], quantize(part, alone))


def test_quantizing_twice_changes_nothing():
    scale = choose_qparams(weight(), PerChannel())
    q = quantize(weight(), scale)
    back = dequantize(q, scale)
    assert torch.equal(quantize(back, choose_qparams(back, PerChannel())), q)


@pytest.mark.parametrize("value", [0.0, 1e-44])
def test_a_row_of_zeros_or_of_less_than_a_step_becomes_zeros(value):
    w = weight()
    w[3] = value
    scale = choose_qparams(w, PerChannel())
    back = dequantize(quantize(w, scale), scale)
    assert torch.equal(back[3], torch.zeros(12)) and back.isfinite().all()


def test_the_largest_finite_weight_survives():
    w = torch.full((1, 3), torch.finfo(torch.float32).max)
    scale = choose_qparams(w, PerChannel())
    assert torch.equal(quantize(w, scale), torch.full((1, 3), 127, dtype=torch.int8))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_an_error_naming_the_layer(bad):
    w = weight()
    w[2, 5] = bad
    with pytest.raises(ConfigError) as caught:
        choose_qparams(w, PerChannel(), where="quantization of encoder.query")
    assert str(caught.value) == (
        "quantization of encoder.query: weight must be finite to be quantized; got 1 NaN or"
        " infinite of 84. The checkpoint is damaged, or its training diverged"
    )


def test_a_group_size_that_does_not_divide_is_an_error_naming_the_layer():
    with pytest.raises(ConfigError) as caught:
        choose_qparams(weight(), PerGroup(5), where="quantization of encoder.query")
    assert str(caught.value) == (
        "quantization of encoder.query: group_size must divide in_features; got group_size 5,"
        " in_features 12; choose another group_size, or skip the layer"
    )


@pytest.mark.parametrize(
    "bad", [torch.ones(3), torch.ones(2, 2, dtype=torch.int8), torch.ones(2, 2, device="meta")]
)
def test_what_is_no_float_matrix_is_an_error(bad):
    with pytest.raises(
        ConfigError, match=r"weight must be \(out_features, in_features\) float, wi"
    ):
        choose_qparams(bad, PerChannel())


def test_granularities_by_name():
    assert parse_granularity("per_channel") == PerChannel()
    assert parse_granularity("per_group", 32) == PerGroup(32)
    assert parse_granularity(PerGroup(4)) == PerGroup(4)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("per_chanel",), "got 'per_chanel'; did you mean 'per_channel'?"),
        (("per_group",), "per_group: group_size must be given; got None"),
        (
            ("per_channel", 32),
            "group_size: must be given with granularity 'per_group' only; got 32 with"
            " 'per_channel'",
        ),
        (("per_group", 0), "PerGroup: group_size must be at least 1; got 0"),
    ],
)
def test_a_wrong_granularity_is_an_error(arguments, text):
    with pytest.raises(ConfigError) as caught:
        parse_granularity(*arguments)
    assert text in str(caught.value)
