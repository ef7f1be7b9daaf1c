"""Layers that get the very same x quantize it once, and never another's."""

import copy
import gc
import pickle
import threading
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import ftrt.quantization.shared_input as shared_module
from ftrt.nn import lora_forward
from ftrt.ops import quantize_per_token
from ftrt.quantization import quantize_linears


class Attention(nn.Module):
    def __init__(self, width=24):
        super().__init__()
        torch.manual_seed(0)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, 8)
        self.value, self.out = nn.Linear(width, 8), nn.Linear(8, width)

    def forward(self, x):
        return self.out(self.query(x)[..., :8].tanh() * self.key(x) + self.value(x))


def attention(compute="w8a8"):
    model = Attention()
    quantize_linears(model, compute=compute)
    return model


@pytest.fixture
def quantized(monkeypatch):
    """The x that were quantized."""
    seen = []

    def count(x, outliers=None):
        seen.append(x)
        return quantize_per_token(x, outliers)

    monkeypatch.setattr(shared_module, "quantize_per_token", count)
    return seen


X = torch.randn(5, 24, generator=torch.Generator().manual_seed(1))


def test_query_key_and_value_quantize_their_x_once(quantized):
    model = attention()
    alone = copy.deepcopy(model)
    for layer in alone.children():
        layer.share_input(None)
    assert torch.equal(model(X), alone(X))
    assert [x.shape[-1] for x in quantized] == [24, 8]


def test_w8a16_quantizes_nothing(quantized):
    model = attention("w8a16")
    model(X)
    assert model.query.quantized_input(X) is None and not quantized


def test_adapters_share_it_too_and_three_layers_save_one_int8_x(quantized):
    model, x = attention(), X.clone().requires_grad_()
    factors = [
        (torch.randn(4, 24).requires_grad_(), torch.randn(layer.out_features, 4).requires_grad_())
        for layer in (model.query, model.key, model.value)
    ]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        sum(
            lora_forward(layer, x, a, b, 0.5).sum()
            for layer, (a, b) in zip(model.children(), factors, strict=False)
        ).backward()
    assert len(quantized) == 1
    rows = [t for t in saved if t.dtype == torch.int8 and t.dim() == 2]
    assert len(rows) == 3 and len({t.data_ptr() for t in rows}) == 1
    assert not any(t.data_ptr() == x.data_ptr() for t in saved)
    assert all(a.grad is not None and b.grad is not None for a, b in factors)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.mul_(2),
        lambda x: x[0].zero_(),
        lambda x: x.copy_(torch.ones_like(x)),
    ],
)
def test_an_x_that_was_written_to_is_quantized_again(change):
    model, x = attention(), X.clone()
    model.query(x)
    change(x)
    assert torch.equal(model.key(x), attention().key(x.clone()))


def test_an_equal_x_is_another_x(quantized):
    model = attention()
    model.query(X)
    model.key(X.clone())
    assert len(quantized) == 2


def test_other_outliers_or_another_autocast_dtype_are_another_x(quantized):
    model = attention()
    model.query(X)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model.key(X)
        assert torch.equal(y, attention().key(X))
    model.value.set_compute("w8a8", [2])
    expected = attention()
    expected.value.set_compute("w8a8", [2])
    assert torch.equal(model.value(X), expected.value(X))
    assert len({id(x) for x in quantized if x is X}) == 1 and len(quantized) >= 3


def test_x_and_its_rows_go_when_nobody_else_holds_them():
    model = attention()
    x = X.clone()
    with torch.no_grad():
        model.query(x)
    held = model.query._shared._entries
    (entry,) = held.values()
    gone = weakref.ref(x)
    del entry
    assert len(held) == 1
    del x
    gc.collect()
    assert gone() is None and not held


def test_rows_made_in_inference_mode_are_not_used_outside_it():
    model, x = attention(), X.clone().requires_grad_()
    with torch.inference_mode():
        model.query(x)
        model(torch.ones(3, 24))
    model.key(x).sum().backward()
    assert x.grad is not None


def test_gradient_checkpointing_gives_the_same_gradients():
    grads = []
    for run in (lambda f, x: f(x), lambda f, x: checkpoint(f, x, use_reentrant=False)):
        x = X.clone().requires_grad_()
        run(attention(), x).square().sum().backward()
        grads.append(x.grad)
    assert torch.equal(*grads)


def test_threads_do_not_take_each_others_rows():
    model = attention()
    inputs = [torch.randn(5, 24) for _ in range(8)]
    expected = [attention()(x) for x in inputs]
    results = [None] * len(inputs)
    barrier = threading.Barrier(len(inputs))

    def work(index):
        barrier.wait()
        for _ in range(20):
            results[index] = model(inputs[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(got, want) for got, want in zip(results, expected, strict=True))


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_layers_of_a_copy_share_among_themselves(clone, quantized):
    model = attention()
    model(X)
    other = clone(model)
    assert other.query._shared is other.value._shared is not model.query._shared
    quantized.clear()
    assert torch.equal(other(X), model(X))
    assert len(quantized) == 4


def test_under_compile_nothing_is_remembered(monkeypatch):
    model = attention()
    expected = model(X)
    torch.compiler.reset()
    model.query._shared._entries.clear()
    run = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(run(X), expected)
    assert not model.query._shared._entries


def test_nothing_is_shared_while_a_graph_is_captured(quantized, monkeypatch):
    """What a warm-up made of a graph's input would be no part of the graph: each replay would
    compute with it, whatever x is by then."""
    model = attention()
    model(X)
    monkeypatch.setattr(shared_module, "_is_captured", lambda x: True)
    model(X)
    assert [x.shape[-1] for x in quantized] == [24, 8, 24, 24, 24, 8]
