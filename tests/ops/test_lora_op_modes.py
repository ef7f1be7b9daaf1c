"""The fused ops under autograd's, autocast's, checkpointing's and the compiler's eyes."""

import os

import pytest
import torch
from op_subjects import COMPUTES, DEVICE, SCALING, layer_of, randn
from torch.utils.checkpoint import checkpoint

from ftrt.ops import int8_lora_linear, lora_linear, pack_int8, quantize_per_token
from ftrt.ops.extension import EXTENSION


def operands(layer, x):
    """What the registered op of a layer takes, with x."""
    a, b, seed = layer.a, layer.b, layer.seed
    if layer.compute == "float":
        op = torch.ops.ftrt.lora_linear.default
        return op, (x, layer.float_weight, layer.bias, a, b, SCALING, layer.dropout, seed)
    xq, xscale = quantize_per_token(x, layer.outliers) if layer.compute == "w8a8" else (None, None)
    packed = pack_int8(layer.qweight)
    op = torch.ops.ftrt.int8_lora_linear.default
    first = (x, xq, xscale, packed, layer.scale, layer.bias, a, b, SCALING, layer.outliers)
    return op, (*first, layer.dropout, seed)


def backward_operands(layer, x, needs):
    op, arguments = operands(layer, x)
    hidden = op(*arguments)[1]
    rows = (*x.shape[:-1], layer.weight.shape[0])
    a, b = layer.a.detach(), layer.b.detach()
    if layer.compute == "float":
        last = (layer.float_weight, a, b, SCALING, layer.dropout, layer.seed, *needs)
        return torch.ops.ftrt.lora_linear_backward.default, (randn(*rows), x, hidden, *last)
    _, xq, xscale, packed, scale = arguments[:5]
    x = x if xq is None else None
    last = (a, b, SCALING, layer.outliers, layer.dropout, layer.seed, *needs)
    first = (randn(*rows), x, xq, xscale, hidden, packed, scale)
    return torch.ops.ftrt.int8_lora_linear_backward.default, (*first, *last)


@pytest.mark.parametrize("compute", COMPUTES)
@pytest.mark.parametrize("special", [False, True])
def test_opcheck(compute, special):
    layer = layer_of(
        compute, 17, 65, 8, bias=special, outliers=(3, 40) * special, dropout=0.25 * special
    )
    x = randn(2, 3, 65)
    torch.library.opcheck(*operands(layer, x.clone().requires_grad_()))
    for needs in ((True, True, True), (False, True, False), (True, False, True)):
        torch.library.opcheck(*backward_operands(layer, x, needs))


@pytest.mark.parametrize("compute", COMPUTES)
def test_what_is_not_needed_is_empty_and_what_is_needed_does_not_depend_on_it(isa, compute):
    layer = layer_of(compute, 17, 65, 8, dropout=0.25, outliers=(3, 40))
    x = randn(5, 65)
    op, arguments = backward_operands(layer, x, (True, True, True))
    full = op(*arguments)
    for needs in ((True, False, False), (False, True, False), (False, False, True), (False,) * 3):
        results = op(*arguments[:-3], *needs)
        for result, everything, need in zip(results, full, needs, strict=True):
            assert result.dtype == everything.dtype
            assert torch.equal(result, everything) if need else result.shape == (0,)


