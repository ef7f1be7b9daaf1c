"""The fused ops on shapes that hypothesis draws: values and gradients against float64."""

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from op_subjects import COMPUTES, DTYPES, check_layer, layer_of, randn

from ftrt.ops import pack_int8, unpack_int8

# Primes, and one below, at and above the widths and depths of the tiles.
EDGES = [1, 2, 3, 13, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129]
SIZES = st.one_of(st.sampled_from(EDGES), st.integers(1, 140))
ROWS = st.one_of(st.sampled_from([0, *EDGES]), st.integers(0, 140))
RANKS = st.one_of(st.sampled_from([1, 2, 15, 16, 17, 31, 32, 33]), st.integers(1, 40))

# The same examples at every run: a test that fails once fails again.
seldom = settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def strided(x, layout):
    """x, laid out in memory in one of several ways."""
    if layout == "transposed":
        return x.t().contiguous().t()
    if layout == "every second":
        return x.repeat_interleave(2, 1)[:, ::2]
    if layout == "part of rows":
        return torch.cat([x, x], 1)[:, : x.shape[1]]
    return x


@seldom
@given(
    compute=st.sampled_from(COMPUTES),
    dtype=st.sampled_from(DTYPES),
    rows=ROWS,
    size=st.tuples(SIZES, SIZES),
    rank=RANKS,
    bias=st.booleans(),
    dropout=st.sampled_from([0.0, 0.0, 0.3]),
    columns=st.sets(st.integers(0, 139), max_size=20),
    layout=st.sampled_from(["contiguous", "transposed", "every second", "part of rows"]),
)
def test_any_shape(isa, compute, dtype, rows, size, rank, bias, dropout, columns, layout):
    out_features, in_features = size
    outliers = tuple(sorted(column for column in columns if column < in_features))
    layer = layer_of(
        compute,
        out_features,
        in_features,
        rank,
        dtype=dtype,
        bias=bias,
        outliers=outliers,
        dropout=dropout,
    )
    check_layer(layer, strided(randn(rows, in_features, dtype=dtype), layout))


@seldom
@given(size=st.tuples(SIZES, SIZES))
def test_packing_loses_nothing(size):
    q = randn(*size).mul(50).to(torch.int8)
    assert torch.equal(unpack_int8(pack_int8(q), *size), q)
