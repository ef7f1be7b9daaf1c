"""The int8 product and its epilogue: kernels, tiles, blocks and shared memory.

As in `ftrt.kernels.catalog`, everything here is arithmetic on sizes.
"""

__all__ = [
    "BACKWARD",
    "DROPPING_TILES",
    "FORWARD",
    "SCALE_PRODUCT",
    "TILES",
    "Tile",
    "gemm_variants",
    "scale_product",
    "scale_product_grid",
    "w8a8_gemm",
    "w8a8_gemm_shared_bytes",
]

from collections.abc import Iterator
from dataclasses import dataclass

from ftrt.kernels.backend import Grid
from ftrt.kernels.kernel import Kernel, source_folder
from ftrt.kernels.signature import Signature

FORWARD, BACKWARD = 0, 1

_FOLDER = source_folder()
_ELEMENTS = ("float32", "float16", "bfloat16")

# Bytes of the depth that a stage holds of each row and column.
_DEPTH = 64

# row_scale, column_scale, bias, left, left_stride, right, right_stride, outlier_depth, rank_depth,
# seed, threshold, keep_factor, y, y_stride
_EPILOGUE = "ppp pl pl ii puf pl"

# FTRT_ELEMENT, FTRT_DIRECTION, FTRT_DROPOUT, FTRT_TILE_M, FTRT_TILE_N, FTRT_STAGES: a, a_stride,
# packed, k_groups, rows, columns, depth, and the epilogue's
_W8A8_GEMM = Kernel("w8a8_gemm", _FOLDER / "w8a8_gemm.cu", Signature(f"pl pi iii {_EPILOGUE}"), 256)

# FTRT_ELEMENT, FTRT_DROPOUT: product, product_stride, rows, columns, first_row, and the epilogue's
SCALE_PRODUCT = Kernel(
    "scale_product", _FOLDER / "scale_product.cu", Signature(f"pl iii {_EPILOGUE}"), 256
)


@dataclass(frozen=True)
class Tile:
    """What one block computes, and how many stages of operands are on their way meanwhile."""

    rows: int
    columns: int
    stages: int

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a block."""
        return self.stages * _DEPTH * (self.rows + self.columns)

    def grid(self, rows: int, columns: int) -> Grid:
        """The blocks for y (rows, columns)."""
        return (-(-rows // self.rows) * -(-columns // self.columns), 1, 1)


# Largest first. 4 stages of the first are 96 KiB, which every GPU from sm_80 on has.
TILES = (Tile(128, 256, 4), Tile(128, 128, 4), Tile(64, 128, 4))

# Where elements of the low-rank part are dropped, the largest does not fit the registers.
DROPPING_TILES = TILES[1:]


def w8a8_gemm(element: str, direction: int, tile: Tile, *, drops: bool = False) -> Kernel:
    """The variant for y of type `element`.

    Args:
        element: "float32", "float16" or "bfloat16".
        direction: FORWARD or BACKWARD.
        tile: of `TILES`, or with drops of `DROPPING_TILES`.
        drops: whether elements of the low-rank part are dropped; backward only.
    """
    return _W8A8_GEMM.variant(
        FTRT_ELEMENT=element,
        FTRT_DIRECTION=direction,
        FTRT_DROPOUT=int(drops),
        FTRT_TILE_M=tile.rows,
        FTRT_TILE_N=tile.columns,
        FTRT_STAGES=tile.stages,
    )


def scale_product(element: str, *, drops: bool = False) -> Kernel:
    """The variant for y of type `element`; `drops` as in `w8a8_gemm`."""
    return SCALE_PRODUCT.variant(FTRT_ELEMENT=element, FTRT_DROPOUT=int(drops))


def scale_product_grid(rows: int, columns: int) -> Grid:
    """Blocks of `scale_product`, 64 rows by 128 columns each."""
    return (-(-rows // 64), -(-columns // 128), 1)


def w8a8_gemm_shared_bytes(kernel: Kernel) -> int:
    """Dynamic shared memory of a variant of `w8a8_gemm`."""
    rows, columns, stages = (
        int(kernel.defines[f"FTRT_{name}"]) for name in ("TILE_M", "TILE_N", "STAGES")
    )
    return Tile(rows, columns, stages).shared_bytes


def gemm_variants() -> Iterator[Kernel]:
    """Every variant of both kernels that is ever launched."""
    for element in _ELEMENTS:
        for tile in TILES:
            yield w8a8_gemm(element, FORWARD, tile)
            yield w8a8_gemm(element, BACKWARD, tile)
        yield scale_product(element)
        if element != "float32":  # adds its low-rank part elsewhere
            yield from (w8a8_gemm(element, BACKWARD, t, drops=True) for t in DROPPING_TILES)
            yield scale_product(element, drops=True)
