"""What only a GPU can show: graphs, streams and devices. Skipped where there is none."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from ftrt.nn import Int8Linear, lora_forward
from ftrt.ops import draw_seed
from ftrt.quantization import PerChannel

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no usable GPU")

FEATURES = 256


def layer_on(device, compute="w8a8"):
    torch.manual_seed(0)
    linear = torch.nn.Linear(FEATURES, FEATURES, device="cpu").requires_grad_(False)
    layer = Int8Linear.from_linear(linear, PerChannel())
    layer.set_compute(compute, [3, 40] if compute == "w8a8" else [])
    a, b = torch.randn(8, FEATURES, device="cpu"), torch.randn(FEATURES, 8, device="cpu")
    leaves = [t.to(device, torch.bfloat16).requires_grad_() for t in (a, b)]
    return layer.to(device, torch.bfloat16), *leaves


def rows_on(device, rows=64):
    return torch.randn(rows, FEATURES, device="cpu").to(device, torch.bfloat16)


@pytest.mark.parametrize("compute", ["w8a16", "w8a8"])
def test_a_graph_replays_forward_and_backward_with_new_masks(compute):
    layer, a, b = layer_on("cuda", compute)
    x = rows_on("cuda").requires_grad_()

    def step():
        y = lora_forward(layer, x, a, b, 1.0, dropout=0.5)
        return y, *torch.autograd.grad(y.float().square().sum(), [x, a, b])

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    seen = []
    for _ in range(2):
        graph.replay()
        torch.cuda.synchronize()
        seen.append([t.clone() for t in results])
    for first, second in zip(*seen, strict=True):
        assert first.isfinite().all() and not torch.equal(first, second)


@pytest.mark.parametrize("compute", ["w8a16", "w8a8"])
def test_nothing_waits_for_the_device(compute):
    layer, a, b = layer_on("cuda", compute)
    x = rows_on("cuda").requires_grad_()
    for mode in ("default", "error"):
        # The first step loads the kernels.
        torch.cuda.set_sync_debug_mode(mode)
        try:
            lora_forward(layer, x, a, b, 1.0, dropout=0.5).sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert a.grad.isfinite().all()


def test_an_op_runs_on_the_current_stream():
    layer, a, b = layer_on("cuda")
    x = rows_on("cuda")
    expected = lora_forward(layer, x, a, b, 1.0)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        # Far behind in its stream, x is filled late; another stream would read what was before.
        late = torch.zeros_like(x)
        torch.cuda._sleep(10**8)
        late.copy_(x)
        y = lora_forward(layer, late, a, b, 1.0)
    side.synchronize()
    assert torch.equal(y, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_an_op_runs_on_the_device_of_its_operands_whatever_the_current_one():
    outputs = []
    for device in ("cuda:0", "cuda:1"):
        layer, a, b = layer_on(device)
        torch.manual_seed(5)
        y = lora_forward(layer, rows_on(device), a, b, 1.0)
        assert y.device == torch.device(device)
        outputs.append(y.cpu())
    assert torch.equal(*outputs)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_restores_the_generator_of_the_device(reentrant):
    layer, a, b = layer_on("cuda")
    x = rows_on("cuda")

    def step(x, a, b):
        return lora_forward(layer, x, a, b, 1.0, dropout=0.5).float().square().sum()

    gradients = []
    for run in (step, lambda *t: checkpoint(step, *t, use_reentrant=reentrant)):
        leaves = [t.detach().requires_grad_() for t in (x, a, b)]
        torch.manual_seed(3)
        run(*leaves).backward()
        gradients.append([t.grad for t in leaves])
    for got, want in zip(*gradients, strict=True):
        assert torch.equal(got, want)


def test_a_seed_from_the_host_is_an_error():
    from ftrt.ops import int8_lora_linear

    layer, a, b = layer_on("cuda")
    operands = (rows_on("cuda"), layer.packed, layer.scale, None, a, b, 1.0)
    with pytest.raises(RuntimeError, match="got x on cuda:0, seed on cpu"):
        int8_lora_linear(*operands, dropout=0.5, seed=draw_seed("cpu"))
