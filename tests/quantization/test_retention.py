"""How much of a delta survives int8: against float64, and where the answer is known."""

import pytest
import torch

from ftrt.quantization import PerChannel, choose_qparams, dequantize, quantize
from ftrt.quantization.retention import SKETCH, layer_retention, total_retention


def low_rank(shape, rank, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    b = torch.randn(shape[0], rank, generator=generator)
    a = torch.randn(rank, shape[1], generator=generator)
    return b @ a * (size / rank**0.5)


def weight_of(shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / 20


def score(weight, delta, **changes):
    merged = weight.float() + delta
    scale = choose_qparams(merged, PerChannel())
    return layer_retention("layer", weight, merged, quantize(merged, scale), scale)


def on_grid(weight):
    scale = choose_qparams(weight, PerChannel())
    return dequantize(quantize(weight, scale), scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "rank"), [((64, 96), 4), ((96, 40), 16), ((17, 31), 1), ((300, 280), 8)]
)
def test_the_scores_are_their_formulas(shape, rank, dtype):
    weight = weight_of(shape).to(dtype)
    delta = low_rank(shape, rank, 1e-3)
    found = score(weight, delta)
    merged = weight.float() + delta
    exact = (merged - weight.float()).double()
    change = on_grid(merged).double() - on_grid(weight.float()).double()
    error = change - exact
    rows = torch.linalg.svd(exact)[2][:rank]
    seen, seen_error = exact @ rows.T, error @ rows.T
    assert found.projection == pytest.approx(
        float((change * exact).sum() / exact.square().sum()), rel=1e-4
    )
    assert found.residual == pytest.approx(float(error.norm() / exact.norm()), rel=1e-4)
    expected = max(0.0, 1 - float(seen_error.square().sum() / seen.square().sum()))
    assert found.retained == pytest.approx(expected, abs=2e-3)


def test_a_large_delta_survives_and_a_tiny_one_does_not():
    weight = weight_of((256, 256))
    step = float(choose_qparams(weight, PerChannel()).mean())
    scores = [score(weight, low_rank((256, 256), 8, step * k)) for k in (1e-3, 1e-2, 0.1, 1, 10)]
    retained = [found.retained for found in scores]
    assert retained == sorted(retained)
    assert retained[0] == 0.0 and retained[-1] > 0.999
    # the reason why the projection is no score: it stays near 1 while the delta drowns
    assert scores[1].retained < 0.1 and scores[1].projection > 0.7
    # and why the residual is none: an adapter that works has one above 1
    assert scores[2].retained > 0.7 and scores[2].residual > 1


def test_what_the_score_says_is_what_outputs_show():
    """1 - retained is the relative squared error of D x on inputs that the adapter answers to."""
    weight, delta = weight_of((128, 160)), low_rank((128, 160), 4, 2e-4)
    found = score(weight, delta)
    merged = weight + delta
    change = on_grid(merged) - on_grid(weight)
    rows = torch.linalg.svd(delta)[2][:4]
    x = rows.T @ torch.randn(4, 4000, generator=torch.Generator().manual_seed(5))
    error = ((change - delta) @ x).square().sum() / (delta @ x).square().sum()
    assert 1 - found.retained == pytest.approx(float(error), rel=0.05)


def test_no_delta_is_nothing_to_lose():
    found = score(weight_of((8, 8)), torch.zeros(8, 8))
    assert (found.retained, found.projection, found.residual) == (1.0, 1.0, 0.0)


def test_a_delta_of_full_rank_is_measured_on_all_inputs():
    size = SKETCH + 20
    weight = weight_of((size, size))
    found = score(weight, torch.randn(size, size, generator=torch.Generator().manual_seed(2)) / 300)
    assert found.retained == pytest.approx(max(0, 1 - found.residual**2), abs=1e-6)


def test_layers_together_weigh_as_much_as_their_deltas():
    weight = weight_of((64, 64))
    large, small = (
        score(weight, low_rank((64, 64), 2, 1.0)),
        score(weight, low_rank((64, 64), 2, 1e-6)),
    )
    assert small.retained == 0.0
    assert total_retention([large, small]).retained == pytest.approx(large.retained, abs=1e-6)
    assert total_retention([]).retained == 1.0
    assert set(large.to_json()) == {"name", "retained", "projection", "residual", "delta_norm"}


def test_scores_are_the_same_on_every_call():
    weight, delta = weight_of((64, 96)), low_rank((64, 96), 4, 1e-3)
    torch.manual_seed(1)
    first = score(weight, delta)
    drawn = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(3)), "the global generator is left alone"
    assert first == score(weight, delta)
