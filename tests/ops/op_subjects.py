"""Operands of the ops, and what they compute in float64: oracles that share no code with them."""

import functools
import os
from dataclasses import dataclass

import torch

from ftrt.ops import int8_lora_linear, lora_linear, quantize_per_token
from ftrt.testing.tolerances import assert_close

# (out_features, in_features): a single one, primes, and one below and above a 16-feature panel, a
# 64-deep tile and a 512-column block
SIZES = [(1, 1), (7, 65), (65, 7), (17, 111), (111, 64), (33, 129), (520, 40)]
ROWS = [0, 1, 7, 17, 65, 111]
RANKS = [1, 8, 16, 17, 64, 256]
COMPUTES = ["float", "w8a16", "w8a8"]
# What is tested: CUDA implementations if it is not empty, see tests/conftest.py.
CUDA_PLACE = os.environ.get("FTRT_TEST_CUDA", "")
DTYPES = [torch.float32, torch.bfloat16, *[torch.float16] * bool(CUDA_PLACE)]
SCALING = 0.75


# Of the tensors that tests make, "cuda" where FTRT_TEST_CUDA is "device"
DEVICE = torch.get_default_device().type


def randn(*shape, dtype=torch.float32, seed=1):
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(*shape, generator=generator, device="cpu").to(DEVICE, dtype)


def weight_of(out_features, in_features, groups=1, seed=0):
    """(qweight, scale, the weight in float64): the oracle's own dequantization."""
    options = {"generator": torch.Generator("cpu").manual_seed(seed), "device": "cpu"}
    shape = (out_features, in_features)
    qweight = torch.randint(-128, 128, shape, dtype=torch.int8, **options).to(DEVICE)
    scale = ((torch.rand(out_features, groups, **options) + 0.5) / 127).to(DEVICE)
    columns = torch.arange(in_features) // (in_features // groups)
    return qweight, scale, qweight.double() * scale.double()[:, columns]


def mixed(h):
    """fmix of `ops.dropout`, with Python's integers."""
    h ^= h >> 16
    h = h * 0x85EBCA6B % 2**32
    h ^= h >> 13
    h = h * 0xC2B2AE35 % 2**32
    return h ^ (h >> 16)


@functools.cache
def kept(seed, rows, columns, dropout):
    """The dropout mask, one element at a time."""
    low, high = seed % 2**32, seed // 2**32
    mask = torch.empty(rows, columns, dtype=torch.bool)
    for row in range(rows):
        key = mixed(mixed(row * 0x9E3779B1 % 2**32 ^ low) ^ high)
        for column in range(columns):
            bits = mixed(key ^ column * 0x9E3779B1 % 2**32)
            mask[row, column] = bits >= int(dropout * 2**32)
    return mask


@dataclass
class Layer:
    """A linear layer with an update, for one of the three fused computations."""

    compute: str
    weight: torch.Tensor  # what it computes with, float64
    qweight: torch.Tensor
    scale: torch.Tensor
    float_weight: torch.Tensor
    bias: torch.Tensor | None
    a: torch.Tensor
    b: torch.Tensor
    outliers: torch.Tensor | None
    dropout: float
    seed: torch.Tensor | None

    def __call__(self, x, **changes):
        """The op under test."""
        values = {"bias": self.bias, "a": self.a, "b": self.b, "dropout": self.dropout} | changes
        a, b, bias, dropout = (values.pop(name) for name in ("a", "b", "bias", "dropout"))
        if self.compute == "float":
            return lora_linear(
                x, self.float_weight, bias, a, b, SCALING, dropout=dropout, seed=self.seed
            )
        return int8_lora_linear(
            x,
            self.qweight,
            self.scale,
            bias,
            a,
            b,
            SCALING,
            compute=self.compute,
            outliers=self.outliers,
            dropout=dropout,
            seed=self.seed,
            **values,
        )

    def mask(self, rows, columns):
        """What drop() multiplies x by, float64."""
        if self.dropout == 0:
            return torch.ones(rows, columns, dtype=torch.float64)
        return kept(self.seed.item(), rows, columns, self.dropout).double() / (1 - self.dropout)

    def seen(self, x):
        """x as the big product sees it, and as the gradient of a does: rows, float64."""
        rows = x.detach().reshape(-1, x.shape[-1])
        if self.compute != "w8a8":
            return rows.double()
        xq, xscale = quantize_per_token(rows, self.outliers)
        seen = xq.double() * xscale.double()[:, None]
        if self.outliers is not None:
            seen[:, self.outliers] = rows.double()[:, self.outliers]
        return seen

    def expected(self, x):
        """y in float64, rows."""
        rows = x.detach().reshape(-1, x.shape[-1]).double()
        hidden = (rows * self.mask(*rows.shape)) @ self.a.detach().double().T
        y = Sum.of(self.seen(x), self.weight.T)
        y += Sum.of(SCALING * hidden, self.b.detach().double().T)
        return y if self.bias is None else y + Sum(self.bias.detach().double(), 0)

    def expected_gradients(self, x, grad):
        """Of x, a, b and bias, in float64."""
        rows = x.detach().reshape(-1, x.shape[-1]).double()
        g = grad.reshape(-1, grad.shape[-1]).double()
        a, b, mask = self.a.detach().double(), self.b.detach().double(), self.mask(*rows.shape)
        ds = SCALING * g @ b
        if self.compute == "w8a8":
            dzq, dzscale = quantize_per_token(grad.reshape(g.shape).float() * self.scale[:, 0])
            dx = Sum.of(dzscale.double()[:, None] * dzq.double(), self.qweight.double())
        else:
            dx = Sum.of(g, self.weight)
        update = Sum.of(ds, a)
        return {
            "x": dx + Sum(update.value * mask, update.variance * mask**2),
            "a": Sum.of(ds.T, self.seen(x) * mask),
            "b": Sum.of(SCALING * g.T, (rows * mask) @ a.T),
            "bias": Sum(g.sum(0), g.square().sum(0)),
        }


