"""The kernels of csrc/cuda, how many blocks of each a problem takes and how much shared memory.

Everything here is arithmetic on sizes: nothing is compiled or launched. What a kernel computes and
what its parameters mean stands in its source; the letters below are in the same order.
"""

__all__ = [
    "ELEMENT_NAMES",
    "PACK_FACTOR",
    "QUANTIZE_PROJECT",
    "QUANTIZE_ROWS",
    "THIN_GRADIENT",
    "UNPACK",
    "pack_factor_grid",
    "quantize_project_cached_features",
    "quantize_project_grid",
    "quantize_project_shared_bytes",
    "quantize_rows_grid",
    "quantize_rows_shared_bytes",
    "thin_gradient_grid",
    "thin_gradient_rows_per_split",
    "thin_gradient_shared_bytes",
    "unpack_grid",
    "unpack_shared_bytes",
    "variants",
]

from collections.abc import Iterator

import torch

from ftrt.kernels.backend import Grid
from ftrt.kernels.gemm import gemm_variants
from ftrt.kernels.kernel import Kernel, source_folder
from ftrt.kernels.signature import Signature

# What -DFTRT_ELEMENT and the other type macros may say.
ELEMENT_NAMES = {
    torch.int8: "int8",
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}

_FLOATS = ("float32", "float16", "bfloat16")
_HALVES = ("float16", "bfloat16")

# Bytes that a thread of `quantize_rows` keeps in registers, so that a row is read once.
_HELD_BYTES = 6 * 16

# Rows of a block of `quantize_project`, features of a chunk, and places of chunks on their way.
_PROJECT_ROWS = 16
_PROJECT_CHUNK = 256
_PROJECT_STAGES = 4
_PROJECT_CHUNK_BYTES = _PROJECT_ROWS * 2 * _PROJECT_CHUNK

# Columns of a block of `thin_gradient`, and rows it multiplies at a time by the type of x.
_THIN_COLUMNS = 128
_THIN_ROWS = {"int8": 64, "float32": 32, "float16": 32, "bfloat16": 32}

_UNPACK_SHORT, _UNPACK_LONG = 64, 128
_PACK_COLUMNS = 32


def _kernel(name: str, letters: str, threads: int) -> Kernel:
    return Kernel(name, source_folder() / f"{name}.cu", Signature(letters), threads)


# FTRT_ELEMENT, FTRT_FRONT: x, x_stride, x2, norm_weight, epsilon, column_scale, outliers,
# outlier_count, rows, features, q, q_stride, scale, normalized
QUANTIZE_ROWS = _kernel("quantize_rows", "pl p pf p pi ii pl p p", 128)

# FTRT_ELEMENT: x, x_stride, column_scale, outliers, outlier_count, rows, features, q, q_stride,
# scale, a, a_stride, rank, seed, threshold, keep_factor, hidden, hidden_stride, left, left_stride,
# left_scaling, cached_features
QUANTIZE_PROJECT = _kernel("quantize_project", "pl p pi ii pl p pl i puf pl plf i", 256)

# FTRT_INPUT, FTRT_ELEMENT: left, left_stride, rank, x, x_stride, row_scale, rows, columns, factor,
# seed, threshold, keep_factor, column_index, out, out_rank_stride, out_column_stride,
# split_stride, rows_per_split
THIN_GRADIENT = _kernel("thin_gradient", "pl i pl p ii f puf p pll l i", 256)

# FTRT_OUTPUT, FTRT_TRANSPOSE: packed, k_groups, scale, groups, in_features, first, count, out,
# out_stride
UNPACK = _kernel("unpack", "pi pi i ii pl", 256)

# FTRT_SOURCE, FTRT_ELEMENT: source, column_stride, rank_stride, columns, rank, scaling, packed,
# k_groups, outliers, outlier_count, right, right_stride, transposed, transposed_stride
PACK_FACTOR = _kernel("pack_factor", "pll ii f pi pi pl pl", 256)


