"""ftrt::int8_linear and ftrt::int8_linear_dx: values and gradients against float64, at each ISA."""

import pytest
import torch
from op_subjects import DEVICE, randn, weight_of
from torch.utils.checkpoint import checkpoint

from ftrt.ops import int8_linear, int8_linear_dx, pack_int8
from ftrt.testing.tolerances import assert_close

# (out_features, in_features, groups): below, at and above the 16- and 32-column panels, the
# 384-deep slices and the 512-column blocks
WEIGHTS = [
    (1, 1, 1),
    (7, 65, 1),
    (65, 7, 7),
    (111, 48, 3),
    (16, 16, 16),
    (33, 400, 1),
    (33, 400, 25),
    (130, 770, 2),
    (530, 40, 1),
]
ROWS = [0, 1, 7, 65, 111, 430]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", WEIGHTS)
def test_values_are_those_of_float64(isa, shape, dtype):
    out_features, in_features, _ = shape
    qweight, scale, weight = weight_of(*shape)
    bias = randn(out_features, seed=2)
    for rows in ROWS:
        x = randn(rows, in_features, dtype=dtype)
        y = int8_linear(x, qweight, scale, bias)
        assert y.dtype == dtype
        assert_close(y, x.double() @ weight.T + bias.double(), k=in_features, what=f"y, {rows}")
        grad = randn(rows, out_features, dtype=dtype)
        dx = int8_linear_dx(grad, qweight, scale)
        assert dx.dtype == dtype
        assert_close(dx, grad.double() @ weight, k=out_features, what=f"dx, {rows}")


