"""Int8 rows, with RMSNorm and SwiGLU in front, on the emulated device."""

from types import SimpleNamespace

import pytest
import torch
from emulated import EmulatedBackend
from rows import DTYPES, generator, quantized, random_rows, unaligned, untouched

from ftrt.kernels.backend import launch, use_backend
from ftrt.kernels.catalog import (
    QUANTIZE_ROWS,
    quantize_rows_grid,
    quantize_rows_shared_bytes,
)
from ftrt.ops import quantize_per_token
from ftrt.testing.tolerances import assert_close

ELEMENTS = ("float32", "float16", "bfloat16")
# A row that a warp's registers hold, one that a block's hold, and one that is read again.
LENGTHS = {"float32": (700, 1300, 4100), "float16": (1500, 2100, 8200)}
LENGTHS["bfloat16"] = LENGTHS["float16"]
EPSILON = 1e-5


def run(x, *, front="none", x2=None, weight=None, column_scale=None, outliers=None, q=None, seed=0):
    """What the kernel writes: q, scale and normalized."""
    rows, features = x.shape
    element = next(name for name, dtype in DTYPES.items() if dtype == x.dtype)
    out = SimpleNamespace(
        q=torch.empty(rows, features, dtype=torch.int8) if q is None else q,
        scale=torch.full((rows,), -1.0),
        normalized=torch.empty(rows, features, dtype=x.dtype),
    )
    count = 0 if outliers is None else outliers.numel()
    with use_backend(EmulatedBackend(seed)):
        launch(
            QUANTIZE_ROWS.variant(FTRT_ELEMENT=element, FTRT_FRONT=front),
            quantize_rows_grid(rows, features, element),
            quantize_rows_shared_bytes(features, count),
            *(x, x.stride(0), x2, weight, EPSILON, column_scale, outliers, count),
            *(rows, features, out.q, out.q.stride(0), out.scale, out.normalized),
        )
    return out


def check(out, values):
    q, scale = quantized(values)
    assert torch.equal(out.q, q)
    assert torch.equal(out.scale, scale)


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("features", [1, 7, 65, 111, 128, 520])
@pytest.mark.parametrize("rows", [1, 7, 17])
def test_rows_of_any_size_and_alignment(element, features, rows):
    x = random_rows(rows, features, element)
    q = unaligned(torch.zeros(rows, features, dtype=torch.int8))

    check(run(x), x.float())
    check(run(unaligned(x), q=q), x.float())
    assert untouched(q)


@pytest.mark.parametrize("element", ELEMENTS)
def test_a_row_is_a_warps_or_a_blocks_and_may_be_longer_than_its_registers(element):
    for features in LENGTHS[element]:
        x = random_rows(5, features, element)
        column_scale = torch.rand(features, generator=generator(1))
        outliers = torch.tensor([0, 31, 32, 33, features - 1])

        out = run(x, column_scale=column_scale, outliers=outliers)

        check(out, (x.float() * column_scale).index_fill(1, outliers, 0))
        assert torch.equal(out.normalized, x)


@pytest.mark.parametrize("element", ELEMENTS)
def test_outliers_may_be_whatever_they_are(element):
    x = random_rows(6, 130, element)
    outliers = torch.tensor([5, 63, 64, 129])
    x[0, 5], x[1, 64], x[2, 129], x[3, 63] = 1e4, float("nan"), float("inf"), -1e4

    check(run(x, outliers=outliers), x.float().index_fill(1, outliers, 0))


@pytest.mark.parametrize("element", ELEMENTS)
def test_a_row_that_is_zero_or_not_finite(element):
    x = random_rows(5, 300, element)
    x[1] = 0
    x[2, 299], x[3, 0], x[4, 150] = float("inf"), float("nan"), -float("inf")

    out = run(x)

    assert out.scale[1] == 1 and not out.q[1].any()
    assert out.scale[2] == out.scale[4] == float("inf") and out.scale[3].isnan()
    assert not out.q[2:].any()
    check(run(x[:2]), x[:2].float())


def test_all_is_as_the_op_on_a_cpu_down_to_the_smallest_floats():
    x = random_rows(40, 200, "float32") * torch.logspace(-46, 38, 40).unsqueeze(1)
    out = run(x)

    q, scale = quantize_per_token(x)

    assert torch.equal(out.scale, scale)
    # The reference in torch ops divides, the CPU's kernel and this one multiply where they can.
    assert (out.q.int() - q.int()).abs().max() <= 1
    tiny = scale < torch.finfo(torch.float32).tiny
    assert tiny.any() and torch.equal(out.q[tiny], q[tiny])


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("features", [7, 520, 8200])
def test_rms_norm_rounds_as_llama_does(element, features):
    x = random_rows(3, features, element)
    weight = random_rows(1, features, element, seed=1)[0]
    outliers = torch.tensor([3])

    out = run(x, front="rms_norm", weight=weight, outliers=outliers)

    wide = x.double()
    root = torch.sqrt(wide.square().mean(1, keepdim=True) + EPSILON)
    assert_close(out.normalized, weight * (wide / root).to(x.dtype), what="normalized")
    check(out, out.normalized.float().index_fill(1, outliers, 0))


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("features", [7, 520, 8200])
def test_swiglu_is_rounded_once(element, features):
    both = random_rows(3, 2 * features, element) * 4
    gate, up = both[:, :features], both[:, features:]
    gate[0, 0] = -200

    out = run(gate, front="swiglu", x2=up)

    wide = torch.nn.functional.silu(gate.double()) * up.double()
    assert_close(out.normalized, wide, what="normalized")
    check(out, out.normalized.float())


def test_nothing_is_launched_without_rows():
    run(torch.empty(0, 8))


def test_the_order_of_threads_does_not_matter():
    x = random_rows(3, 4200, "bfloat16")
    weight = random_rows(1, 4200, "bfloat16", seed=1)[0]
    outliers = torch.tensor([3, 4000])
    first, *others = (
        run(x, front="rms_norm", weight=weight, outliers=outliers, seed=seed) for seed in range(4)
    )

    for other in others:
        assert torch.equal(other.normalized, first.normalized)
        assert torch.equal(other.q, first.q) and torch.equal(other.scale, first.scale)