def quantize_rows_grid(rows: int, features: int, element: str) -> Grid:
    """Blocks of `quantize_rows`: a warp takes a row that its registers hold, else a block does.

    Args:
        element: "float32", "float16" or "bfloat16".
    """
    row_bytes = features * _element_bytes(element)
    is_short = row_bytes <= 32 * _HELD_BYTES
    return (_ceil(rows, QUANTIZE_ROWS.threads // 32) if is_short else rows, 1, 1)


def quantize_rows_shared_bytes(features: int, outlier_count: int) -> int:
    """Shared memory of `quantize_rows`: sums of 4 warps, and a bit a column where there are
    outliers."""
    return 32 + _outlier_bytes(features, outlier_count)


def quantize_project_grid(rows: int) -> Grid:
    """Blocks of `quantize_project`, 16 rows each."""
    return (_ceil(rows, _PROJECT_ROWS), 1, 1)


def quantize_project_shared_bytes(features: int, outlier_count: int, cached_features: int) -> int:
    """Shared memory of `quantize_project`.

    Args:
        cached_features: as the kernel's parameter, a multiple of 256: of 16 rows, these stay.
    """
    chunks = cached_features // _PROJECT_CHUNK + _PROJECT_STAGES
    return chunks * _PROJECT_CHUNK_BYTES + _outlier_bytes(features, outlier_count)


def quantize_project_cached_features(features: int, outlier_count: int, shared_limit: int) -> int:
    """The most features that may stay in shared memory with two blocks on a multiprocessor.

    While one block quantizes, the other reads: a block alone would leave the memory idle for a
    third of the time. What does not stay is read again, from L2.

    Args:
        shared_limit: bytes that one block may have; a multiprocessor has 1 KB more for each.

    Returns:
        A multiple of 256, at most `features` rounded up to one; 0 where nothing fits.
    """
    room = (shared_limit - 1024) // 2 - quantize_project_shared_bytes(features, outlier_count, 0)
    chunks = min(max(room, 0) // _PROJECT_CHUNK_BYTES, _ceil(features, _PROJECT_CHUNK))
    return chunks * _PROJECT_CHUNK


def thin_gradient_grid(rows: int, columns: int, rows_per_split: int) -> Grid:
    """Blocks of `thin_gradient`: 128 columns and one split each. Without rows there is one split,
    which writes zeros."""
    return (_ceil(columns, _THIN_COLUMNS), max(_ceil(rows, rows_per_split), 1), 1)


def thin_gradient_rows_per_split(rows: int, columns: int, multiprocessors: int) -> int:
    """Rows for each split so that about two blocks run on each multiprocessor, at least 128: each
    split adds or writes the whole result."""
    blocks = _ceil(columns, _THIN_COLUMNS)
    splits = max(_ceil(2 * multiprocessors, max(blocks, 1)), 1)
    return max(_ceil(_ceil(rows, splits), 64) * 64, 128)


def thin_gradient_shared_bytes(rank: int, input_element: str) -> int:
    """Shared memory of `thin_gradient`: two buffers of x and of the left operand, 16 bytes longer a
    row than their elements.

    Args:
        input_element: type of x, "int8", "float32", "float16" or "bfloat16".
    """
    slab = 16 if rank <= 16 else 32
    # more than the sums of half of the warps, which take their place at the end
    return 2 * _THIN_ROWS[input_element] * (2 * _THIN_COLUMNS + 16 + 2 * slab + 16)


def unpack_grid(count: int, in_features: int, *, transpose: bool) -> Grid:
    """Blocks of `unpack`: 64 output by 128 input features, or the other way round."""
    out_tile, in_tile = (_UNPACK_SHORT, _UNPACK_LONG)[:: -1 if transpose else 1]
    return (_ceil(in_features, in_tile), _ceil(count, out_tile), 1)


def unpack_shared_bytes() -> int:
    """Shared memory of `unpack`: 64 rows of 128 int8, 16 bytes apart."""
    return _UNPACK_SHORT * (_UNPACK_LONG + 16)


def pack_factor_grid(columns: int) -> Grid:
    """Blocks of `pack_factor`, 32 columns each."""
    return (_ceil(columns, _PACK_COLUMNS), 1, 1)


def variants() -> Iterator[Kernel]:
    """Every kernel with every value of its macros, as it is compiled."""
    for element in _FLOATS:
        for front in ("none", "rms_norm", "swiglu"):
            yield QUANTIZE_ROWS.variant(FTRT_ELEMENT=element, FTRT_FRONT=front)
    for element in _HALVES:
        yield QUANTIZE_PROJECT.variant(FTRT_ELEMENT=element)
        for source in ("int8", "float32", element):
            yield THIN_GRADIENT.variant(FTRT_INPUT=source, FTRT_ELEMENT=element)
        for source in _FLOATS:
            yield PACK_FACTOR.variant(FTRT_SOURCE=source, FTRT_ELEMENT=element)
    for output in ("int8", *_FLOATS):
        for transpose in (0, 1):
            yield UNPACK.variant(FTRT_OUTPUT=output, FTRT_TRANSPOSE=transpose)
    yield from gemm_variants()


def _element_bytes(element: str) -> int:
    return 4 if element == "float32" else 2


def _outlier_bytes(features: int, outlier_count: int) -> int:
    return 4 * _ceil(features, 32) if outlier_count else 0


def _ceil(number: int, divisor: int) -> int:
    return -(-number // divisor)
