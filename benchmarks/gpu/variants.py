"""The ways to run a linear layer with LoRA on a GPU: those of the CPU benchmarks, and three more.

ftrt w8a8 own, library     w8a8 with the int8 product forced to the own kernel or to torch's
cuBLAS + addmm             PEFT's computation with two products fewer passes: the graph unsloth
                           runs, written here; backward computes h again instead of keeping it
bf16 GEMMs alone           y and dX without an update: the floor of everything that is bfloat16
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from measuring.linear_problem import Problem
from measuring.linear_variants import (
    Variant,
    bitsandbytes_variants,
    dequantize_variant,
    own_variants,
    peft_variants,
    torchao_variants,
)
from torch import Tensor
from torch.nn import functional as F

from gpu.paths import PATHS, forced

W8A8 = "ftrt w8a8"


class AddmmLora(torch.autograd.Function):
    """y = x Wᵀ + scaling · (x Aᵀ) Bᵀ; the update is added to the product in place."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        """x (rows, in_features), all of one dtype."""
        ctx.save_for_backward(x, weight, a, b)
        ctx.scaling = scaling
        return (x @ weight.t()).addmm_(x @ a.t(), b.t(), alpha=scaling)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, a and b."""
        x, weight, a, b = ctx.saved_tensors
        ds = ctx.scaling * (grad @ b)
        dx = (grad @ weight).addmm_(ds, a)
        return dx, None, ds.t() @ x, ctx.scaling * (grad.t() @ (x @ a.t())), None


def addmm_variant(problem: Problem) -> Iterator[Variant]:
    """`AddmmLora` with adapters in the activations' dtype."""
    weight, scaling = problem.weight, problem.scaling
    a, b = (t.to(problem.dtype).clone().requires_grad_() for t in (problem.a, problem.b))
    yield Variant(
        "cuBLAS + addmm",
        "bf16",
        "bf16",
        lambda x: AddmmLora.apply(x, weight, a, b, scaling),
        (a, b),
        weight_bytes=weight.nbytes,
    )


def floor_variant(problem: Problem) -> Iterator[Variant]:
    """The bare products of a bfloat16 layer."""
    weight = problem.weight
    yield Variant(
        "bf16 GEMMs alone",
        "bf16",
        "bf16",
        lambda x: F.linear(x, weight),
        (),
        weight_bytes=weight.nbytes,
    )


def ftrt_variants(problem: Problem) -> Iterator[Variant]:
    """ftrt's; on a GPU w8a8 by both products."""
    for variant in own_variants(problem):
        if variant.name != W8A8 or problem.device.type != "cuda":
            yield variant
            continue
        for path in PATHS:
            around = forced(path, problem.device)
            yield replace(variant, name=f"{W8A8} {path}", around=around)


def makers(problem: Problem, *, compiled: bool) -> dict[str, Callable[[], Iterator[Variant]]]:
    """name -> what yields its variants, so that one that cannot be built is away alone."""
    return {
        "ftrt": lambda: ftrt_variants(problem),
        "PEFT": lambda: peft_variants(problem, compiled=compiled),
        "cuBLAS + addmm": lambda: addmm_variant(problem),
        "bitsandbytes": lambda: bitsandbytes_variants(problem),
        "torchao": lambda: torchao_variants(problem),
        "dequantize": lambda: dequantize_variant(problem),
        "floor": lambda: floor_variant(problem),
    }
