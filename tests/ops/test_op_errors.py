"""What the linear ops refuse, word for word: the reference, and with the same texts the kernels."""

import pytest
import torch
from op_subjects import CUDA_PLACE, randn, weight_of

from ftrt.ops import (
    int8_linear,
    int8_linear_dx,
    int8_lora_linear,
    lora_linear,
    pack_int8,
    quantize_per_token,
)
from ftrt.ops.extension import EXTENSION

Q, SCALE, _ = weight_of(5, 8, 2)
PACKED, CHANNEL = pack_int8(Q), SCALE[:, :1].contiguous()
X, A, B, GRAD = randn(2, 8), randn(3, 8), randn(5, 3), randn(2, 5)
XQ, XSCALE = torch.ones(2, 8, dtype=torch.int8), torch.ones(2)
WEIGHT, SEED = randn(5, 8), torch.tensor(7)
OPS = torch.ops.ftrt


def lora(x=X, weight=WEIGHT, bias=None, a=A, b=B, dropout=0.0, seed=None):
    return lora_linear(x, weight, bias, a, b, 1.0, dropout=dropout, seed=seed)


def int8_lora(x=X, q=PACKED, scale=CHANNEL, bias=None, a=A, b=B, **options):
    return int8_lora_linear(x, q, scale, bias, a, b, 1.0, **options)


def raw(x=X, xq=XQ, xscale=XSCALE, q=PACKED, scale=CHANNEL, outliers=None):
    return OPS.int8_linear(x, xq, xscale, q, scale, None, outliers)


def int8_backward(grad=GRAD, x=X, xq=None, xscale=None, h=None, a=A, outliers=None):
    h = randn(2, 3) if h is None else h
    needs = (True, True, True)
    return OPS.int8_lora_linear_backward(
        grad, x, xq, xscale, h, PACKED, CHANNEL, a, B, 1.0, outliers, 0.0, None, *needs
    )


def lora_backward(grad=GRAD, x=X, h=None, weight=WEIGHT):
    h = randn(2, 3) if h is None else h
    return OPS.lora_linear_backward(grad, x, h, weight, A, B, 1.0, 0.0, None, True, True, True)


