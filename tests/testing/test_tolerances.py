import math

import pytest
import torch

from ftrt.testing.tolerances import assert_close, tolerance


def test_the_bound_grows_with_eps_and_the_root_of_k():
    rtol, atol = tolerance(torch.float32)
    assert rtol == atol == 4 * torch.finfo(torch.float32).eps
    assert tolerance(torch.float32, 100)[0] == pytest.approx(10 * rtol)
    assert tolerance(torch.bfloat16)[0] == pytest.approx(2**16 * rtol)


@pytest.mark.parametrize("size", [1e-20, 1.0, 1e20])
@pytest.mark.parametrize("k", [1, 64, 4096])
def test_a_float32_product_passes_and_a_bfloat16_one_does_not(size, k):
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(32, k, generator=generator, dtype=torch.float64) for _ in "xw")
    x, w = x.float() * size, w.float()
    expected = x.double() @ w.double().T
    assert_close(x @ w.T, expected, k=k)
    with pytest.raises(AssertionError):
        assert_close((x.bfloat16() @ w.bfloat16().T).float(), expected, k=k)


def test_a_failure_names_the_first_and_the_worst_place():
    expected = torch.ones(3, 4, dtype=torch.float64)
    actual = expected.float()
    actual[1, 2], actual[2, 0] = 1.5, 3.0
    with pytest.raises(AssertionError) as caught:
        assert_close(actual, expected, what="y")
    text = str(caught.value)
    assert text.startswith("y: 2 of 12 differ (rtol 4.77e-07, atol 4.77e-07); first at [1, 2]:")
    assert "first at [1, 2]: got 1.5, expected 1, off by 0.5" in text
    assert "worst at [2, 0]: got 3, expected 1, off by 2" in text


def test_shapes_must_agree():
    with pytest.raises(AssertionError) as caught:
        assert_close(torch.ones(3), torch.ones(3, 1))
    assert str(caught.value) == "values: must have the same shape; got (3,), expected (3, 1)"


def test_infinities_agree_and_nans_do_not():
    inf = torch.tensor([math.inf, 1.0])
    assert_close(inf, inf)
    with pytest.raises(AssertionError, match=r"first at \[0\]: got inf, expected -inf"):
        assert_close(inf, torch.tensor([-math.inf, 1.0]))
    nan = torch.tensor([math.nan])
    with pytest.raises(AssertionError, match="got nan, expected nan"):
        assert_close(nan, nan)


def test_integers_empty_and_zero_dimensional_tensors():
    assert_close(torch.tensor([1, 2]), torch.tensor([1, 2]))
    with pytest.raises(AssertionError):
        assert_close(torch.tensor([1, 2]), torch.tensor([1, 3]))
    assert_close(torch.empty(0, 3), torch.empty(0, 3))
    assert_close(torch.tensor(1.0), torch.tensor(1.0))
    with pytest.raises(AssertionError, match=r"first at \[\]: got 1, expected 2"):
        assert_close(torch.tensor(1.0), torch.tensor(2.0))


def test_zeros_are_expected_exactly():
    assert_close(torch.zeros(3), torch.zeros(3))
    with pytest.raises(AssertionError):
        assert_close(torch.full((3,), 1e-30), torch.zeros(3))
