"""Int8 rows and the low-rank branch from one read of x, on the emulated device."""

from types import SimpleNamespace

import pytest
import torch
from emulated import EmulatedBackend
from rows import (
    DTYPES,
    HALVES,
    dropout_arguments,
    dropped,
    generator,
    quantized,
    random_rows,
    unaligned,
    untouched,
)

from ftrt.kernels.backend import launch, use_backend
from ftrt.kernels.catalog import (
    QUANTIZE_PROJECT,
    quantize_project_cached_features,
    quantize_project_grid,
    quantize_project_shared_bytes,
)
from ftrt.testing.tolerances import assert_close

SCALING = 2.0
SIZES = [(1, 1), (7, 7), (17, 65), (16, 111), (65, 128), (7, 520), (33, 1111)]


def padded(count):
    return -(-count // 16) * 16


def run(
    x,
    a,
    *,
    column_scale=None,
    outliers=None,
    dropout=0.0,
    cached=0,
    q=None,
    quantizes=True,
    has_left=True,
    seed=0,
):
    """What the kernel writes: q, scale, hidden and left, where it is asked for."""
    rows, features = x.shape
    rank = a.shape[0]
    count = 0 if outliers is None else outliers.numel()
    element = next(name for name, dtype in DTYPES.items() if dtype == x.dtype)
    width = padded(count) + padded(rank)
    out = SimpleNamespace(
        q=torch.empty(rows, features, dtype=torch.int8) if q is None else q,
        scale=torch.full((rows,), -1.0),
        hidden=torch.full((rows, rank + count), float("nan")),
        left=torch.full((rows, width + 8), float("nan"), dtype=x.dtype),
    )
    with use_backend(EmulatedBackend(seed)):
        launch(
            QUANTIZE_PROJECT.variant(FTRT_ELEMENT=element),
            quantize_project_grid(rows),
            quantize_project_shared_bytes(features, count, cached),
            *(x, x.stride(0), column_scale, outliers, count, rows, features),
            *(out.q if quantizes else None, out.q.stride(0), out.scale if quantizes else None),
            *(a, a.stride(0), rank, *dropout_arguments(dropout)),
            *(out.hidden, out.hidden.stride(0)),
            *(out.left if has_left else None, out.left.stride(0), SCALING, cached),
        )
    return out


def check(out, x, a, *, column_scale=None, outliers=None, dropout=0.0):
    rank = a.shape[0]
    values = x.float() if column_scale is None else x.float() * column_scale
    apart = 0
    if outliers is not None:
        values = values.index_fill(1, outliers, 0)
        apart = padded(outliers.numel())
        exact = x[:, outliers]
        assert torch.equal(out.hidden[:, rank:], exact.float())
        assert torch.equal(out.left[:, : outliers.numel()], exact)
        assert not out.left[:, outliers.numel() : apart].any()
    q, scale = quantized(values)
    assert torch.equal(out.q, q) and torch.equal(out.scale, scale)
    h = dropped(x, dropout) @ a.double().T
    assert_close(out.hidden[:, :rank], h, k=x.shape[1], what="h")
    left = (out.hidden[:, :rank] * SCALING).to(x.dtype)
    assert torch.equal(out.left[:, apart : apart + rank], left)
    assert not out.left[:, apart + rank : apart + padded(rank)].any()
    assert out.left[:, apart + padded(rank) :].isnan().all(), "written behind its width"


@pytest.mark.parametrize("element", HALVES)
@pytest.mark.parametrize(("rows", "features"), SIZES)
def test_rows_of_any_size_and_alignment(element, rows, features):
    x = random_rows(rows, features, element)
    a = random_rows(8, features, element, seed=1)
    q = unaligned(torch.zeros(rows, features, dtype=torch.int8))

    check(run(x, a), x, a)
    check(run(unaligned(x), unaligned(a), q=q), x, a)
    assert untouched(q)


@pytest.mark.parametrize("element", HALVES)
@pytest.mark.parametrize("rank", [1, 8, 16, 17, 33, 64, 72, 256])
def test_any_rank_with_all_that_there_is(element, rank):
    x = random_rows(19, 700, element)
    a = random_rows(rank, 700, element, seed=1)
    options = {
        "column_scale": torch.rand(700, generator=generator(2)),
        "outliers": torch.tensor([0, 31, 32, 300, 301, 699]),
        "dropout": 0.25,
    }

    check(run(x, a, **options, cached=256), x, a, **options)


@pytest.mark.parametrize("cached", [0, 256, 512, 768, 1024])
@pytest.mark.parametrize("rank", [16, 80])
def test_what_stays_in_shared_memory_changes_nothing(cached, rank):
    x, a = random_rows(17, 760, "bfloat16"), random_rows(rank, 760, "bfloat16", seed=1)
    outliers = torch.arange(20) * 38
    whole = run(x, a, outliers=outliers, cached=768)

    other = run(x, a, outliers=outliers, cached=cached, seed=1)

    for name in ("q", "scale", "hidden"):
        assert torch.equal(getattr(other, name), getattr(whole, name)), name


@pytest.mark.parametrize("element", HALVES)
def test_dropout_alone(element):
    x, a = random_rows(18, 300, element), random_rows(16, 300, element, seed=1)

    for dropout in (0.1, 0.5, 0.9):
        check(run(x, a, dropout=dropout), x, a, dropout=dropout)


def test_projection_without_quantization_and_hidden_without_left():
    x, a = random_rows(18, 300, "bfloat16"), random_rows(16, 300, "bfloat16", seed=1)
    outliers = torch.tensor([7])
    whole = run(x, a, outliers=outliers)

    projected = run(x, a, outliers=outliers, quantizes=False)
    without = run(x, a, outliers=outliers, has_left=False)

    assert torch.equal(projected.hidden, whole.hidden)
    assert (projected.scale == -1).all()
    assert torch.equal(projected.left[:, :32], whole.left[:, :32])
    assert torch.equal(without.hidden, whole.hidden) and torch.equal(without.q, whole.q)
    assert without.left.isnan().all()


def test_a_row_that_is_not_finite_spoils_no_other():
    x, a = random_rows(20, 300, "float16"), random_rows(17, 300, "float16", seed=1)
    x[3, 299], x[4, 0] = float("nan"), float("inf")
    good = [i for i in range(20) if i not in (3, 4)]

    out = run(x, a)

    assert out.scale[3].isnan() and out.scale[4] == float("inf")
    assert not out.q[3:5].any()
    assert not out.hidden[3:5].isfinite().any()
    assert not out.left[:, 17:32].any(), "the padding is zero whatever x is"
    out = SimpleNamespace(**{name: getattr(out, name)[good] for name in vars(out)})
    check(out, x[good], a)


def test_a_zero_row_has_scale_one():
    x, a = random_rows(3, 40, "bfloat16"), random_rows(4, 40, "bfloat16", seed=1)
    x[1] = 0

    out = run(x, a)

    assert out.scale[1] == 1
    check(out, x, a)


def test_the_order_of_threads_does_not_matter():
    x, a = random_rows(17, 1100, "bfloat16"), random_rows(24, 1100, "bfloat16", seed=1)
    options = {"outliers": torch.tensor([3, 1000]), "dropout": 0.5, "cached": 512}
    first, *others = (run(x, a, **options, seed=seed) for seed in range(4))

    for other in others:
        for name in ("q", "scale", "hidden"):
            assert torch.equal(getattr(other, name), getattr(first, name)), name


@pytest.mark.parametrize(
    ("features", "shared_limit", "cached"),
    # sm_90: 227 KB, sm_80: 163 KB, sm_89: 99 KB
    [
        (4096, 232448, 2560),
        (1000, 232448, 1024),
        (4096, 166912, 1536),
        (4096, 101376, 512),
        (4096, 49152, 0),
        (1, 232448, 256),
    ],
)
def test_two_blocks_share_a_multiprocessor(features, shared_limit, cached):
    got = quantize_project_cached_features(features, 3, shared_limit)
    of_two = 2 * (quantize_project_shared_bytes(features, 3, got) + 1024)

    assert got == cached
    assert of_two <= shared_limit + 1024 or got == 0
