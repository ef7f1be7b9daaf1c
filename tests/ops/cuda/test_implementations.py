"""What the CUDA implementations do that the suites of the ops cannot tell apart: each way to
multiply, chunks of scratch, one product for two, and what they refuse."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ftrt.errors import UnsupportedError
from ftrt.kernels.backend import use_backend
from ftrt.ops import pack_int8
from ftrt.ops.cuda import IMPLEMENTATIONS
from ftrt.ops.cuda.choice import Product

sys.path.insert(0, str(Path(__file__).parents[1]))
from op_subjects import SCALING, layer_of, randn, weight_of

choice = importlib.import_module("ftrt.ops.cuda.choice")
dequantized = importlib.import_module("ftrt.ops.cuda.dequantized")
product = importlib.import_module("ftrt.ops.cuda.product")
dropping = importlib.import_module("ftrt.ops.cuda.dropping")

NEEDS = (True, True, True)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def run(layer, x, grad):
    """(y, h, dx, da, db) of a layer, by the implementations themselves."""
    packed, outliers = pack_int8(layer.qweight), layer.outliers
    xq = xscale = None
    if layer.compute == "w8a8":
        xq, xscale = IMPLEMENTATIONS["quantize_per_token"](x, outliers)
    a, b = layer.a.detach(), layer.b.detach()
    bias = None if layer.bias is None else layer.bias.detach()
    last = (outliers, layer.dropout, layer.seed)
    first = (x, xq, xscale, packed, layer.scale, bias, a, b, SCALING)
    y, hidden = IMPLEMENTATIONS["int8_lora_linear"](*first, *last)
    backward = IMPLEMENTATIONS["int8_lora_linear_backward"]
    middle = (hidden, packed, layer.scale, a, b, SCALING)
    return y, hidden, *backward(grad, x, xq, xscale, *middle, *last, *NEEDS)


def subject(compute, dtype, rows=40, **options):
    """A layer of 48 by 64 features and rows for it, sizes that a library takes."""
    layer = layer_of(compute, 48, 64, 8, dtype=dtype, **options)
    return layer, randn(rows, 64, dtype=dtype), randn(rows, 48, dtype=dtype, seed=5)


@pytest.fixture
def taken(monkeypatch):
    """Which products were chosen."""
    found = []
    original = product.int8_product

    def spy(*arguments, **sizes):
        found.append(original(*arguments, **sizes))
        return found[-1]

    monkeypatch.setattr(product, "int8_product", spy)
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize(
    ("arch", "expected"), [((9, 0), Product.LIBRARY), ((10, 3), Product.FLOAT)]
)
def test_every_product_gives_the_same(
    emulated_backend, taken, monkeypatch, arch, expected, dropout, dtype
):
    # A chunk of 20 rows.
    monkeypatch.setattr(choice, "_LEAST_PRODUCT_ROWS", 20)
    monkeypatch.setattr(choice, "_PRODUCT_SCRATCH_BYTES", 0)
    problem = subject("w8a8", dtype, outliers=(3, 40), dropout=dropout)
    results = []
    for each in ((8, 0), arch):
        with use_backend(emulated_backend(arch=each)):
            results.append(run(*problem))
    assert taken == [Product.OWN] * 2 + [expected] * 2
    for got, want in zip(*results, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("groups", [1, 4, 64])
@pytest.mark.parametrize("joined", [False, True])
def test_chunks_of_scratch_and_one_product_for_two_change_nothing(
    emulated_backend, monkeypatch, joined, groups, dtype
):
    layer, x, grad = subject("w8a16", dtype, groups=groups)
    with use_backend(emulated_backend()):
        plain = run(layer, x, grad)
        monkeypatch.setattr(choice, "_WEIGHT_SCRATCH_BYTES", 16 * 64 * dtype.itemsize)
        if joined:
            monkeypatch.setattr(dequantized, "concatenates", lambda **sizes: True)
        assert len(choice.weight_chunks(48, 64 * dtype.itemsize)) == 3
        chunked = run(layer, x, grad)
    for got, want in zip(chunked, plain, strict=True):
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(got, want, rtol=4 * eps, atol=4 * eps * want.abs().max().item())


def test_rows_of_a_mask_at_a_time_drop_the_same(emulated_backend, monkeypatch):
    problem = subject("w8a16", torch.bfloat16, dropout=0.25)
    with use_backend(emulated_backend()):
        whole = run(*problem)
        monkeypatch.setattr(dropping, "_MASK_ELEMENTS", 7 * 64)
        parts = run(*problem)
    for got, want in zip(parts, whole, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_do_not_depend_on_the_order_of_blocks(emulated_backend, dtype):
    # Three splits of the sums over rows.
    problem = subject("w8a8", dtype, rows=300, outliers=(3, 40), dropout=0.25)
    results = []
    for seed in (0, 1):
        with use_backend(emulated_backend(seed=seed)):
            results.append(run(*problem))
    for got, want in zip(*results, strict=True):
        assert torch.equal(got, want)


def test_operands_on_another_device_are_an_error_with_both():
    qweight, scale, _ = weight_of(16, 64)
    packed, x = pack_int8(qweight), randn(3, 64)
    runs = {
        "int8_linear: all operands must be on the device of x; got x on cpu, qweight on meta": (
            lambda: IMPLEMENTATIONS["int8_linear"](
                x, None, None, packed.to("meta"), scale, None, None
            )
        ),
        "int8_linear_dx: all operands must be on the device of grad; got grad on cpu, scale on"
        " meta": (
            lambda: IMPLEMENTATIONS["int8_linear_dx"](
                randn(3, 16), packed, scale.to("meta"), 64, False
            )
        ),
        "quantize_per_token: all operands must be on the device of x; got x on cpu, outliers on"
        " meta": (
            lambda: IMPLEMENTATIONS["quantize_per_token"](x, torch.tensor([3], device="meta"))
        ),
        "int8_lora_linear: all operands must be on the device of x; got x on cpu, seed on meta": (
            lambda: IMPLEMENTATIONS["int8_lora_linear"](
                *(x, None, None, packed, scale, None, randn(4, 64), randn(16, 4), 1.0, None, 0.5),
                torch.tensor(5, device="meta"),
            )
        ),
    }
    for text, call in runs.items():
        with pytest.raises(RuntimeError) as caught:
            call()
        assert str(caught.value) == f"ftrt::{text}"


class Reads(TorchDispatchMode):
    """Ops that would wait for a GPU, because their result's value or size is wanted on the host."""

    WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2")

    def __init__(self):
        super().__init__()
        self.found, self.count = [], 0

    def __torch_dispatch__(self, op, types, arguments=(), options=None):
        self.count += 1
        name = op.name().removeprefix("aten::").split(".")[0]
        if name in self.WAITING:
            self.found.append(name)
        return op(*arguments, **(options or {}))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("compute", ["w8a16", "w8a8"])
