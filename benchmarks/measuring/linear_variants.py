"""The ways to run a linear layer with LoRA that are compared: ftrt's and its peers'.

Every variant gets the same operands. ftrt's have float32 adapters, as `ftrt.attach` makes them, so
their casts are in its times; peers have what their name says. What could not be built is reported
by name with the reason, never left out in silence.
"""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ftrt import ops
from measuring.clock import Clock, HostClock
from measuring.interleave import Phases
from measuring.linear_problem import Exact, Problem


@dataclass
class Variant:
    """One way to compute y, and dx, dA, dB through autograd.

    Attributes:
        name: as printed.
        gate: key of `gates.GATES`.
        rate: the ceiling it is limited by: "int8", "bf16" or "fp32".
        forward: x -> y.
        adapters: the trainable A and B, empty without an update.
        context: what forward runs in.
        weight_bytes: what the frozen weight takes.
        held: the tensors it is held in, where no module of the problem's has them.
        finish: (x, forward's result) -> y, untimed, where forward leaves y unscaled.
        around: what forward and backward run in, untimed.
    """

    name: str
    gate: str
    rate: str
    forward: Callable[[Tensor], Tensor]
    adapters: tuple[Tensor, ...]
    context: Callable[[], AbstractContextManager[None]] = nullcontext
    weight_bytes: int = 0
    finish: Callable[[Tensor, Tensor], Tensor] = lambda x, y: y
    held: tuple[Tensor, ...] = ()
    around: Callable[[], AbstractContextManager[None]] = nullcontext

    def call(
        self, xs: list[Tensor], grads: list[Tensor], clock: Clock | None = None
    ) -> Callable[[int], Phases]:
        """A timed forward and backward on buffer `round % len`."""
        clock = clock or HostClock()

        def run(index: int) -> Phases:
            x = xs[index % len(xs)].detach().requires_grad_()
            grad = grads[index % len(grads)]
            for adapter in self.adapters:
                adapter.grad = None
            results: list[Tensor] = []

            def forward() -> None:
                with self.context():
                    results.append(self.forward(x))

            with self.around():
                return clock.phases(forward=forward, backward=lambda: results.pop().backward(grad))

        return run

    def forward_call(self, xs: list[Tensor], clock: Clock | None = None) -> Callable[[int], Phases]:
        """A timed forward without a graph."""
        clock = clock or HostClock()

        def run(index: int) -> Phases:
            x = xs[index % len(xs)]
            with torch.no_grad(), self.around():
                return clock.phases(forward=lambda: self.forward(x))

        return run

    def errors(self, exact: Exact) -> dict[str, float]:
        """Errors of one forward and, with an update, of one backward."""
        with self.around():
            return self._errors(exact)

    def _errors(self, exact: Exact) -> dict[str, float]:
        if not self.adapters:
            with torch.no_grad():
                y = self.finish(exact.x, self.forward(exact.x))
                return exact.forward_errors(y, updated=False)
        x = exact.x.detach().requires_grad_()
        for adapter in self.adapters:
            adapter.grad = None
        with self.context():
            y = self.forward(x)
        y.backward(exact.grad)
        a, b = self.adapters
        errors = exact.forward_errors(y.detach(), updated=True)
        return {**errors, **exact.gradient_errors(x.grad, a.grad, b.grad)}

    def saved_bytes(self, x: Tensor, frozen: set[int]) -> int:
        """Bytes that one forward keeps for backward, storages counted once.

        Args:
            x: input; counted if it is kept.
            frozen: storages that are there anyway (weights, factors) and do not count.
        """
        seen: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            for storage in storages(tensor):
                if storage.data_ptr() not in frozen:
                    seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept)
        with self.around(), hooks, self.context():
            y = self.forward(x.detach().requires_grad_())
        del y
        return sum(seen.values())


def storages(tensor: Tensor) -> Iterator[torch.UntypedStorage]:
    """The memory behind a tensor, or behind the parts of a wrapper such as torchao's."""
    if is_traceable_wrapper_subclass(tensor):
        for name in tensor.__tensor_flatten__()[0]:
            yield from storages(getattr(tensor, name))
    else:
        yield tensor.untyped_storage()


def frozen_storages(problem: Problem, variant: Variant) -> set[int]:
    """Addresses of the memory that is there whether a forward runs or not: weights and factors."""
    tensors = [problem.weight, problem.qweight, problem.scale, *variant.held]
    if isinstance(variant.forward, nn.Module):
        tensors += [*variant.forward.parameters(), *variant.forward.buffers()]
    tensors += variant.adapters
    return {storage.data_ptr() for tensor in tensors for storage in storages(tensor)}


def own_variants(problem: Problem) -> Iterator[Variant]:
    """ftrt: int8 W8A8, int8 W8A16, and the float base with the fused update."""
    packed, scale, scaling = ops.pack_int8(problem.qweight), problem.scale, problem.scaling
    for compute, rate in (("w8a8", "int8"), ("w8a16", float_rate(problem))):
        a, b = _factors(problem, torch.float32)

        def forward(x: Tensor, a: Tensor = a, b: Tensor = b, compute: str = compute) -> Tensor:
            return ops.int8_lora_linear(x, packed, scale, None, a, b, scaling, compute=compute)

        yield Variant(
            f"ftrt {compute}",
            compute,
            rate,
            forward,
            (a, b),
            weight_bytes=packed.nbytes,
            held=(packed, scale),
        )
    a, b = _factors(problem, torch.float32)
    weight = problem.weight
    yield Variant(
        "ftrt lora_linear",
        float_gate(problem),
        float_rate(problem),
        lambda x: ops.lora_linear(x, weight, None, a, b, scaling),
        (a, b),
        weight_bytes=weight.nbytes,
    )


