"""What is computed how on which GPU: an architecture table and heuristics, pure host code.

Nothing here touches a device or a tensor, so `tests/ops/cuda/test_choice.py` asks for every GPU.
"""

__all__ = [
    "Device",
    "Product",
    "concatenates",
    "gemm_tile",
    "int8_product",
    "product_chunks",
    "weight_chunks",
]

import enum
import itertools
from dataclasses import dataclass

from ftrt.kernels.gemm import DROPPING_TILES, TILES, Tile


@dataclass(frozen=True)
class Device:
    """What choices depend on.

    Attributes:
        arch: compute capability, (9, 0) for sm_90.
        multiprocessors: how many.
        shared_bytes: most that a block may have.
    """

    arch: tuple[int, int]
    multiprocessors: int
    shared_bytes: int


class Product(enum.Enum):
    """Who multiplies int8 by int8."""

    # w8a8_gemm, with the epilogue inside.
    OWN = "w8a8_gemm"
    # torch._int_mm on an unpacked weight, then scale_product.
    LIBRARY = "library"
    # A bfloat16 product of the integers, which bfloat16 holds exactly, then scale_product.
    FLOAT = "bfloat16"


# mma.sync reaches the int8 rate of sm_80 to 89 and 120. sm_90 and 100 have it only for wgmma and
# tcgen05, which the library uses. sm_103 has next to no int8 rate: 0.15 POP/s beside 2.5 PFLOP/s of
# bfloat16, https://github.com/pytorch/pytorch/issues/187094.
_PRODUCTS = {
    (8, 0): Product.OWN,
    (8, 6): Product.OWN,
    (8, 7): Product.OWN,
    (8, 9): Product.OWN,
    (9, 0): Product.LIBRARY,
    (10, 0): Product.LIBRARY,
    (10, 3): Product.FLOAT,
    (12, 0): Product.OWN,
    (12, 1): Product.OWN,
}

# What torch._int_mm wants: more rows than this, and depth and columns in whole multiples of that.
_LIBRARY_ROWS = 16
_LIBRARY_MULTIPLE = 16


def int8_product(device: Device, *, rows: int, columns: int, depth: int) -> Product:
    """Who computes the int8 product (rows, depth) · (depth, columns).

    A GPU that the table does not know gets `Product.OWN`, which any of them runs.
    """
    product = _PRODUCTS.get(device.arch, Product.OWN)
    whole = columns % _LIBRARY_MULTIPLE == 0 and depth % _LIBRARY_MULTIPLE == 0
    if product is Product.LIBRARY and not (whole and rows > _LIBRARY_ROWS):
        return Product.OWN
    return product


# The share of the multipliers' rate that a tile is taken to reach: a warp's part is 64 x 64, 64 x
# 32 or 32 x 32, and what it loads from shared memory for a product grows as 1/m + 1/n.
_EFFICIENCIES = dict(zip(TILES, (1.0, 0.85, 0.65), strict=True))


def gemm_tile(device: Device, *, rows: int, columns: int, drops: bool = False) -> Tile:
    """The tile of w8a8_gemm whose waves over the multiprocessors take the least time.

    A multiprocessor takes as long as its tiles have products, however many blocks share it, so the
    last wave is what a large tile may lose.
    """

    def cost(tile: Tile) -> float:
        waves = -(-tile.grid(rows, columns)[0] // device.multiprocessors)
        return waves * tile.rows * tile.columns / _EFFICIENCIES[tile]

    tiles = DROPPING_TILES if drops else TILES
    return min((t for t in tiles if t.shared_bytes <= device.shared_bytes), key=cost)


# Of a dequantized weight: what is written is then still in the L2 cache when it is read. And of a
# library's int32 product.
_WEIGHT_SCRATCH_BYTES = 32 * 2**20
_PRODUCT_SCRATCH_BYTES = 256 * 2**20
# A library takes no 16 rows or fewer, and a chunk may be half as large as asked for.
_LEAST_PRODUCT_ROWS = 64


def weight_chunks(count: int, row_bytes: int, *, unit: int = 16) -> list[tuple[int, int]]:
    """(first, end) of the chunks in which a weight is dequantized, each of at most 32 MiB or else
    of one unit.

    Args:
        count: rows of the scratch, all together.
        row_bytes: of one of them.
        unit: rows that stay together; each `first` is a multiple of it.
    """
    units = max(1, _WEIGHT_SCRATCH_BYTES // (row_bytes * unit))
    bounds = _bounds(-(-count // unit), units)
    return [(first * unit, min(end * unit, count)) for first, end in bounds]


def product_chunks(rows: int, columns: int) -> list[tuple[int, int]]:
    """(first, end) of the rows whose int32 product of `columns` is there at once, 256 MiB at
    most unless 64 rows are more."""
    return _bounds(rows, max(_LEAST_PRODUCT_ROWS, _PRODUCT_SCRATCH_BYTES // (4 * columns)))


def _bounds(count: int, most: int) -> list[tuple[int, int]]:
    """As few pieces of at most `most` as cover `count`, of sizes that differ by one at most."""
    pieces = max(1, -(-count // most))
    edges = [index * count // pieces for index in range(pieces + 1)]
    return list(itertools.pairwise(edges))


# Rows from which copying is bandwidth and not the launch: a copy of fewer is a few microseconds.
_CONCATENATED_ROWS = 1024


def concatenates(*, rows: int, depth: int, columns: int) -> bool:
    """Whether a float product and its update pay as one, [left | hidden] · [weight | update].

    One product saves the second pass over the result, a read and a write of `columns` values a row;
    it costs a copy of the left side beside hidden, a read and a write of `depth`.

    Args:
        depth: of the float product. columns: of its result.
    """
    return rows >= _CONCATENATED_ROWS and columns > depth