PACKED_RULE = "qweight must be int8, packed as (out_features / 16, in_features / 4, 16, 4)"
FACTORS = "a must be (rank, in_features) and b (out_features, rank)"
BAD = {
    "depth": (
        lambda: int8_linear(randn(2, 3, 13), PACKED, SCALE),
        "ftrt::int8_linear: qweight must have in_features input features; got in_features 13,"
        " qweight (1, 2, 16, 4) int8",
    ),
    "row-major": (
        lambda: int8_linear(randn(2, 7), Q, SCALE),
        "ftrt::int8_linear: the last dimension of x must be in_features; got in_features 7, qweight"
        " (5, 8) int8",
    ),
    "float weight": (
        lambda: int8_linear(X, Q.float(), SCALE),
        "ftrt::int8_linear: qweight must be (out_features, in_features) int8, or packed by"
        " pack_int8; got qweight (5, 8) float32",
    ),
    "no dimension": (
        lambda: int8_linear(torch.tensor(1.0), PACKED, SCALE),
        "ftrt::int8_linear: in_features must be at least 1; got qweight (1, 2, 16, 4) int8",
    ),
    "panels": (
        lambda: raw(q=PACKED.view(1, 2, 4, 16)),
        f"ftrt::int8_linear: {PACKED_RULE}; got qweight (1, 2, 4, 16) int8, scale (5, 1) float32",
    ),
    "packed dtype": (
        lambda: raw(q=PACKED.float()),
        f"ftrt::int8_linear: {PACKED_RULE}; got qweight (1, 2, 16, 4) float32",
    ),
    "packed strides": (
        lambda: raw(q=PACKED.transpose(1, 2).contiguous().transpose(1, 2)),
        "ftrt::int8_linear: qweight must be contiguous; got qweight (1, 2, 16, 4) int8",
    ),
    "scale dtype": (
        lambda: int8_linear(X, PACKED, SCALE.bfloat16()),
        "ftrt::int8_linear: scale must be (out_features, groups) float32, contiguous; got qweight"
        " (1, 2, 16, 4) int8, scale (5, 2) bfloat16",
    ),
    "scale dimensions": (
        lambda: int8_linear(X, PACKED, SCALE[:, 0]),
        "ftrt::int8_linear: scale must be (out_features, groups) float32, contiguous; got qweight"
        " (1, 2, 16, 4) int8, scale (5,) float32",
    ),
    "out_features": (
        lambda: int8_linear(X, PACKED, torch.ones(17, 1)),
        "ftrt::int8_linear: scale and qweight must have the same out_features; got qweight (1, 2,"
        " 16, 4) int8, scale (17, 1) float32",
    ),
    "groups": (
        lambda: int8_linear(X, PACKED, torch.ones(5, 3)),
        "ftrt::int8_linear: groups must divide in_features; got in_features 8, qweight (1, 2, 16,"
        " 4) int8, scale (5, 3) float32",
    ),
    "no features": (
        lambda: int8_linear(randn(2, 0), torch.empty(5, 0, dtype=torch.int8), torch.ones(5, 1)),
        "ftrt::int8_linear: in_features must be at least 1; got qweight (1, 0, 16, 4) int8",
    ),
    "bias": (
        lambda: int8_linear(X, PACKED, SCALE, randn(4)),
        "ftrt::int8_linear: bias must be (out_features); got bias (4,) float32, out_features 5",
    ),
    "compute": (
        lambda: int8_linear(X, PACKED, CHANNEL, compute="w4a4"),
        "ftrt::int8_linear: compute must be w8a16 or w8a8; got 'w4a4'",
    ),
    "w8a8 groups": (
        lambda: int8_linear(X, PACKED, SCALE, compute="w8a8"),
        "ftrt::int8_linear: w8a8 needs one scale per output feature; got scale (5, 2) float32",
    ),
    "quantized w8a16": (
        lambda: int8_linear(X, PACKED, CHANNEL, quantized=(XQ, XSCALE)),
        "ftrt::int8_linear: quantized must be given with compute 'w8a8' only; got compute 'w8a16'",
    ),
    "xq alone": (
        lambda: raw(xscale=None),
        "ftrt::int8_linear: xq and xscale must be given together; got xq (2, 8) int8, xscale None",
    ),
    "xscale alone": (
        lambda: raw(xq=None),
        "ftrt::int8_linear: xq and xscale must be given together; got xq None, xscale (2,) float32",
    ),
    "another xq": (
        lambda: raw(xq=XQ[:1]),
        "ftrt::int8_linear: xq must be (rows, in_features) int8, contiguous, of the same x; got xq"
        " (1, 8) int8, xscale (2,) float32, rows 2, in_features 8",
    ),
    "another xscale": (
        lambda: raw(xscale=torch.ones(3)),
        "ftrt::int8_linear: xscale must be (rows) float32, of the same x; got xq (2, 8) int8,"
        " xscale (3,) float32, rows 2",
    ),
    "outliers": (
        lambda: raw(outliers=torch.tensor([[1]])),
        "ftrt::int8_linear: outliers must be (columns) int64; got outliers (1, 1) int64",
    ),
    "outlier twice": (
        lambda: raw(outliers=torch.tensor([1, 1])),
        "ftrt::int8_linear: outliers must be sorted, without repeats and below in_features; got 1"
        " after 1, in_features 8",
    ),
    "outlier outside": (
        lambda: raw(outliers=torch.tensor([1, 8])),
        "ftrt::int8_linear: outliers must be sorted, without repeats and below in_features; got 8"
        " after 1, in_features 8",
    ),
    "grad": (
        lambda: int8_linear_dx(randn(2, 8), PACKED, SCALE, in_features=8),
        "ftrt::int8_linear_dx: the last dimension of grad must be out_features; got grad (2, 8)"
        " float32, qweight (1, 2, 16, 4) int8",
    ),
    "dx without in_features": (
        lambda: int8_linear_dx(GRAD, PACKED, SCALE),
        "ftrt::int8_linear_dx: in_features must be given with a packed qweight; got None",
    ),
    "dx in_features": (
        lambda: int8_linear_dx(GRAD, PACKED, CHANNEL, in_features=9),
        "ftrt::int8_linear_dx: qweight must have in_features input features; got in_features 9,"
        " qweight (1, 2, 16, 4) int8",
    ),
    "dx w8a8 groups": (
        lambda: int8_linear_dx(GRAD, PACKED, SCALE, in_features=8, compute="w8a8"),
        "ftrt::int8_linear_dx: w8a8 needs one scale per output feature; got scale (5, 2) float32",
    ),
    "dx compute": (
        lambda: int8_linear_dx(GRAD, PACKED, SCALE, in_features=8, compute="int8"),
        "ftrt::int8_linear_dx: compute must be w8a16 or w8a8; got 'int8'",
    ),
    "lora weight": (
        lambda: lora(weight=randn(5)),
        "ftrt::lora_linear: weight must be (out_features, in_features) with in_features at least 1;"
        " got weight (5,) float32",
    ),
    "lora dtypes": (
        lambda: lora(x=X.bfloat16()),
        "ftrt::lora_linear: x and weight must have the same dtype; got x (2, 8) bfloat16, weight"
        " (5, 8) float32",
    ),
    "lora features": (
        lambda: lora(x=randn(2, 9)),
        "ftrt::lora_linear: the last dimension of x must be in_features; got x (2, 9) float32,"
        " weight (5, 8) float32",
    ),
    "lora bias": (
        lambda: lora(bias=randn(4)),
        "ftrt::lora_linear: bias must be (out_features); got bias (4,) float32, out_features 5",
    ),
    "ranks": (
        lambda: lora(b=randn(5, 4)),
        f"ftrt::lora_linear: {FACTORS}; got a (3, 8) float32, b (5, 4) float32",
    ),
    "factors": (
        lambda: int8_lora(a=randn(3, 9)),
        f"ftrt::int8_lora_linear: {FACTORS}; got a (3, 9) float32, b (5, 3) float32, in_features 8,"
        " out_features 5",
    ),
    "vector": (
        lambda: int8_lora(a=randn(8)),
        f"ftrt::int8_lora_linear: {FACTORS}; got a (8,) float32, b (5, 3) float32",
    ),
    "no rank": (
        lambda: lora(a=randn(0, 8), b=randn(5, 0)),
        "ftrt::lora_linear: rank must be 1 to 256; got a (0, 8) float32, b (5, 0) float32",
    ),
    "rank 257": (
        lambda: int8_lora(a=randn(257, 8), b=randn(5, 257)),
        "ftrt::int8_lora_linear: rank must be 1 to 256; got a (257, 8) float32, b (5, 257) float32",
    ),
    "factor dtype": (
        lambda: OPS.lora_linear(X, WEIGHT, None, A.bfloat16(), B, 1.0, 0.0, None),
        "ftrt::lora_linear: a and b must have the dtype of x, float32, or float32; got a (3, 8)"
        " bfloat16, b (5, 3) float32",
    ),
    "dropout 1": (
        lambda: lora(dropout=1.0, seed=SEED),
        "ftrt::lora_linear: dropout must be at least 0 and below 1; got 1",
    ),
    "negative dropout": (
        lambda: int8_lora(dropout=-0.5, seed=SEED),
        "ftrt::int8_lora_linear: dropout must be at least 0 and below 1; got -0.5",
    ),
    "no seed": (
        lambda: int8_lora(dropout=0.5),
        "ftrt::int8_lora_linear: seed must be () int64 where dropout is above 0; got None",
    ),
    "seed": (
        lambda: lora(dropout=0.5, seed=torch.ones(2)),
        "ftrt::lora_linear: seed must be () int64 where dropout is above 0; got seed (2,) float32",
    ),
    "backward h": (
        lambda: int8_backward(h=randn(2, 4)),
        "ftrt::int8_lora_linear_backward: h must be (rows, rank + outliers) float32; got h (2, 4)"
        " float32, rows 2, columns 3",
    ),
    "backward without x": (
        lambda: int8_backward(x=None),
        "ftrt::int8_lora_linear_backward: x, or xq and xscale, must be given for the gradient of a;"
        " got None",
    ),
    "backward xscale alone": (
        lambda: int8_backward(x=None, xscale=XSCALE),
        "ftrt::int8_lora_linear_backward: x, or xq and xscale, must be given for the gradient of a;"
        " got None",
    ),
    "backward x": (
        lambda: int8_backward(x=randn(3, 8)),
        "ftrt::int8_lora_linear_backward: x must have the rows and the dtype of grad; got x (3, 8)"
        " float32, grad (2, 5) float32, in_features 8",
    ),
    "backward grad": (
        lambda: int8_backward(grad=randn(2, 6)),
        "ftrt::int8_lora_linear_backward: the last dimension of grad must be out_features; got grad"
        " (2, 6) float32, qweight (1, 2, 16, 4) int8",
    ),
    "lora backward grad": (
        lambda: lora_backward(grad=randn(2, 6)),
        "ftrt::lora_linear_backward: the last dimension of grad must be out_features; got grad (2,"
        " 6) float32, weight (5, 8) float32",
    ),
    "lora backward x": (
        lambda: lora_backward(x=randn(2, 7)),
        "ftrt::lora_linear_backward: x must have the rows and the dtype of grad; got x (2, 7)"
        " float32, grad (2, 5) float32, in_features 8",
    ),
    "lora backward h": (
        lambda: lora_backward(h=randn(1, 3)),
        "ftrt::lora_linear_backward: h must be (rows, rank + outliers) float32; got h (1, 3)"
        " float32, rows 2, columns 3",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_operand_is_an_error_with_its_shape_on_the_reference(reference, name):
    run, text = BAD[name]
    with pytest.raises(RuntimeError) as caught:
        run()
    assert text in str(caught.value)


@pytest.mark.skipif(EXTENSION.module is None, reason="no compiled kernels")
@pytest.mark.parametrize("name", BAD)
def test_the_kernels_refuse_the_same_in_the_same_words(name):
    run, text = BAD[name]
    with pytest.raises(RuntimeError) as caught:
        run()
    assert text in str(caught.value)


def test_a_scale_that_should_train_is_an_error():
    scale = SCALE.clone().requires_grad_()
    rule = "scale is frozen and must not require grad; got scale.requires_grad=True"
    with pytest.raises(RuntimeError, match=f"ftrt::int8_linear: {rule}"):
        int8_linear(X, PACKED, scale)
    with pytest.raises(RuntimeError, match=f"ftrt::int8_lora_linear: {rule}"):
        int8_lora(scale=scale)


def test_a_weight_that_should_train_is_sent_to_lora_forward():
    with pytest.raises(RuntimeError) as caught:
        lora(weight=WEIGHT.clone().requires_grad_())
    assert str(caught.value) == (
        "ftrt::lora_linear: weight is frozen and must not require grad; ftrt.nn.lora_forward takes"
        " torch's own ops for a layer whose weight trains; got weight.requires_grad=True"
    )
    with torch.no_grad():
        lora(weight=WEIGHT.clone().requires_grad_())


def test_the_reference_names_the_dtypes_it_takes(reference):
    for run in (
        lambda: int8_linear(X.long(), PACKED, SCALE),
        lambda: OPS.lora_linear(X.long(), WEIGHT.long(), None, A, B, 1.0, 0.0, None),
    ):
        with pytest.raises(RuntimeError) as caught:
            run()
        rule = "x must be float32, bfloat16, float16 or float64; got x (2, 8) int64"
        assert rule in str(caught.value)


KERNELS = "CUDA kernel takes float32, float16" if CUDA_PLACE else "CPU kernel takes float32"


@pytest.mark.skipif(EXTENSION.module is None and not CUDA_PLACE, reason="no compiled kernels")
@pytest.mark.parametrize("dtype", [*[torch.float16] * (not CUDA_PLACE), torch.float64, torch.int64])
def test_the_kernels_name_the_dtypes_they_take(dtype):
    name, x = str(dtype).removeprefix("torch."), X.to(dtype)
    runs = {
        "int8_linear": lambda: int8_linear(x, PACKED, CHANNEL),
        "int8_lora_linear": lambda: int8_lora(x=x),
        "quantize_per_token": lambda: quantize_per_token(x),
    }
    for op, run in runs.items():
        with pytest.raises(RuntimeError) as caught:
            run()
        assert (
            f"ftrt::{op}: the {KERNELS} or bfloat16; got x (2, 8) {name}."
            " Cast x, or load the model in one of them"
        ) in str(caught.value)
