"""The int8 product with its epilogue, whoever multiplies."""

__all__ = ["Epilogue", "Weight", "multiply"]

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ftrt.kernels.backend import launch
from ftrt.kernels.gemm import BACKWARD, FORWARD, scale_product_grid
from ftrt.kernels.signature import Argument
from ftrt.ops.cuda.choice import Product, gemm_tile, int8_product, product_chunks
from ftrt.ops.cuda.dropping import KEEP_ALL, Dropping
from ftrt.ops.cuda.operands import aligned_rows, device_of, element_of
from ftrt.ops.cuda.variants import gemm_kernel, scale_kernel
from ftrt.ops.cuda.weights import unpack


@dataclass(frozen=True)
class Weight:
    """A packed weight in the direction in which it is multiplied.

    Attributes:
        packed: (⌈out_features / 16⌉, ⌈in_features / 4⌉, 16, 4) int8.
        direction: FORWARD, from in_features to out_features, or BACKWARD.
    """

    packed: Tensor
    out_features: int
    in_features: int
    direction: int

    @property
    def depth(self) -> int:
        """Features of what is multiplied."""
        return self.in_features if self.direction == FORWARD else self.out_features

    @property
    def columns(self) -> int:
        """Features of the result."""
        return self.out_features if self.direction == FORWARD else self.in_features


@dataclass(frozen=True)
class Epilogue:
    """What follows the product: y = column_scale · (row_scale · product + left outliers) +
    drop(left rank part) + bias, as csrc/cuda/epilogue.cuh has it.

    Attributes:
        row_scale: (rows) float32.
        column_scale, bias: (columns) float32, or None for 1 and 0.
        left: (rows, outlier_depth + rank_depth), right: (columns, the same), in the dtype of y,
            rows at multiples of 16 bytes; None where both depths are 0.
        outlier_depth, rank_depth: multiples of 16.
        dropping: of the elements of the low-rank part.
    """

    row_scale: Tensor
    column_scale: Tensor | None = None
    bias: Tensor | None = None
    left: Tensor | None = None
    right: Tensor | None = None
    outlier_depth: int = 0
    rank_depth: int = 0
    dropping: Dropping = KEEP_ALL

    def rows(self, first: int, end: int) -> "Epilogue":
        """Of these rows alone."""
        left = None if self.left is None else self.left[first:end]
        return replace(self, row_scale=self.row_scale[first:end], left=left)

    def arguments(self, y: Tensor) -> tuple[Argument, ...]:
        """The kernels' last parameters."""
        return (
            self.row_scale,
            self.column_scale,
            self.bias,
            self.left,
            0 if self.left is None else self.left.stride(0),
            self.right,
            0 if self.right is None else self.right.stride(0),
            self.outlier_depth,
            self.rank_depth,
            *self.dropping.arguments,
            y,
            y.stride(0),
        )


def multiply(q: Tensor, weight: Weight, epilogue: Epilogue, y: Tensor) -> Tensor:
    """y = epilogue(q · weight), by whatever `choice.int8_product` says.

    Args:
        q: (rows, weight.depth) int8.
        y: (rows, weight.columns), written.

    Returns:
        y.
    """
    if y.numel() == 0:
        return y
    device = device_of(q)
    product = int8_product(device, rows=q.shape[0], columns=weight.columns, depth=weight.depth)
    q = aligned_rows(q)
    if product is not Product.OWN:
        return _multiply_by_library(q, weight, epilogue, y, product)
    drops = epilogue.dropping.drops
    tile = gemm_tile(device, rows=q.shape[0], columns=weight.columns, drops=drops)
    launch(
        gemm_kernel(element_of(y), weight.direction, tile, drops=drops),
        tile.grid(q.shape[0], weight.columns),
        tile.shared_bytes,
        q,
        q.stride(0),
        weight.packed,
        weight.packed.shape[1],
        q.shape[0],
        weight.columns,
        weight.depth,
        *epilogue.arguments(y),
    )
    return y


def _multiply_by_library(
    q: Tensor, weight: Weight, epilogue: Epilogue, y: Tensor, product: Product
) -> Tensor:
    # Both operands side by side along the depth: any other layout halves a library's int8 rate.
    matrix = unpack(
        weight.packed,
        weight.out_features,
        weight.in_features,
        transpose=weight.direction == BACKWARD,
    )
    kernel = scale_kernel(element_of(y), drops=epilogue.dropping.drops)
    for first, end in product_chunks(q.shape[0], weight.columns):
        result = _integers(q[first:end], matrix, product)
        launch(
            kernel,
            scale_product_grid(end - first, weight.columns),
            0,
            result,
            result.stride(0),
            end - first,
            weight.columns,
            first,
            *epilogue.rows(first, end).arguments(y[first:end]),
        )
    return y


def _integers(q: Tensor, matrix: Tensor, product: Product) -> Tensor:
    """q · matrixᵀ, int32, for matrix (columns, depth) int8."""
    if product is Product.LIBRARY:
        result: Tensor = torch._int_mm(q, matrix.t())
        return result
    # Sums of up to 2^31 are rounded to 24 bits, as an epilogue in float32 rounds any product.
    if not q.is_cuda:
        # CPUs have no product of bfloat16 with a float32 result.
        return q.to(torch.float32).mm(matrix.t().to(torch.float32)).to(torch.int32)
    left, right = q.to(torch.bfloat16), matrix.t().to(torch.bfloat16)
    return torch.mm(left, right, out_dtype=torch.float32).to(torch.int32)
