"""The int8 product with its epilogue, and the epilogue alone, on the emulated device."""

import copy
import itertools

import pytest
import torch
from emulated import EmulatedBackend

from ftrt.kernels.backend import launch, use_backend
from ftrt.kernels.gemm import (
    BACKWARD,
    FORWARD,
    TILES,
    gemm_variants,
    scale_product,
    scale_product_grid,
    w8a8_gemm,
    w8a8_gemm_shared_bytes,
)
from ftrt.ops import pack_int8
from ftrt.ops.dropout import dropout_mask

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SMALL = TILES[-1]
# rows, columns, depth: ones, whole tiles, primes, one more and one less than a tile
SIZES = [(1, 1, 1), (64, 128, 64), (65, 129, 65), (63, 127, 63), (7, 111, 200), (130, 17, 111)]


@pytest.fixture(autouse=True)
def emulated():
    with use_backend(EmulatedBackend()):
        yield


def generator(seed):
    return torch.Generator().manual_seed(seed)


def random_int8(*shape, seed):
    return torch.randint(-128, 128, shape, dtype=torch.int8, generator=generator(seed))


def padded(matrix, multiple):
    """The same matrix with rows that start at multiples of `multiple` bytes; what lies between is
    not zero."""
    rows, columns = matrix.shape
    width = -(-columns * matrix.element_size() // multiple) * multiple // matrix.element_size()
    storage = torch.full((max(rows, 1), width), 77, dtype=matrix.dtype)
    storage[:rows, :columns] = matrix
    return storage[:rows, :columns]


class Operands:
    """Random operands of one product, and what it is in float64."""

    def __init__(
        self,
        sizes,
        *,
        element="bfloat16",
        direction=FORWARD,
        outliers=0,
        rank=0,
        bias=True,
        column_scale=True,
        dropout=0.0,
    ):
        rows, columns, depth = sizes
        self.sizes, self.direction, self.dropout = sizes, direction, dropout
        self.dtype = DTYPES[element]
        self.a = padded(random_int8(rows, depth, seed=1), 16)
        out_features, in_features = (columns, depth) if direction == FORWARD else (depth, columns)
        self.weight = random_int8(out_features, in_features, seed=2)
        self.packed = pack_int8(self.weight)
        self.row_scale = torch.rand(rows, generator=generator(3)) / 127
        draw = generator(4)
        self.column_scale = torch.rand(columns, generator=draw) / 127 if column_scale else None
        self.bias = torch.randn(columns, generator=draw) if bias else None
        self.depths = tuple(-(-n // 16) * 16 for n in (outliers, rank))
        self.left, self.right = (self.low_rank(n, draw, (outliers, rank)) for n in (rows, columns))
        self.seed = torch.tensor(0x123456789ABCDEF1)

    def low_rank(self, count, draw, widths):
        """(count, depths) with zeros behind each of the two parts."""
        if not any(widths):
            return None
        parts = []
        for width, depth in zip(widths, self.depths, strict=True):
            values = torch.randn(count, width, generator=draw)
            parts.append(torch.nn.functional.pad(values, (0, depth - width)))
        return torch.cat(parts, 1).to(self.dtype).contiguous()

    def product(self):
        weight = self.weight.long()
        return self.a.long() @ (weight.t() if self.direction == FORWARD else weight)

    def expected(self):
        rows, columns, _ = self.sizes
        y = self.row_scale.double()[:, None] * self.product().double()
        outliers = self.depths[0]
        if self.left is not None:
            left, right = self.left.double(), self.right.double()
            y += left[:, :outliers] @ right[:, :outliers].T
        if self.column_scale is not None:
            y *= self.column_scale.double()
        if self.left is not None:
            update = left[:, outliers:] @ right[:, outliers:].T
            if self.dropout:
                kept = dropout_mask(self.seed, rows, columns, self.dropout)
                update = update * kept / (1 - self.dropout)
            y += update
        return y if self.bias is None else y + self.bias.double()

    def epilogue(self, y):
        """The arguments from row_scale on."""
        return (
            self.row_scale,
            self.column_scale,
            self.bias,
            self.left,
            0 if self.left is None else self.left.stride(0),
            self.right,
            0 if self.right is None else self.right.stride(0),
            *self.depths,
            self.seed if self.dropout else None,
            int(self.dropout * 2**32),
            1 / (1 - self.dropout),
            y,
            y.stride(0),
        )

    def output(self, y_stride=None):
        """NaN everywhere, so that what is not written shows."""
        rows, columns, _ = self.sizes
        stride = columns if y_stride is None else y_stride
        return torch.full((max(rows, 1), stride), torch.nan, dtype=self.dtype)

    def magnitude(self):
        """What the terms of each result would sum to without their signs, float64."""
        positive = copy.copy(self)
        positive.dropout = 0.0
        for name in ("a", "weight", "left", "right", "bias"):
            tensor = getattr(self, name)
            if tensor is not None:
                setattr(
                    positive, name, tensor.to(torch.promote_types(tensor.dtype, torch.int16)).abs()
                )
        return positive.expected() / (1 - self.dropout)

    def check(self, y, what=""):
        """float32 all the way, and one rounding to the dtype."""
        rows, columns, _ = self.sizes
        assert y[:, columns:].isnan().all(), "columns beyond the result were written"
        expected = self.expected()
        error = (y[:rows, :columns].double() - expected).abs()
        rounding = torch.finfo(self.dtype).eps / 2 * expected.abs()
        allowed = rounding * 1.001 + 4e-7 * self.magnitude()
        worst = (error / allowed.clamp(min=1e-30)).max().item() if error.numel() else 0.0
        assert worst <= 1, f"{self.sizes} {what}: {worst:.2f} times the error allowed"


def name_of(dtype):
    return next(name for name, value in DTYPES.items() if value == dtype)


def run_gemm(operands, tile=SMALL, y_stride=None):
    rows, columns, depth = operands.sizes
    kernel = w8a8_gemm(
        name_of(operands.dtype), operands.direction, tile, drops=operands.dropout > 0
    )
    y = operands.output(y_stride)
    launch(
        kernel,
        tile.grid(rows, columns),
        tile.shared_bytes,
        operands.a,
        operands.a.stride(0),
        operands.packed,
        operands.packed.shape[1],
        rows,
        columns,
        depth,
        *operands.epilogue(y),
    )
    return y


def run_scale(operands, product_stride=None, y_stride=None):
    rows, columns, _ = operands.sizes
    stride = columns if product_stride is None else product_stride
    product = torch.zeros(max(rows, 1), stride, dtype=torch.int32)
    product[:rows, :columns] = operands.product()
    y = operands.output(y_stride)
    kernel = scale_product(name_of(operands.dtype), drops=operands.dropout > 0)
    grid = scale_product_grid(rows, columns)
    launch(kernel, grid, 0, product, stride, rows, columns, 0, *operands.epilogue(y))
    return y


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("direction", [FORWARD, BACKWARD])
def test_the_product_is_exact_to_the_dtype(sizes, direction):
    operands = Operands(sizes, direction=direction, rank=16)
    operands.check(run_gemm(operands))


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("direction", [FORWARD, BACKWARD])
def test_every_tile_computes_the_same(tile, direction):
    operands = Operands((150, 300, 330), direction=direction, outliers=3, rank=8)
    y = run_gemm(operands, tile)
    operands.check(y)
    assert torch.equal(y, run_gemm(operands, SMALL))


@pytest.mark.parametrize("element", DTYPES)
@pytest.mark.parametrize("direction", [FORWARD, BACKWARD])
def test_integers_are_summed_exactly(element, direction):
    operands = Operands((33, 65, 300), element=element, direction=direction, bias=False)
    operands.row_scale = torch.full((33,), 2.0**-20)
    operands.column_scale = None
    y = run_gemm(operands)
    expected = (operands.product().float() * 2.0**-20).to(operands.dtype)
    assert torch.equal(y[:33], expected)


@pytest.mark.parametrize("rank", [0, 1, 8, 16, 17, 64, 256])
@pytest.mark.parametrize("element", ["float16", "bfloat16"])
def test_low_rank_parts_of_any_rank(rank, element):
    for direction, outliers in ((FORWARD, 0), (FORWARD, 5), (BACKWARD, 0)):
        sizes = (37, 70, 50)
        operands = Operands(
            sizes, element=element, direction=direction, outliers=outliers, rank=rank
        )
        operands.check(run_gemm(operands), f"rank {rank}, outliers {outliers}")


@pytest.mark.parametrize("direction", [FORWARD, BACKWARD])
def test_scales_and_bias_may_be_left_out(direction):
    for bias, column_scale, rank in itertools.product((True, False), (True, False), (0, 4)):
        sizes = (20, 40, 70)
        operands = Operands(
            sizes, direction=direction, bias=bias, column_scale=column_scale, rank=rank
        )
        operands.check(run_gemm(operands), f"bias {bias}, column_scale {column_scale}, {rank}")


@pytest.mark.parametrize("element", ["float16", "bfloat16"])
def test_dropout_of_the_update_follows_the_seed(element):
    operands = Operands(
        (70, 140, 30), element=element, direction=BACKWARD, rank=20, column_scale=False, dropout=0.3
    )
    operands.check(run_gemm(operands))
    operands.check(run_gemm(operands, TILES[1]))
    operands.check(run_scale(operands))


@pytest.mark.parametrize("element", DTYPES)
@pytest.mark.parametrize("y_stride", [70, 71, 80])
def test_rows_of_the_result_may_start_anywhere(element, y_stride):
    for direction in (FORWARD, BACKWARD):
        operands = Operands((21, 70, 33), element=element, direction=direction)
        operands.check(run_gemm(operands, y_stride=y_stride))


def test_no_rows_write_nothing():
    operands = Operands((0, 70, 33), rank=4)
    assert run_gemm(operands).isnan().all() and run_scale(operands).isnan().all()


def test_the_order_of_threads_does_not_matter():
    operands = Operands((70, 140, 200), outliers=2, rank=8)
    expected = run_gemm(operands)
    for seed in range(3):
        with use_backend(EmulatedBackend(seed=seed)):
            assert torch.equal(run_gemm(operands), expected)


@pytest.mark.parametrize("element", DTYPES)
@pytest.mark.parametrize("sizes", [(1, 1, 1), (65, 129, 40), (64, 256, 40), (13, 70, 8)], ids=str)
def test_the_epilogue_alone(element, sizes):
    half = element != "float32"
    operands = Operands(sizes, element=element, outliers=3 * half, rank=9 * half)
    operands.check(run_scale(operands))
    operands.check(run_scale(operands, product_stride=sizes[1] + 3, y_stride=sizes[1] + 1))


def test_rows_of_a_larger_whole_drop_what_the_whole_drops():
    operands = Operands((70, 40, 8), rank=4, dropout=0.4)
    whole = run_scale(operands)
    kernel = scale_product("bfloat16", drops=True)
    product, y = operands.product().int().contiguous(), operands.output()
    first, arguments = 33, list(operands.epilogue(y[33:]))
    for position, tensor in ((0, operands.row_scale), (3, operands.left)):
        arguments[position] = tensor[first:]
    grid = scale_product_grid(70 - first, 40)
    launch(kernel, grid, 0, product[first:], 40, 70 - first, 40, first, *arguments)
    assert torch.equal(y[first:], whole[first:]) and y[:first].isnan().all()


def test_a_row_that_is_not_finite_is_nan_and_no_other():
    operands = Operands((40, 70, 30), rank=4)
    operands.row_scale[17] = torch.nan
    y = run_gemm(operands)[:, :70]
    assert y[17].isnan().all() and y.isnan().sum() == 70


def test_shared_memory_of_every_variant_fits_the_smallest_gpu():
    kernels = [kernel for kernel in gemm_variants() if kernel.name == "w8a8_gemm"]
    assert len(kernels) == 22
    assert max(map(w8a8_gemm_shared_bytes, kernels)) == 98304 <= 99 * 1024
