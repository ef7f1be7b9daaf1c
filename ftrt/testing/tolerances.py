"""How far apart two correct computations may be: one table by dtype, grown by the number of
terms."""

__all__ = ["assert_close", "tolerance"]

import math

import torch
from torch import Tensor

# Roundings of one product and one sum, twice: the two sides round differently.
_ROUNDINGS = 4


def tolerance(dtype: torch.dtype, k: int = 1) -> tuple[float, float]:
    """(rtol, atol) for a sum of `k` products in `dtype`: 4 · eps · √k.

    Rounding errors of k terms add up like a random walk, hence √k. atol is for results of size 1;
    multiply it by their typical size, as `assert_close` does.

    Args:
        dtype: floating point; of the less precise side.
        k: terms in the longest sum, in_features of a linear layer.
    """
    eps = torch.finfo(dtype).eps
    bound = _ROUNDINGS * eps * math.sqrt(max(k, 1))
    return bound, bound


def assert_close(actual: Tensor, expected: Tensor, *, k: int = 1, what: str = "") -> None:
    """Assert |actual - expected| <= atol · rms(expected) + rtol · |expected| everywhere.

    rtol and atol are `tolerance` of the less precise of the two dtypes, so `expected` may be
    float64 where `actual` is not. The root mean square stands for the size of the terms, which may
    cancel in one place. It makes the bound independent of scale: where all of `expected` is 0,
    `actual` must be. NaNs never agree, equal infinities do.

    Args:
        actual: any shape.
        expected: the same shape.
        k: terms in the longest sum behind a value.
        what: what is compared, for the message.

    Raises:
        AssertionError: with the first place that differs, the worst one, and how many differ.
    """
    name = what or "values"
    if actual.shape != expected.shape:
        raise AssertionError(
            f"{name}: must have the same shape; got {tuple(actual.shape)}, expected"
            f" {tuple(expected.shape)}"
        )
    coarse = max(actual.dtype, expected.dtype, key=_eps)
    got, want = actual.detach().cpu().double(), expected.detach().cpu().double()
    rtol, atol = tolerance(coarse, k) if coarse.is_floating_point else (0.0, 0.0)
    finite = want[want.isfinite()]
    atol *= finite.square().mean().sqrt().item() if finite.numel() else 0.0
    error = torch.where(got == want, 0.0, (got - want).abs())
    close = (error <= atol + rtol * want.abs()) & want.isfinite()
    bad = ~(close | (got == want))
    if not bad.any():
        return
    raise AssertionError(
        _describe(name, got, want, error, bad, f"rtol {rtol:.3g}, atol {atol:.3g}")
    )


def _eps(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps if dtype.is_floating_point else 0.0


def _describe(name: str, got: Tensor, want: Tensor, error: Tensor, bad: Tensor, bounds: str) -> str:
    first = tuple(bad.nonzero()[0].tolist())
    ranked = torch.where(bad, error.nan_to_num(nan=math.inf), -1.0)
    worst = tuple(int(i) for i in torch.unravel_index(ranked.argmax(), ranked.shape))
    places = {"first": first, "worst": worst}
    lines = [
        f"{place} at {list(index)}: got {got[index].item():.9g}, expected {want[index].item():.9g},"
        f" off by {error[index].item():.3g}"
        for place, index in places.items()
    ]
    count = f"{int(bad.sum())} of {bad.numel()} differ ({bounds})"
    return f"{name}: {count}; " + "; ".join(lines)