def test_bfloat16_is_rounded_once(isa):
    if isa in ("reference", "cuda"):
        pytest.skip("a float product of matrices rounds the weight to bfloat16 first")
    qweight, scale, weight = weight_of(130, 770, 1)
    x = randn(65, 770, dtype=torch.bfloat16)
    y = int8_linear(x, qweight, scale)
    exact = x.double() @ weight.T
    # half a unit in the last place, and the float32 sum's own error before it
    bound = exact.abs() * 2**-8 + 1e-4
    assert ((y.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("rows", [1, 4, 32])
@pytest.mark.parametrize("size", [1e2, 1e3, 1e4])
def test_w8a16_keeps_small_values_beside_massive_ones(isa, rows, size):
    # what language models do with a few columns whose weights are next to nothing
    x = randn(rows, 400)
    x[:, :3] *= size
    x = x.to(torch.bfloat16)
    qweight, scale, weight = weight_of(64, 400)
    qweight[:, :3] = 0
    weight[:, :3] = 0
    expected = x.double() @ weight.T

    error = (int8_linear(x, qweight, scale).double() - expected).norm() / expected.norm()

    assert error <= 4e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_and_infinity_stay_in_their_row(isa, dtype):
    qweight, scale, _ = weight_of(33, 400, 1)
    qweight[qweight == 0] = 1
    x = randn(9, 400, dtype=dtype)
    clean = int8_linear(x, qweight, scale)
    x[3, 17], x[5, 2] = float("nan"), float("inf")
    y = int8_linear(x, qweight, scale)
    assert y[3].isnan().all() and y[5].isinf().all()
    others = [0, 1, 2, 4, 6, 7, 8]
    assert torch.equal(y[others], clean[others])


@pytest.mark.parametrize(
    "x",
    [
        randn(2, 3, 65),
        randn(65),
        randn(65, 12).t(),
        randn(40, 65)[::3],
        randn(9, 130)[:, ::2],
        randn(1, 65).expand(5, 65),
        randn(4, 65, 3).transpose(1, 2),
        randn(2, 0, 65),
        randn(70).as_strided((6, 65), (1, 1)),
    ],
    ids=["3-D", "1-D", "transposed", "rows", "columns", "expanded", "batch", "empty", "overlap"],
)
def test_any_layout_of_x(isa, x):
    qweight, scale, weight = weight_of(7, 65, 1)
    y = int8_linear(x, qweight, scale, None)
    assert y.shape == (*x.shape[:-1], 7)
    assert_close(y, x.double() @ weight.T, k=65)
    qweight, scale, weight = weight_of(65, 7, 7)
    assert_close(int8_linear_dx(x, qweight, scale), x.double() @ weight, k=65)


def test_result_does_not_depend_on_the_number_of_threads(isa):
    qweight, scale, _ = weight_of(530, 400, 1)
    x = randn(430, 400)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(int8_linear(x, qweight, scale))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("groups", [1, 5])
def test_gradients_are_those_of_float64(isa, groups):
    qweight, scale, weight = weight_of(11, 65, groups)
    x = randn(2, 7, 65).requires_grad_()
    bias = randn(11, seed=3).requires_grad_()
    grad = randn(2, 7, 11, seed=4)
    int8_linear(x, qweight, scale, bias).backward(grad)
    assert_close(x.grad, grad.double() @ weight, k=11, what="dx")
    assert_close(bias.grad, grad.double().sum((0, 1)), k=14, what="dbias")


def test_only_asked_for_gradients_are_computed(isa):
    qweight, scale, _ = weight_of(11, 65, 1)
    bias = randn(11).requires_grad_()
    x = randn(3, 65)
    int8_linear(x, qweight, scale, bias).sum().backward()
    assert x.grad is None and torch.equal(bias.grad, torch.full((11,), 3.0))
    assert not int8_linear(x, qweight, scale, bias.detach()).requires_grad


def test_bias_in_another_dtype_gets_its_gradient_in_that_dtype(isa):
    qweight, scale, _ = weight_of(11, 65, 1)
    bias = randn(11).requires_grad_()
    y = int8_linear(randn(3, 65, dtype=torch.bfloat16), qweight, scale, bias)
    y.sum().backward()
    assert y.dtype == torch.bfloat16 and bias.grad.dtype == torch.float32


def test_second_derivative_is_that_of_a_linear_map(isa):
    qweight, scale, weight = weight_of(11, 65, 1)
    grad = randn(3, 11).requires_grad_()
    cotangent = randn(3, 65, seed=5)
    int8_linear_dx(grad, qweight, scale).backward(cotangent)
    assert_close(grad.grad, cotangent.double() @ weight.T, k=65)


def test_reference_passes_gradcheck_in_float64(reference):
    qweight, scale, _ = weight_of(5, 12, 3)
    x = randn(3, 12, dtype=torch.float64).requires_grad_()
    bias = randn(5, dtype=torch.float64).requires_grad_()
    grad = randn(3, 5, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, b: int8_linear(x, qweight, scale, b), (x, bias))
    assert torch.autograd.gradgradcheck(lambda x, b: int8_linear(x, qweight, scale, b), (x, bias))
    assert torch.autograd.gradcheck(lambda g: int8_linear_dx(g, qweight, scale), (grad,))
    assert torch.autograd.gradgradcheck(lambda g: int8_linear_dx(g, qweight, scale), (grad,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
@pytest.mark.parametrize("shape", WEIGHTS)
def test_the_reference_takes_every_float(reference, shape, dtype):
    qweight, scale, weight = weight_of(*shape)
    x = randn(7, shape[1], dtype=dtype)
    assert_close(int8_linear(x, qweight, scale), x.double() @ weight.T, k=shape[1])
    grad = randn(7, shape[0], dtype=dtype)
    assert_close(int8_linear_dx(grad, qweight, scale), grad.double() @ weight, k=shape[0])


@pytest.mark.parametrize("groups", [1, 5])
@pytest.mark.parametrize("with_bias", [True, False])
def test_opcheck(groups, with_bias):
    qweight, scale, _ = weight_of(11, 65, groups)
    packed = pack_int8(qweight)
    bias = randn(11).requires_grad_() if with_bias else None
    x = randn(3, 65).requires_grad_()
    forward = torch.ops.ftrt.int8_linear.default
    torch.library.opcheck(forward, (x, None, None, packed, scale, bias, None))
    grad = randn(2, 3, 11).requires_grad_()
    backward = torch.ops.ftrt.int8_linear_dx.default
    torch.library.opcheck(backward, (grad, packed, scale, 65, False))


@pytest.mark.parametrize("autocast", [False, True])
def test_compiles_as_one_graph(autocast):
    qweight, scale, _ = weight_of(11, 65, 1)

    def step(x, bias):
        with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=autocast):
            return torch.nn.functional.gelu(int8_linear(x, qweight, scale, bias)).float().sum()

    results = []
    torch.compiler.reset()
    for run in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        x, bias = randn(3, 65).requires_grad_(), randn(11).requires_grad_()
        run(x, bias).backward()
        results.append((x.grad, bias.grad))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


def test_compiles_with_a_changing_number_of_rows():
    qweight, scale, _ = weight_of(11, 65, 1)
    torch.compiler.reset()
    run = torch.compile(
        lambda x: int8_linear(x, qweight, scale), fullgraph=True, backend="aot_eager", dynamic=True
    )
    for rows in (3, 8, 21):
        x = randn(rows, 65)
        assert torch.equal(run(x), int8_linear(x, qweight, scale))


def test_autocast_casts_x_and_nothing_else():
    qweight, scale, weight = weight_of(11, 65, 1)
    x, bias = randn(3, 65).requires_grad_(), randn(11).requires_grad_()
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        y = int8_linear(x, qweight, scale, bias)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, int8_linear(x.bfloat16(), qweight, scale, bias))
    y.float().sum().backward()
    assert x.grad.dtype == torch.float32 and bias.grad.dtype == torch.float32
    assert_close(x.grad, weight.sum(0).expand(3, -1).bfloat16(), k=11)


def test_gradient_checkpointing_gives_the_same_gradient():
    qweight, scale, _ = weight_of(11, 65, 1)
    grads = []
    for run in (int8_linear, lambda *a: checkpoint(int8_linear, *a, use_reentrant=False)):
        x = randn(3, 65).requires_grad_()
        run(x, qweight, scale, None).square().sum().backward()
        grads.append(x.grad)
    assert torch.equal(*grads)


def test_activations_are_not_kept_for_backward():
    qweight, scale, _ = weight_of(11, 65, 1)
    qweight = pack_int8(qweight)
    kept = []
    x = randn(3, 65).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        int8_linear(x, qweight, scale, None)
    assert {t.data_ptr() for t in kept} == {qweight.data_ptr(), scale.data_ptr()}


def test_packed_and_row_major_weights_are_the_same(isa):
    qweight, scale, _ = weight_of(33, 65, 5)
    packed = pack_int8(qweight)
    x, grad = randn(7, 65), randn(7, 33)
    assert torch.equal(int8_linear(x, packed, scale), int8_linear(x, qweight, scale))
    dx = int8_linear_dx(grad, packed, scale, in_features=65)
    assert torch.equal(dx, int8_linear_dx(grad, qweight, scale))