def peft_variants(problem: Problem, *, compiled: bool) -> Iterator[Variant]:
    """PEFT with adapters in the activations' dtype, and its default as the Trainer runs it."""
    rate, gate = float_rate(problem), float_gate(problem)
    is_bf16 = problem.dtype == torch.bfloat16
    kinds = [("PEFT bf16" if is_bf16 else "PEFT fp32", problem.dtype, nullcontext)]
    if is_bf16:
        kinds.append(("PEFT default", torch.float32, autocast(problem.device)))
    for name, dtype, context in kinds:
        layer, factors = peft_layer(_float_linear(problem), problem, dtype)
        size = problem.weight.nbytes
        yield Variant(name, gate, rate, layer, factors, context, size)
        if compiled:
            layer, factors = peft_layer(_float_linear(problem), problem, dtype)
            run = torch.compile(layer, dynamic=False)
            yield Variant(f"{name} compiled", gate, rate, run, factors, context, size)


def bitsandbytes_variants(problem: Problem) -> Iterator[Variant]:
    """bitsandbytes' LLM.int8 with PEFT, thresholds 0 and 6, adapters in the activations' dtype.

    On a GPU its forward multiplies int8 by int8, on a CPU it does not.
    """
    import bitsandbytes

    is_int8 = problem.device.type == "cuda"
    gate, rate = ("w8a8", "int8") if is_int8 else ("int8 weight", float_rate(problem))

    for threshold in (0.0, 6.0):
        linear = bitsandbytes.nn.Linear8bitLt(
            problem.in_features,
            problem.out_features,
            bias=False,
            has_fp16_weights=False,
            threshold=threshold,
        )
        linear.load_state_dict({"weight": problem.weight})
        linear = linear.to(problem.device)  # quantizes
        layer, factors = peft_layer(linear, problem, problem.dtype, is_loaded_in_8bit=True)
        name = f"bitsandbytes int8 t{threshold:.0f} + PEFT"
        size = problem.qweight.nbytes
        yield Variant(name, gate, rate, layer, factors, weight_bytes=size)


def torchao_variants(problem: Problem) -> Iterator[Variant]:
    """torchao's int8 weight-only with PEFT, adapters in the activations' dtype."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    holder = Holder(_float_linear(problem))
    quantize_(holder, Int8WeightOnlyConfig())
    layer, factors = peft_layer(holder.linear, problem, problem.dtype)
    size = problem.qweight.nbytes
    name = "torchao int8 + PEFT"
    yield Variant(name, "int8 weight", float_rate(problem), layer, factors, weight_bytes=size)


def dequantize_variant(problem: Problem) -> Iterator[Variant]:
    """Dequantize the whole weight, then `F.linear`; the update in three plain calls."""
    qweight, scale, scaling = problem.qweight, problem.scale.to(problem.dtype), problem.scaling
    a, b = _factors(problem, problem.dtype)

    def forward(x: Tensor) -> Tensor:
        y = F.linear(x, qweight.to(x.dtype) * scale)
        return y + scaling * F.linear(F.linear(x, a), b)

    gate, rate, size = "int8 weight", float_rate(problem), qweight.nbytes
    yield Variant("dequantize + F.linear", gate, rate, forward, (a, b), weight_bytes=size)


class Holder(nn.Module):
    """A model of one layer, which PEFT can be put on."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output."""
        return self.linear(x)


def peft_layer(
    linear: nn.Module, problem: Problem, dtype: torch.dtype, *, is_loaded_in_8bit: bool = False
) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """PEFT's LoRA layer on `linear` with the problem's factors in `dtype`; and those factors.

    `is_loaded_in_8bit` is how transformers marks a bitsandbytes model, by which PEFT chooses its
    layer for it.
    """
    import peft

    model = Holder(linear)
    model.is_loaded_in_8bit = is_loaded_in_8bit
    rank = problem.a.shape[0]
    config = peft.LoraConfig(
        r=rank, lora_alpha=round(problem.scaling * rank), target_modules=["linear"]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
    layer = model.base_model.model.linear
    factors = (layer.lora_A["default"].weight, layer.lora_B["default"].weight)
    for factor, value in zip(factors, (problem.a, problem.b), strict=True):
        factor.data = value.to(dtype).clone()
    return layer, factors


def autocast(device: torch.device) -> Callable[[], AbstractContextManager[None]]:
    """What the Trainer's `bf16=True` does on `device`."""
    return functools.partial(_autocast, device.type)


@contextlib.contextmanager
def _autocast(kind: str) -> Iterator[None]:
    with torch.autocast(kind, torch.bfloat16):
        yield


def _float_linear(problem: Problem) -> nn.Linear:
    linear = nn.Linear(problem.in_features, problem.out_features, bias=False, device="meta")
    linear.weight = nn.Parameter(problem.weight, requires_grad=False)
    return linear


def _factors(problem: Problem, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return tuple(t.to(dtype).clone().requires_grad_() for t in (problem.a, problem.b))


def float_rate(problem: Problem) -> str:
    """The ceiling of maths in the problem's dtype."""
    return "bf16" if problem.dtype == torch.bfloat16 else "fp32"


def float_gate(problem: Problem) -> str:
    """The gate of maths in the problem's dtype."""
    return "bf16" if problem.dtype == torch.bfloat16 else "float32"