@pytest.mark.parametrize("arch", [(8, 0), (9, 0), (10, 3)])
def test_no_op_waits_for_the_device(emulated_backend, arch, compute, dtype):
    problem = subject(compute, dtype, outliers=(3, 40), dropout=0.25)
    with use_backend(emulated_backend(arch=arch)), Reads() as reads:
        run(*problem)
    assert reads.count > 0 and reads.found == []
    with Reads() as reads:
        randn(3).sum().item()
    assert reads.found == ["_local_scalar_dense"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("compute", ["w8a16", "w8a8"])
def test_strides_of_small_operands_do_not_matter(emulated_backend, compute, dtype):
    layer, x, grad = subject(compute, dtype, outliers=(3, 40))
    with use_backend(emulated_backend()):
        plain = run(layer, x, grad)
        if layer.outliers is not None:
            layer.outliers = layer.outliers.repeat_interleave(2)[::2]
        layer.bias = layer.bias.detach().repeat_interleave(2)[::2]
        odd = run(layer, x.t().contiguous().t(), grad.repeat_interleave(2, 1)[:, ::2])
    for got, want in zip(odd, plain, strict=True):
        assert torch.equal(got, want)


def test_a_weight_that_kernels_cannot_read_in_place_is_an_error():
    qweight, scale, _ = weight_of(16, 64)
    packed = pack_int8(qweight)
    shifted = torch.empty(packed.numel() + 1, dtype=torch.int8)[1:].view(packed.shape)
    with pytest.raises(RuntimeError) as caught:
        IMPLEMENTATIONS["int8_linear_dx"](randn(3, 16), shifted, scale, 64, False)
    assert (
        "ftrt::int8_linear_dx: qweight must start at a multiple of 16 bytes in memory; clone it;"
        " got qweight (1, 16, 16, 4) int8, address 0x"
    ) in str(caught.value)


@pytest.mark.parametrize("arch", [(8, 0), (9, 0)])
@pytest.mark.parametrize("compute", ["w8a16", "w8a8"])
def test_a_layer_without_outputs_gives_none(emulated_backend, compute, arch):
    packed, scale = torch.empty(0, 16, 16, 4, dtype=torch.int8), torch.empty(0, 1)
    x, xq, xscale = randn(20, 64), None, None
    with use_backend(emulated_backend(arch=arch)):
        if compute == "w8a8":
            xq, xscale = IMPLEMENTATIONS["quantize_per_token"](x, None)
        y = IMPLEMENTATIONS["int8_linear"](x, xq, xscale, packed, scale, None, None)
    assert y.shape == (20, 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_runtime_an_op_says_what_is_missing_and_the_way_around():
    qweight, scale, _ = weight_of(16, 64)
    with pytest.raises(UnsupportedError) as caught:
        IMPLEMENTATIONS["int8_linear_dx"](randn(3, 16), pack_int8(qweight), scale, 64, True)
    assert "FTRT_CUDA=reference" in str(caught.value)
