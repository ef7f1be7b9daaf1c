"""Which implementation lora_forward takes, and dropout and column scales on each."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import ftrt.nn.low_rank as low_rank
from ftrt.errors import UsageError
from ftrt.nn import Int8Linear, lora_forward
from ftrt.quantization import PerChannel, PerGroup
from ftrt.testing.tolerances import assert_close

SCALING = 0.75


class Foreign(nn.Module):
    def __init__(self, linear):
        super().__init__()
        self.linear, self.bias = linear, linear.bias

    def forward(self, x):
        return self.linear(x)


def base_of(kind, bias=True):
    """(base, the weight it computes with in float64)."""
    torch.manual_seed(0)
    linear = nn.Linear(65, 17, bias=bias).requires_grad_(False)
    if kind in ("int8", "w8a8"):
        layer = Int8Linear.from_linear(linear, PerChannel())
        if kind == "w8a8":
            layer.set_compute("w8a8", [3, 40])
        return layer, layer.dequantize(torch.float64)
    if kind == "trained":
        linear.requires_grad_(True)
    return (Foreign(linear) if kind == "foreign" else linear), linear.weight.detach().double()


def factors(rank=8):
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(*s, generator=generator) for s in ((rank, 65), (17, rank)))
    return a.requires_grad_(), b.requires_grad_()


KINDS = ["float", "int8", "w8a8", "foreign", "trained"]
# of y, where x is rounded to int8
ROUGH = 1.5e-2


def check(kind, actual, expected, *, what):
    if kind != "w8a8":
        assert_close(actual, expected, k=90, what=what)
    assert (actual - expected).norm() <= ROUGH * expected.norm(), what


@pytest.fixture
def taken(monkeypatch):
    """Names of the fused ops that ran, in order."""
    names = []
    for name in ("lora_linear", "int8_lora_linear"):
        original = getattr(low_rank, name)

        def spy(*args, name=name, original=original, **kwargs):
            names.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(low_rank, name, spy)
    return names


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("float", ["lora_linear"]),
        ("int8", ["int8_lora_linear"]),
        ("w8a8", ["int8_lora_linear"]),
        ("foreign", []),
        ("trained", []),
    ],
)
def test_the_type_of_the_base_chooses(taken, kind, expected):
    lora_forward(base_of(kind)[0], torch.randn(5, 65), *factors(), SCALING)
    assert taken == expected


def test_a_trained_bias_alone_stays_fused_and_gets_its_gradient(taken):
    for kind in ("float", "int8"):
        base = base_of(kind)[0]
        base.bias.requires_grad_(True)
        lora_forward(base, torch.randn(5, 65), *factors(), SCALING).sum().backward()
        assert torch.equal(base.bias.grad, torch.full((17,), 5.0))
    assert taken == ["lora_linear", "int8_lora_linear"]


class Other(nn.Parameter):
    """As a quantized or sharded weight would be."""


def hooked(base, kind):
    calls = []
    if kind == "forward":
        base.register_forward_hook(lambda *a: calls.append(kind))
    elif kind == "pre":
        base.register_forward_pre_hook(lambda *a: calls.append(kind))
    elif kind == "backward":
        base.register_full_backward_hook(lambda *a: calls.append(kind))
    elif kind == "backward pre":
        base.register_full_backward_pre_hook(lambda *a: calls.append(kind))
    elif kind == "instance":
        original = base.forward
        base.forward = lambda x: calls.append(kind) or original(x)
    return calls


@pytest.mark.parametrize("hook", ["forward", "pre", "backward", "backward pre", "instance"])
@pytest.mark.parametrize("kind", ["float", "int8"])
def test_whatever_hooks_the_base_still_fires(taken, kind, hook):
    base, weight = base_of(kind)
    calls = hooked(base, hook)
    x, (a, b) = torch.randn(5, 65).requires_grad_(), factors()
    y = lora_forward(base, x, a, b, SCALING)
    y.sum().backward()
    assert calls == [hook] and taken == []
    expected = x.double() @ weight.T + base.bias.double()
    assert_close(y, expected + SCALING * (x.double() @ a.double().T) @ b.double().T, k=90)


def test_a_global_hook_fires_too(taken):
    base, seen = base_of("float")[0], []
    handle = nn.modules.module.register_module_forward_hook(lambda m, *a: seen.append(m))
    try:
        lora_forward(base, torch.randn(5, 65), *factors(), SCALING)
    finally:
        handle.remove()
    assert seen == [base] and taken == []


@pytest.mark.parametrize("rank", [256, 257, 300])
@pytest.mark.parametrize("kind", ["float", "int8"])
def test_a_rank_above_256_is_not_fused(taken, kind, rank):
    base, weight = base_of(kind)
    x, (a, b) = torch.randn(5, 65), factors(rank)
    y = lora_forward(base, x, a, b, SCALING)
    expected = x.double() @ weight.T + base.bias.double()
    assert_close(y, expected + SCALING * (x.double() @ a.double().T) @ b.double().T, k=65 + rank)
    assert len(taken) == (rank == 256)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_dtypes_that_no_kernel_takes_are_not_fused(taken, dtype):
    base = base_of("float")[0].to(dtype)
    y = lora_forward(base, torch.randn(5, 65, dtype=dtype), *factors(), SCALING)
    assert y.dtype == dtype and taken == []


def test_a_weight_of_a_class_of_its_own_is_not_fused(taken):
    base = base_of("float")[0]
    base.weight = Other(base.weight.detach(), requires_grad=False)
    lora_forward(base, torch.randn(5, 65), *factors(), SCALING)
    assert taken == []


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("hook", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_column_scale_is_that_of_dora_and_its_gradient_is_exact(kind, hook, bias):
    base, weight = base_of(kind, bias)
    if hook:
        hooked(base, "forward")
    offset = base.bias.detach().double() if bias else torch.zeros(17, dtype=torch.float64)
    x, (a, b) = torch.randn(2, 3, 65).requires_grad_(), factors()
    scale = torch.rand(17).add(0.5).requires_grad_()
    leaves = [x, a, b, scale]
    y = lora_forward(base, x, a, b, SCALING, column_scale=scale)
    exact = [t.detach().double().requires_grad_() for t in leaves]
    z = exact[0] @ weight.T + SCALING * (exact[0] @ exact[1].T) @ exact[2].T
    expected = exact[3] * z + offset
    check(kind, y, expected, what="y")
    grad = torch.randn_like(y)
    y.backward(grad)
    expected.backward(grad.double())
    for name, got, want in zip(("x", "a", "b", "column_scale"), leaves, exact, strict=True):
        check(kind, got.grad, want.grad, what=f"d{name}")


@pytest.mark.parametrize("kind", KINDS)
def test_a_column_scale_in_float32_keeps_the_dtype_of_y(kind):
    base = base_of(kind)[0].to(torch.bfloat16)
    a, b = factors()
    scale = torch.ones(17).requires_grad_()
    y = lora_forward(base, torch.randn(5, 65).bfloat16(), a, b, SCALING, column_scale=scale)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16 and scale.grad.dtype == a.grad.dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_leaves_the_base_alone_and_drops_its_share(kind):
    base = base_of(kind)[0]
    # One output, one rank, x of ones: the update counts the kept columns of each row.
    x, a, b = torch.ones(400, 65), torch.ones(1, 65), torch.ones(17, 1)
    plain = base(x).double()
    update = lora_forward(base, x, a, b, 1.0, dropout=0.25).double() - plain
    kept = update[:, 0] * 0.75
    assert (kept - kept.round()).abs().max() < 1e-3
    share = kept.mean() / 65
    assert abs(share - 0.75) < 5 * (0.25 * 0.75 / x.numel()) ** 0.5
    assert (update - update[:, :1]).abs().max() < 1e-3
    assert kept.unique().numel() > 5


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_is_drawn_anew_and_follows_the_global_generator(kind):
    base, x, (a, b) = base_of(kind)[0], torch.randn(5, 65), factors()
    torch.manual_seed(3)
    first, second = (lora_forward(base, x, a, b, SCALING, dropout=0.5) for _ in "12")
    torch.manual_seed(3)
    again = lora_forward(base, x, a, b, SCALING, dropout=0.5)
    assert torch.equal(first, again) and not torch.equal(first, second)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    lora_forward(base, x, a, b, SCALING)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_repeats_the_dropout(kind, reentrant):
    base = base_of(kind)[0]

    def step(x, a, b):
        return lora_forward(base, x, a, b, SCALING, dropout=0.5).square().sum()

    results = []
    for run in (step, lambda *t: checkpoint(step, *t, use_reentrant=reentrant)):
        leaves = [t.detach().requires_grad_() for t in (torch.ones(5, 65), *factors())]
        torch.manual_seed(3)
        run(*leaves).backward()
        results.append([t.grad for t in leaves])
    for got, want in zip(*results, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("kind", ["float", "int8", "w8a8"])
def test_compiles_as_one_graph_with_everything_on(kind):
    base, (a, b) = base_of(kind)[0], factors()
    scale = torch.rand(17).add(0.5).requires_grad_()

    def step(x, a, b, scale):
        y = lora_forward(base, x, a, b, SCALING, dropout=0.5, column_scale=scale)
        return y.square().sum()

    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (4, 9):
        results = []
        for run in (step, compiled):
            leaves = [t.detach().requires_grad_() for t in (torch.ones(rows, 65), a, b, scale)]
            torch.manual_seed(3)
            run(*leaves).backward()
            results.append([t.grad for t in leaves])
        for got, want in zip(*results, strict=True):
            assert_close(got, want, k=65)


def test_layers_that_share_their_input_quantize_it_once(monkeypatch):
    from ftrt.quantization.shared_input import SharedInput

    layers = [base_of("w8a8")[0] for _ in "qkv"]
    shared, made, x = SharedInput(), [], torch.randn(5, 65)
    alone = [lora_forward(layer, x, *factors(), SCALING) for layer in layers]
    for layer in layers:
        layer.share_input(shared)
    import ftrt.quantization.shared_input as module

    original = module.quantize_per_token
    monkeypatch.setattr(
        module, "quantize_per_token", lambda *args: made.append(1) or original(*args)
    )
    together = [lora_forward(layer, x, *factors(), SCALING) for layer in layers]
    assert len(made) == 1
    assert all(torch.equal(*pair) for pair in zip(alone, together, strict=True))


def test_scales_per_group_are_fused(taken):
    linear = base_of("float")[0]
    base = Int8Linear.from_linear(linear, PerGroup(13))
    x, (a, b) = torch.randn(5, 65), factors()
    y = lora_forward(base, x, a, b, SCALING)
    expected = x.double() @ base.dequantize(torch.float64).T + linear.bias.double()
    assert_close(y, expected + SCALING * (x.double() @ a.double().T) @ b.double().T, k=73)
    assert taken == ["int8_lora_linear"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_fit_is_an_error_with_its_values(kind):
    base, x, (a, b) = base_of(kind)[0], torch.randn(5, 65), factors()
    for dropout in (-0.1, 1.0, float("nan")):
        with pytest.raises(UsageError) as caught:
            lora_forward(base, x, a, b, SCALING, dropout=dropout)
        assert str(caught.value) == (
            f"lora_forward: dropout must be at least 0 and below 1; got {dropout}"
        )
    for shape in ((16,), (1, 17), ()):
        with pytest.raises(UsageError) as caught:
            lora_forward(base, x, a, b, SCALING, column_scale=torch.ones(shape))
        assert str(caught.value) == (
            f"lora_forward: column_scale must be (out_features); got {shape}, base with"
            " out_features 17"
        )
