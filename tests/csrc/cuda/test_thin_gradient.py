"""Gradients of the factors, sums over tokens, on the emulated device."""

import pytest
import torch
from emulated import EmulatedBackend
from rows import (
    DTYPES,
    HALVES,
    dropout_arguments,
    dropped,
    generator,
    random_rows,
    unaligned,
)

from ftrt.kernels.backend import launch, use_backend
from ftrt.kernels.catalog import (
    THIN_GRADIENT,
    thin_gradient_grid,
    thin_gradient_rows_per_split,
    thin_gradient_shared_bytes,
)
from ftrt.testing.tolerances import assert_close

INPUTS = [(source, element) for element in HALVES for source in ("int8", "float32", element)]
FACTOR = 0.5
START = 3.0


class Sum:
    """A random problem, and what it gives in float64."""

    def __init__(self, rows, columns, rank, source, element, *, dropout=0.0, row_scale=True):
        self.source, self.element, self.dropout = source, element, dropout
        self.x = random_rows(rows, columns, source)
        self.left = torch.randn(rows, rank + 3, generator=generator(1))[:, :rank]
        self.row_scale = torch.rand(rows, generator=generator(2)) if row_scale else None
        self.index = None

    def run(self, *, rows_per_split=128, is_split=True, transposed=False, seed=0):
        """The sums by splits, (splits, rank, columns), or added to START, (rank, columns)."""
        (rows, columns), rank = self.x.shape, self.left.shape[1]
        grid = thin_gradient_grid(rows, columns, rows_per_split)
        shape = (rank, columns) if not transposed else (columns, rank)
        if is_split:
            out = torch.full((grid[1], *shape), float("nan"))
        else:
            out = torch.full(shape, START)
        view = out.transpose(-1, -2) if transposed else out
        strides = (*view.stride()[-2:], out.stride(0) if is_split else 0)
        with use_backend(EmulatedBackend(seed)):
            launch(
                THIN_GRADIENT.variant(FTRT_INPUT=self.source, FTRT_ELEMENT=self.element),
                grid,
                thin_gradient_shared_bytes(rank, self.source),
                *(self.left, self.left.stride(0), rank, self.x, self.x.stride(0)),
                *(self.row_scale, rows, columns, FACTOR, *dropout_arguments(self.dropout)),
                *(self.index, out, *strides, rows_per_split),
            )
        return view

    def check(self, total):
        left = self.left if self.row_scale is None else self.left * self.row_scale[:, None]
        x = self.x.to(DTYPES[self.element]) if self.source == "float32" else self.x
        x = dropped(x, self.dropout, self.index)
        expected = FACTOR * left.to(DTYPES[self.element]).double().T @ x
        assert_close(total, expected, k=self.x.shape[0], what=f"{self.source}, {self.element}")


@pytest.mark.parametrize(("source", "element"), INPUTS)
def test_any_size_and_alignment(source, element):
    for rows, columns in [(1, 1), (7, 7), (17, 65), (65, 111), (130, 128), (33, 260)]:
        problem = Sum(rows, columns, 8, source, element, row_scale=rows != 7)
        problem.check(problem.run().sum(0))

        problem.x = unaligned(problem.x)
        problem.check(problem.run(rows_per_split=33).sum(0))


@pytest.mark.parametrize(("source", "element"), INPUTS)
@pytest.mark.parametrize("rank", [1, 16, 17, 32, 64, 72])
def test_any_rank_with_dropout_into_either_layout(source, element, rank):
    problem = Sum(70, 150, rank, source, element, dropout=0.25)

    problem.check(problem.run().sum(0))
    problem.check(problem.run(transposed=True).sum(0))


@pytest.mark.parametrize("source", ["int8", "bfloat16"])
def test_rank_256(source):
    problem = Sum(40, 70, 256, source, "bfloat16")

    problem.check(problem.run().sum(0))


@pytest.mark.parametrize(("source", "element"), INPUTS)
def test_atomic_sums_add_to_what_is_there(source, element):
    problem = Sum(300, 140, 17, source, element, dropout=0.5)

    problem.check(problem.run(rows_per_split=64, is_split=False, seed=1) - START)


@pytest.mark.parametrize("source", ["int8", "float32", "bfloat16"])
def test_columns_stand_for_those_of_a_wider_matrix(source):
    problem = Sum(50, 21, 8, source, "bfloat16", dropout=0.5)
    problem.index = torch.randperm(4000, generator=generator(5))[:21].sort().values

    problem.check(problem.run().sum(0))


@pytest.mark.parametrize("source", ["int8", "float32", "bfloat16"])
def test_many_rows_in_one_split(source):
    problem = Sum(1000, 40, 16, source, "bfloat16")

    problem.check(problem.run(rows_per_split=1000).sum(0))


def test_splits_without_rows_write_zeros():
    problem = Sum(64, 20, 4, "int8", "float16")
    problem.x, problem.left = problem.x[:0], problem.left[:0]

    out = problem.run()

    assert out.shape == (1, 4, 20) and not out.any()


def test_a_split_is_the_sum_of_its_rows_alone():
    problem = Sum(200, 33, 5, "int8", "bfloat16")
    parts = problem.run(rows_per_split=64)

    for split in range(4):
        rows = slice(64 * split, 64 * (split + 1))
        part = Sum(1, 1, 1, "int8", "bfloat16")
        part.x, part.left = problem.x[rows], problem.left[rows]
        part.row_scale = problem.row_scale[rows].clone()
        part.check(parts[split])


@pytest.mark.parametrize("source", ["int8", "bfloat16"])
def test_the_order_of_threads_does_not_matter_to_splits(source):
    problem = Sum(150, 140, 40, source, "bfloat16", dropout=0.5)
    first, *others = (problem.run(rows_per_split=96, seed=seed) for seed in range(4))

    for other in others:
        assert torch.equal(other, first)


def test_a_value_that_is_not_finite_spoils_its_column_alone():
    problem = Sum(40, 30, 16, "bfloat16", "bfloat16")
    problem.x[33, 4] = float("nan")

    total = problem.run().sum(0)

    assert total[:, 4].isnan().all()
    assert total[:, [c for c in range(30) if c != 4]].isfinite().all()


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    # 32 and 112 blocks of columns on 132 multiprocessors: 9 and 3 splits, rounded up to tiles
    [(8192, 4096, 960), (8192, 14336, 2752), (8192, 64, 128), (100, 4096, 128), (0, 1, 128)],
)
def test_rows_are_split_for_two_blocks_a_multiprocessor(rows, columns, expected):
    assert thin_gradient_rows_per_split(rows, columns, 132) == expected
    assert thin_gradient_grid(rows, columns, expected)[1] == max(-(-rows // expected), 1)
