"""Rows in memory as callers may have them, and what the kernels' tests compare with."""

import torch

from ftrt.ops.dropout import dropout_mask

DTYPES = {
    "int8": torch.int8,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
HALVES = ("float16", "bfloat16")
SEED = torch.tensor(0x123456789ABCDEF1)
KEEP_ALL = (None, 0, 1.0)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def random_rows(rows, columns, element, seed=0):
    """(rows, columns) as PyTorch allocates it: contiguous, aligned."""
    if element == "int8":
        return torch.randint(
            -128, 128, (rows, columns), dtype=torch.int8, generator=generator(seed)
        )
    return torch.randn(rows, columns, generator=generator(seed)).to(DTYPES[element])


def unaligned(matrix, gap=3):
    """The same values in rows that start anywhere, with `gap` elements of something else between.

    The element in front of a row and those behind it are what no kernel may take for values, or
    may overwrite: `untouched` looks at them.
    """
    rows, columns = matrix.shape
    fill = 99 if matrix.dtype == torch.int8 else float("nan")
    storage = torch.full((rows * (columns + gap) + 1,), fill, dtype=matrix.dtype)
    view = storage[1:].view(rows, columns + gap)[:, :columns]
    return view.copy_(matrix)


def untouched(view):
    """Whether what lies between the rows of an `unaligned` matrix is as it was."""
    storage = torch.empty(0, dtype=view.dtype).set_(view.untyped_storage())
    between = storage[1:].view(view.shape[0], -1)[:, view.shape[1] :]
    outside = torch.cat([storage[:1], between.flatten()])
    return bool((outside == 99).all() if view.dtype == torch.int8 else outside.isnan().all())


def dropout_arguments(dropout):
    """seed, threshold and factor of what is kept, as kernels take them."""
    return (SEED, int(dropout * 2**32), 1 / (1 - dropout)) if dropout else KEEP_ALL


def dropped(x, dropout, columns=None):
    """drop(x) in float64; `columns` are those that x has of a wider matrix."""
    wide = x.double()
    if not dropout:
        return wide
    width = x.shape[1] if columns is None else int(columns.max()) + 1
    kept = dropout_mask(SEED, x.shape[0], width, dropout)
    return wide * (kept if columns is None else kept[:, columns]) / (1 - dropout)


def quantized(values):
    """q and scale of float32 rows, by the reciprocal of the scale as csrc/cpu/quantize_rows.h.

    Not for rows whose scale is subnormal.
    """
    scale = values.abs().amax(1) / 127
    scale = torch.where(scale == 0, 1.0, scale)
    levels = (values * (1 / scale).unsqueeze(1)).round().clamp(-127, 127)
    levels = torch.where(scale.isfinite().unsqueeze(1), levels, 0.0)
    return levels.to(torch.int8), scale