@dataclass
class Sum:
    """Sums of products in float64, and their variance were the signs random.

    Where few values are compared, all of them may cancel; the variance tells what size they have.
    """

    value: torch.Tensor
    variance: torch.Tensor | int

    @classmethod
    def of(cls, left, right):
        return cls(left @ right, left.square() @ right.square())

    def __add__(self, other):
        return Sum(self.value + other.value, self.variance + other.variance)

    def check(self, actual, *, k, what):
        """`actual` is the sum to the precision of its dtype."""
        size = self.variance.sqrt().ravel()
        expected = torch.cat([self.value.ravel(), size])
        actual = torch.cat([actual.detach().ravel(), size.to(actual.dtype)])
        assert_close(actual, expected, k=k, what=what)


def layer_of(
    compute,
    out_features,
    in_features,
    rank,
    *,
    dtype=torch.float32,
    bias=True,
    outliers=(),
    dropout=0.0,
    groups=1,
):
    """A layer whose a, b and bias require gradients."""
    qweight, scale, weight = weight_of(out_features, in_features, groups)
    float_weight = weight.to(dtype)
    columns = torch.tensor(outliers) if outliers and compute == "w8a8" else None
    return Layer(
        compute=compute,
        weight=float_weight.double() if compute == "float" else weight,
        qweight=qweight,
        scale=scale,
        float_weight=float_weight,
        bias=randn(out_features, seed=2).requires_grad_() if bias else None,
        a=randn(rank, in_features, dtype=dtype, seed=3).requires_grad_(),
        b=randn(out_features, rank, dtype=dtype, seed=4).requires_grad_(),
        outliers=columns,
        dropout=dropout,
        seed=torch.tensor(0x123456789ABCDEF1) if dropout else None,
    )


def check_layer(layer, x):
    """Values and all gradients of a layer against float64, x any layout."""
    (out_features, in_features), rank = layer.weight.shape, layer.a.shape[0]
    rows = x.numel() // in_features
    x = x.detach().requires_grad_()
    parameters = {"x": x, "a": layer.a, "b": layer.b, "bias": layer.bias}
    for parameter in (layer.a, layer.b, layer.bias):
        if parameter is not None:
            parameter.grad = None
    y = layer(x)
    assert y.dtype == x.dtype and y.shape == (*x.shape[:-1], out_features)
    layer.expected(x).check(y, k=in_features + rank, what=f"y, {rows} rows")
    grad = randn(*y.shape, dtype=x.dtype, seed=5)
    y.backward(grad)
    expected = layer.expected_gradients(x, grad)
    # The longest chain of sums behind each gradient; dS is rounded to the dtype on the way.
    terms = {"x": out_features + rank, "a": rows + out_features, "b": rows + in_features}
    for name, parameter in parameters.items():
        if parameter is not None:
            got = parameter.grad
            assert got.dtype == parameter.dtype and got.shape == parameter.shape
            expected[name].check(got, k=terms.get(name, rows), what=f"d{name}, {rows} rows")