def saved(run):
    """Every tensor that autograd keeps for backward."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        run()
    return kept


@pytest.mark.parametrize("compute", ["w8a16", "w8a8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_keeps_no_float_x_and_w8a16_keeps_it_once(isa, compute, dtype):
    layer = layer_of(compute, 33, 65, 8, dtype=dtype, outliers=(3, 40), dropout=0.25)
    layer.qweight = pack_int8(layer.qweight)
    x = randn(40, 65, dtype=dtype).requires_grad_()
    kept = saved(lambda: layer(x))
    wide = [t for t in kept if t.numel() == x.numel()]
    if compute == "w8a16":
        assert len(wide) == 1 and wide[0].data_ptr() == x.data_ptr()
    else:
        assert [t.dtype for t in wide] == [torch.int8]
        assert (40, 8 + 2) in {tuple(t.shape) for t in kept}
    new = {t.data_ptr(): t.nbytes for t in kept}
    for tensor in (layer.qweight, layer.scale, layer.a, layer.b, layer.outliers, layer.seed, x):
        if tensor is not None:
            new.pop(tensor.data_ptr(), None)
    columns = 8 + (2 if compute == "w8a8" else 0)
    int8_bytes = 40 * 65 + 4 * 40 if compute == "w8a8" else 0
    assert sum(new.values()) == 4 * 40 * columns + int8_bytes


@pytest.mark.parametrize("compute", ["w8a16", "w8a8"])
def test_a_frozen_a_needs_no_x_at_all(isa, compute):
    layer = layer_of(compute, 33, 65, 8)
    layer.qweight = pack_int8(layer.qweight)
    x = randn(40, 65).requires_grad_()
    grad = randn(40, 33, seed=5)
    expected = torch.autograd.grad(layer(x), [x, layer.b, layer.bias], grad)
    layer.a.requires_grad_(False)
    assert all(t.numel() < x.numel() for t in saved(lambda: layer(x)) if t is not layer.qweight)
    got = torch.autograd.grad(layer(x), [x, layer.b, layer.bias], grad)
    assert all(torch.equal(*pair) for pair in zip(got, expected, strict=True))


@pytest.mark.parametrize("compute", COMPUTES)
def test_each_gradient_alone_is_the_one_of_all(isa, compute):
    layer = layer_of(compute, 17, 65, 8, dropout=0.25)
    x, grad = randn(5, 65), randn(5, 17, seed=5)
    leaves = [x.clone().requires_grad_(), layer.a, layer.b, layer.bias]
    together = torch.autograd.grad(layer(leaves[0]), leaves, grad)
    for chosen, expected in enumerate(together):
        own = [t.detach().requires_grad_(i == chosen) for i, t in enumerate(leaves)]
        y = layer(own[0], a=own[1], b=own[2], bias=own[3])
        assert torch.equal(torch.autograd.grad(y, own[chosen], grad)[0], expected)
    frozen = [t.detach() for t in leaves]
    assert not layer(frozen[0], a=frozen[1], b=frozen[2], bias=frozen[3]).requires_grad


@pytest.mark.parametrize("compute", ["float", "w8a16"])
@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_reference_passes_gradcheck_in_float64(reference, compute, dropout):
    layer = layer_of(compute, 5, 12, 3, dtype=torch.float64, dropout=dropout)
    x = randn(4, 12, dtype=torch.float64).requires_grad_()
    bias = layer.bias.detach().double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, a, b, bias: layer(x, a=a, b=b, bias=bias), (x, layer.a, layer.b, bias)
    )


@pytest.mark.parametrize("compute", COMPUTES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_the_reference_takes_every_float(reference, compute, dtype):
    from op_subjects import check_layer

    layer = layer_of(compute, 33, 65, 8, dtype=dtype, outliers=(3,), dropout=0.25)
    for rows in (0, 1, 17):
        check_layer(layer, randn(rows, 65, dtype=dtype))


@pytest.mark.parametrize("compute", COMPUTES)
def test_a_second_derivative_is_refused(compute):
    layer = layer_of(compute, 17, 65, 8)
    x = randn(5, 65).requires_grad_()
    y = layer(x).square().sum()
    (dx,) = torch.autograd.grad(y, x, create_graph=True)
    name = "lora_linear" if compute == "float" else "int8_lora_linear"
    with pytest.raises(RuntimeError) as caught:
        dx.sum().backward()
    assert str(caught.value) == (
        f"ftrt::{name}_backward: must be differentiated at most once; got a second derivative"
    )


@pytest.mark.parametrize("compute", COMPUTES)
@pytest.mark.parametrize("factors", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_factors_of_another_dtype_are_cast_and_get_their_own_gradients(isa, compute, factors):
    layer = layer_of(compute, 17, 65, 8, dtype=torch.bfloat16)
    a, b = (t.detach().to(factors).requires_grad_() for t in (layer.a, layer.b))
    x = randn(5, 65, dtype=torch.bfloat16)
    y = layer(x, a=a, b=b)
    assert y.dtype == torch.bfloat16 and torch.equal(y, layer(x))
    y.float().sum().backward()
    assert a.grad.dtype == b.grad.dtype == factors
    assert layer.bias.grad.dtype == torch.float32


@pytest.mark.parametrize("compute", COMPUTES)
def test_autocast_computes_in_its_dtype_and_gradients_are_those_of_the_parameters(isa, compute):
    layer = layer_of(compute, 17, 65, 8, outliers=(3,), dropout=0.25)
    x = randn(5, 65).requires_grad_()
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        y = layer(x)
        op, arguments = operands(layer, x)
        raw = op(*arguments)[0]
    assert y.dtype == torch.bfloat16 and torch.equal(raw, y)
    half = layer_of(compute, 17, 65, 8, dtype=torch.bfloat16, outliers=(3,), dropout=0.25)
    assert torch.equal(y, half(x.bfloat16()))
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        y.float().sum().backward()
    assert {t.grad.dtype for t in (x, layer.a, layer.b, layer.bias)} == {torch.float32}


def runs(layer):
    """The step of a layer, plain, checkpointed in both ways and compiled."""

    def step(x, a, b, bias):
        return layer(x, a=a, b=b, bias=bias).sin().float().sum()

    def again(reentrant):
        return lambda *leaves: checkpoint(step, *leaves, use_reentrant=reentrant)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
    return {"plain": step, "kept": again(False), "reentrant": again(True), "compiled": compiled}


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("compute", COMPUTES)
def test_checkpointing_and_compiling_change_nothing(compute, autocast):
    layer = layer_of(compute, 17, 65, 8, dropout=0.25, outliers=(3, 40))
    if compute != "float":
        layer.qweight = pack_int8(layer.qweight)
    torch.compiler.reset()
    results = {}
    for name, run in runs(layer).items():
        for rows in (4, 9, 21):
            x = randn(rows, 65)
            leaves = [t.detach().requires_grad_() for t in (x, layer.a, layer.b, layer.bias)]
            with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=autocast):
                loss = run(*leaves)
            loss.backward()
            results[name, rows] = [loss, *(leaf.grad for leaf in leaves)]
    for (name, rows), values in results.items():
        for got, want in zip(values, results["plain", rows], strict=True):
            assert torch.equal(got, want), (name, rows)


@pytest.mark.parametrize("compute", COMPUTES)
def test_two_runs_agree_to_the_last_bit(isa, compute):
    layer = layer_of(compute, 130, 400, 16, dropout=0.25, outliers=(3, 40))
    x, grad = randn(150, 400).requires_grad_(), randn(150, 130, seed=5)
    leaves = [x, layer.a, layer.b, layer.bias]
    before, results = torch.get_num_threads(), []
    try:
        for threads in (2, 2, 2, 1, 5):
            torch.set_num_threads(threads)
            y = layer(x)
            results.append([y, *torch.autograd.grad(y, leaves, grad)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:3]:
        assert all(torch.equal(*pair) for pair in zip(other, results[0], strict=True))
    if isa != "reference":
        # Rows of y and dx are sums of their own, whichever thread computes them.
        for other in results[3:]:
            assert torch.equal(other[0], results[0][0]) and torch.equal(other[1], results[0][1])


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="no /proc to read memory from")
def test_ten_thousand_steps_leave_no_memory_behind():
    # The references take ten times as long, and leak alike if autograd does.
    steps = 10_000 if EXTENSION.module else 2_000
    qweight, scale = torch.ones(16, 64, dtype=torch.int8), torch.ones(16, 1)
    packed, weight, outliers = pack_int8(qweight), torch.ones(16, 64), torch.tensor([3])
    x = randn(256, 64)
    a, b = randn(4, 64).requires_grad_(), randn(16, 4).requires_grad_()
    seed = torch.tensor(5)

    def step(i):
        shared = {"dropout": 0.1, "seed": seed} if i % 10 == 0 else {}
        if i % 3 == 0:
            y = lora_linear(x, weight, None, a, b, 1.0, **shared)
        elif i % 3 == 1:
            y = int8_lora_linear(x, packed, scale, None, a, b, 1.0, **shared)
        else:
            columns = {"compute": "w8a8", "outliers": outliers}
            y = int8_lora_linear(x, packed, scale, None, a, b, 1.0, **columns, **shared)
        torch.autograd.grad(y.sum(), [a, b])

    for i in range(steps // 10):
        step(i)
    before = resident_bytes()
    for i in range(steps):
        step(i)
    # One h of 256 x 4 floats left behind at each step would be 8 MiB and more, one x 128 MiB.
    assert resident_bytes() - before < 4 * 2**20
