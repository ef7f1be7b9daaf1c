"""What is chosen for which GPU, layer and number of rows: pure arithmetic, for all of them."""

import itertools

import pytest

from ftrt.kernels.gemm import TILES
from ftrt.kernels.kernel import ARCHES
from ftrt.ops.cuda.choice import (
    Device,
    Product,
    concatenates,
    gemm_tile,
    int8_product,
    product_chunks,
    weight_chunks,
)

MIB = 2**20
A100 = Device((8, 0), 108, 163 * 1024)
RTX_4090 = Device((8, 9), 128, 99 * 1024)
H200 = Device((9, 0), 132, 227 * 1024)
B200 = Device((10, 0), 148, 227 * 1024)
B300 = Device((10, 3), 160, 227 * 1024)
RTX_5090 = Device((12, 0), 170, 99 * 1024)
UNKNOWN = Device((13, 7), 100, 99 * 1024)
ALL = [A100, RTX_4090, H200, B200, B300, RTX_5090, UNKNOWN]
LLAMA_8B = [(4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336)]


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        (A100, Product.OWN),
        (RTX_4090, Product.OWN),
        (H200, Product.LIBRARY),
        (B200, Product.LIBRARY),
        (B300, Product.FLOAT),
        (RTX_5090, Product.OWN),
        (UNKNOWN, Product.OWN),
    ],
)
def test_who_multiplies_int8_depends_on_the_architecture(device, expected):
    for columns, depth in LLAMA_8B:
        assert int8_product(device, rows=8192, columns=columns, depth=depth) is expected


def test_every_architecture_that_kernels_are_compiled_for_has_a_product():
    from ftrt.ops.cuda.choice import _PRODUCTS

    known = {f"{major}{minor}" for major, minor in _PRODUCTS}
    assert {arch.rstrip("a") for arch in ARCHES} <= known


@pytest.mark.parametrize("sizes", [(16, 4096, 4096), (8192, 4095, 4096), (8192, 4096, 4088)])
def test_what_the_library_does_not_take_is_multiplied_here(sizes):
    rows, columns, depth = sizes
    assert int8_product(H200, rows=rows, columns=columns, depth=depth) is Product.OWN
    # B300's product is a float one, which takes any size.
    assert int8_product(B300, rows=rows, columns=columns, depth=depth) is Product.FLOAT


def waves_filled(device, tile, rows, columns):
    tiles = tile.grid(rows, columns)[0]
    return tiles / (-(-tiles // device.multiprocessors) * device.multiprocessors)


@pytest.mark.parametrize("device", ALL)
@pytest.mark.parametrize("rows", [1, 16, 17, 128, 2048, 2050, 8191, 8192])
def test_a_tile_fits_into_shared_memory_and_is_one_that_is_compiled(device, rows):
    for columns, _ in LLAMA_8B:
        tile = gemm_tile(device, rows=rows, columns=columns)
        assert tile in TILES and tile.shared_bytes <= device.shared_bytes


def test_large_products_take_the_large_tile_and_few_rows_the_small_one():
    for device in (A100, RTX_4090):
        assert gemm_tile(device, rows=8192, columns=14336) == TILES[0]
        assert gemm_tile(device, rows=16, columns=4096) == TILES[-1]


def test_a_last_wave_that_is_nearly_empty_is_avoided():
    # 256 tiles of 128 x 256 leave 68 of 108 multiprocessors idle in the third wave.
    tile = gemm_tile(A100, rows=2048, columns=4096)
    assert tile == TILES[1]
    assert waves_filled(A100, tile, 2048, 4096) > waves_filled(A100, TILES[0], 2048, 4096)


@pytest.mark.parametrize("count", [1, 15, 16, 4096, 4104, 14336, 152064])
@pytest.mark.parametrize("row_bytes", [2, 8192, 28704, 2**26])
@pytest.mark.parametrize("unit", [16, 48, 4096])
def test_a_weight_is_dequantized_whole_and_in_32_mib(count, row_bytes, unit):
    chunks = weight_chunks(count, row_bytes, unit=unit)
    assert chunks[0][0] == 0 and chunks[-1][1] == count
    assert all(before[1] == after[0] for before, after in itertools.pairwise(chunks))
    for first, end in chunks:
        assert first % unit == 0 and first < end
        assert (end - first) * row_bytes <= 32 * MIB or end - first <= unit


def test_a_layer_of_4096_features_in_bfloat16_is_one_chunk():
    assert weight_chunks(4096, 2 * 4096) == [(0, 4096)]
    assert len(weight_chunks(14336, 2 * 4096)) == 4


@pytest.mark.parametrize("rows", [17, 100, 2048, 8192, 32768])
@pytest.mark.parametrize("columns", [16, 4096, 14336, 152064, 2**21])
def test_product_chunks_are_ones_that_a_library_takes(rows, columns):
    chunks = product_chunks(rows, columns)
    assert chunks[0][0] == 0 and chunks[-1][1] == rows
    assert all(before[1] == after[0] for before, after in itertools.pairwise(chunks))
    for first, end in chunks:
        assert end - first > 16
        assert 4 * (end - first) * columns <= 256 * MIB or end - first <= 64


def test_one_product_for_base_and_update_where_that_saves_traffic():
    assert concatenates(rows=8192, depth=4096, columns=14336)
    assert not concatenates(rows=8192, depth=14336, columns=4096)
    assert not concatenates(rows=8192, depth=4096, columns=4096)
    assert not concatenates(rows=16, depth=4096, columns=14336)


def test_the_tile_that_does_not_fit_with_dropout_is_not_chosen():
    large = {"rows": 8192, "columns": 14336}
    assert gemm_tile(A100, **large) == TILES[0]
    assert gemm_tile(A100, **large, drops=True) == TILES[1]
