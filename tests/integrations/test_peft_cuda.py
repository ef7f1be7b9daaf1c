"""Optimizer steps of a causal language model on the CUDA implementations, their kernels emulated,
against the same steps on those of the CPU."""

import os

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import ftrt
from ftrt.nn import Int8Linear

pytestmark = pytest.mark.skipif(
    bool(os.environ.get("FTRT_TEST_CUDA")), reason="compares with the CPU implementations"
)

STEPS = 3
# Neither tokens nor features are whole tiles.
SIZES = {
    "vocab_size": 61,
    "hidden_size": 40,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}
RECIPE = {
    "quantization": {"dtype": "int8", "compute": "w8a8"},
    "method": {"name": "lora", "rank": 5, "alpha": 10, "dropout": 0.2},
    "head": {"name": "causal_lm"},
}


def adapted(dtype):
    """An int8 model with adapters that do something, checkpointed."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).to(dtype)
    run = ftrt.attach(model, RECIPE)
    with torch.no_grad():
        for name, parameter in run.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    run.model.gradient_checkpointing_enable({"use_reentrant": False})
    return run.model.train()


def steps(dtype):
    """(losses, gradients of each step by name)."""
    model = adapted(dtype)
    layers = [module for module in model.modules() if isinstance(module, Int8Linear)]
    assert len(layers) == 14 and {layer.compute for layer in layers} == {"w8a8"}
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-3)
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(0, SIZES["vocab_size"], (2, 19), generator=generator)
    losses, gradients = [], []
    torch.manual_seed(1)  # of the masks
    for _ in range(STEPS):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        losses.append(loss.item())
        gradients.append({n: p.grad.clone() for n, p in trained.items()})
        optimizer.step()
        optimizer.zero_grad()
    return losses, gradients


# Both sides round floats differently, and what lies between two int8 then goes either way, which
# 38 tokens do not average out: 8e-3 was seen in float32, 5e-2 in bfloat16. Another mask of the
# dropout, or a scale left out, is ten times as far.
BOUNDS = {torch.float32: 3e-2, torch.bfloat16: 1.5e-1}
KERNELS = {
    torch.float32: {"quantize_rows", "w8a8_gemm"},
    torch.bfloat16: {"quantize_project", "pack_factor", "w8a8_gemm", "thin_gradient"},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_three_steps_are_those_of_the_cpu(dtype, cuda_implementations, monkeypatch):
    expected_losses, expected = steps(dtype)
    launched = set()
    with cuda_implementations() as backend:
        launch = backend.launch
        monkeypatch.setattr(
            backend, "launch", lambda kernel, *a: launched.add(kernel.name) or launch(kernel, *a)
        )
        losses, gradients = steps(dtype)
    assert KERNELS[dtype] <= launched
    bound = BOUNDS[dtype]
    assert losses == pytest.approx(expected_losses, rel=bound / 100)
    for step, want in enumerate(expected):
        assert len(want) == 28
        for name, gradient in want.items():
            error = (gradients[step][name] - gradient).norm() / gradient.norm()
            assert error <= bound, f"step {step}, {name}: {error:.1e}"
