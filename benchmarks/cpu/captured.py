"""Real activations and gradients of a model's linear layers, and how exact int8 is on them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from measuring.gates import cosine, relative_error
from torch import Tensor, nn
from workloads import Batch

# rows of each captured layer that are compared in float64
ROWS = 256


@dataclass(frozen=True)
class Captured:
    """One linear layer on one real batch: x (rows, in), grad (rows, out), the true weight, bias."""

    x: Tensor
    grad: Tensor
    weight: Tensor
    bias: Tensor | None


def capture(model: nn.Module, targets: Sequence[str], batch: Batch) -> dict[str, Captured]:
    """layer -> what it was given in one forward and backward of `model`, thinned to `ROWS` rows."""
    xs: dict[str, Tensor] = {}
    grads: dict[str, Tensor] = {}
    handles = []
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in targets
    }

    def thin(tensor: Tensor) -> Tensor:
        rows = tensor.detach().reshape(-1, tensor.shape[-1])
        return rows[:: max(1, rows.shape[0] // ROWS)][:ROWS].clone()

    for name, layer in layers.items():

        def forward(_: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
            xs[name] = thin(args[0])

        def backward(_: nn.Module, __: Any, out: tuple[Tensor, ...], name: str = name) -> None:
            grads[name] = thin(out[0])

        handles.append(layer.register_forward_pre_hook(forward))
        handles.append(layer.register_full_backward_hook(backward))
    model.requires_grad_(False)
    model.get_input_embeddings().requires_grad_(True)
    model(**batch).loss.backward()
    for handle in handles:
        handle.remove()
    model.zero_grad(set_to_none=True)
    return {
        name: Captured(
            xs[name],
            grads[name],
            layer.weight.detach().clone(),
            None if layer.bias is None else layer.bias.detach().clone(),
        )
        for name, layer in layers.items()
        if name in grads
    }


def layer_errors(layer: nn.Module, captured: Captured, *, rank: int = 16) -> dict[str, float]:
    """Errors of y and dx, cosines of dA and dB, of `layer` with an update through `lora_forward`.

    For an int8 layer also `y_dequantized`, against the product of its own rounded weight: what is
    left of y's error there is the computation, and the rest is the grid.

    Args:
        layer: `nn.Linear` or `Int8Linear`, computing as calibration left it.
        captured: the same layer's inputs; what is right is computed from it in float64.
        rank: of random factors A and B, neither zero.
    """
    from ftrt.nn import Int8Linear, lora_forward

    out_features, in_features = captured.weight.shape
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(rank, in_features, generator=generator) * in_features**-0.5
    b = torch.randn(out_features, rank, generator=generator) * 0.02
    a, b = a.requires_grad_(), b.requires_grad_()
    x = captured.x.detach().requires_grad_()
    y = lora_forward(layer, x, a, b, 2.0)
    y.backward(captured.grad)
    x64, grad64 = captured.x.double(), captured.grad.double()
    a64, b64, weight = a.detach().double(), b.detach().double(), captured.weight.double()
    bias = 0.0 if captured.bias is None else captured.bias.double()
    ds = 2.0 * grad64 @ b64
    hidden = x64 @ a64.T
    rest = 2.0 * hidden @ b64.T + bias
    rounded = {}
    if isinstance(layer, Int8Linear):
        own = layer.qweight.double() * layer.scale.double()
        rounded["y_dequantized"] = relative_error(y.detach(), x64 @ own.T + rest)
    return {
        "y": relative_error(y.detach(), x64 @ weight.T + rest),
        **rounded,
        "dx": relative_error(x.grad, grad64 @ weight + ds @ a64),
        "da_cosine": cosine(a.grad, ds.T @ x64),
        "db_cosine": cosine(b.grad, 2.0 * grad64.T @ hidden),
    }
