"""Factors as operands, on the emulated device."""

from types import SimpleNamespace

import pytest
import torch
from emulated import EmulatedBackend
from rows import DTYPES, HALVES, random_rows

from ftrt.kernels.backend import launch, use_backend
from ftrt.kernels.catalog import PACK_FACTOR, pack_factor_grid
from ftrt.ops import pack_int8

SOURCES = ("float32", "float16", "bfloat16")
SCALING = 2 / 3
SIZES = [(1, 1), (7, 8), (33, 16), (65, 17), (40, 64), (3, 256)]


def padded(count):
    return -(-count // 16) * 16


def run(factor, element, *, weight=None, outliers=None, right=True, transposed=True, seed=0):
    """What the kernel writes for a factor (columns, rank); what it leaves alone is NaN."""
    columns, rank = factor.shape
    count = 0 if outliers is None else outliers.numel()
    packed = None if weight is None else pack_int8(weight)
    width = padded(count) + padded(rank)
    dtype = DTYPES[element]
    out = SimpleNamespace(
        right=torch.full((columns, width + 8), float("nan"), dtype=dtype),
        transposed=torch.full((rank, columns + 5), float("nan"), dtype=dtype),
    )
    source = next(name for name, dtype in DTYPES.items() if dtype == factor.dtype)
    with use_backend(EmulatedBackend(seed)):
        launch(
            PACK_FACTOR.variant(FTRT_SOURCE=source, FTRT_ELEMENT=element),
            pack_factor_grid(columns),
            0,
            *(factor, factor.stride(0), factor.stride(1), columns, rank, SCALING),
            *(packed, 0 if packed is None else packed.shape[1], outliers, count),
            *(out.right if right else None, out.right.stride(0)),
            *(out.transposed if transposed else None, out.transposed.stride(0)),
        )
    return out


def check(out, factor, element, weight=None, outliers=None):
    columns, rank = factor.shape
    scaled = (factor.float() * SCALING).to(DTYPES[element])
    count = 0 if outliers is None else outliers.numel()
    first, width = padded(count), padded(count) + padded(rank)
    if outliers is not None:
        assert torch.equal(out.right[:, :count].float(), weight[:, outliers].float())
    assert not out.right[:, count:first].any()
    assert torch.equal(out.right[:, first : first + rank], scaled)
    assert not out.right[:, first + rank : width].any()
    assert out.right[:, width:].isnan().all()
    assert torch.equal(out.transposed[:, :columns], scaled.t())
    assert out.transposed[:, columns:].isnan().all()


@pytest.mark.parametrize("element", HALVES)
@pytest.mark.parametrize("source", SOURCES)
def test_a_factor_of_any_size_lying_either_way(source, element):
    for columns, rank in SIZES:
        factor = random_rows(columns, rank, source)
        lying = factor.t().contiguous().t()

        check(run(factor, element), factor, element)
        check(run(lying, element), factor, element)


@pytest.mark.parametrize("element", HALVES)
@pytest.mark.parametrize("count", [1, 16, 17])
def test_the_weights_of_outliers_stand_in_front(element, count):
    weight = random_rows(50, 71, "int8")
    outliers = torch.arange(count) * 4 + 3
    factor = random_rows(50, 9, "float32", seed=1)

    out = run(factor, element, weight=weight, outliers=outliers)

    check(out, factor, element, weight, outliers)


def test_one_of_the_two_alone():
    factor = random_rows(40, 9, "bfloat16")
    both = run(factor, "bfloat16")

    right = run(factor, "bfloat16", transposed=False)
    transposed = run(factor, "bfloat16", right=False, seed=1)

    assert torch.equal(right.right[:, :16], both.right[:, :16])
    assert right.transposed.isnan().all()
    assert torch.equal(transposed.transposed[:, :40], both.transposed[:, :40])
    assert transposed.right.isnan().all()
