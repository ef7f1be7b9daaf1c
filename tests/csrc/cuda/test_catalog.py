"""Grids, shared memory and variants of the kernels: arithmetic on sizes."""

import itertools

import pytest

from ftrt.kernels import catalog
from ftrt.kernels.kernel import source_folder


def test_every_variant_is_listed_once_and_has_its_source():
    labels = [kernel.label for kernel in catalog.variants()]

    assert len(labels) == len(set(labels))
    assert {kernel.source for kernel in catalog.variants()} == set(source_folder().glob("*.cu"))


def test_the_source_says_the_threads():
    for kernel in catalog.variants():
        assert f"__launch_bounds__({kernel.threads}" in kernel.source.read_text(), kernel.label


@pytest.mark.parametrize(
    ("features", "element", "blocks"),
    # a warp holds 3 KB of a row; four warps are a block
    [
        (1, "bfloat16", 3),
        (1536, "float16", 3),
        (1537, "float16", 9),
        (768, "float32", 3),
        (769, "float32", 9),
        (14336, "bfloat16", 9),
    ],
)
def test_short_rows_share_a_block(features, element, blocks):
    assert catalog.quantize_rows_grid(9, features, element) == (blocks, 1, 1)


def test_outliers_take_a_bit_a_column():
    assert catalog.quantize_rows_shared_bytes(4096, 0) == 32
    assert catalog.quantize_rows_shared_bytes(4097, 1) == 32 + 4 * 129
    assert catalog.quantize_project_shared_bytes(4096, 0, 2560) == 14 * 8192
    assert catalog.quantize_project_shared_bytes(4096, 5, 0) == 4 * 8192 + 512


def test_thin_gradients_of_any_rank_fit_beside_each_other():
    for source, rank in itertools.product(("int8", "float32", "bfloat16"), (1, 16, 17, 256)):
        assert 2 * (catalog.thin_gradient_shared_bytes(rank, source) + 1024) <= 100 * 1024
    assert catalog.thin_gradient_shared_bytes(16, "int8") == 2 * 64 * (272 + 48)


def test_blocks_cover_the_whole_of_a_matrix():
    assert catalog.unpack_grid(65, 129, transpose=False) == (2, 2, 1)
    assert catalog.unpack_grid(65, 129, transpose=True) == (3, 1, 1)
    assert catalog.pack_factor_grid(33) == (2, 1, 1)
    assert catalog.quantize_project_grid(17) == (2, 1, 1)
    assert catalog.thin_gradient_grid(100, 129, 64) == (2, 2, 1)


def test_nothing_is_a_grid_of_no_blocks():
    assert catalog.quantize_rows_grid(0, 8, "float32")[0] == 0
    assert catalog.quantize_project_grid(0)[0] == 0
    assert 0 in catalog.thin_gradient_grid(5, 0, 128)
    assert 0 in catalog.unpack_grid(0, 8, transpose=True)
    assert catalog.pack_factor_grid(0)[0] == 0
