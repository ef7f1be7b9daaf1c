"""Forward products without an update: the floors, and ftrt's own without LoRA.

`ftrt w8a8 GEMM` gets x quantized already, as layers that share an x do; it is the int8 product
itself, to be compared with the int8 ceiling.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from measuring.linear_problem import Problem
from measuring.linear_variants import Variant, float_gate, float_rate
from torch import Tensor
from torch.nn import functional as F

from ftrt import ops


def floor_variants(problem: Problem, xs: list[Tensor]) -> Iterator[Variant]:
    """ftrt's base layers, `F.linear`, `_weight_int8pack_mm`, `_int_mm`, dequantize + linear.

    Args:
        problem: weights.
        xs: the inputs that will be given; variants that take x quantized have it ready for these.
    """
    packed, qweight, scale = ops.pack_int8(problem.qweight), problem.qweight, problem.scale
    quantized = {x.data_ptr(): ops.quantize_per_token(x) for x in xs}
    weight, transposed, scale_row = problem.weight, qweight.t(), scale.t()
    scale_vector, scale_column = scale.flatten().to(problem.dtype), scale.to(problem.dtype)

    def own(compute: str) -> Callable[[Tensor], Tensor]:
        return lambda x: ops.int8_linear(x, packed, scale, compute=compute)

    def own_product(x: Tensor) -> Tensor:
        pair = quantized[x.data_ptr()]
        return ops.int8_linear(x, packed, scale, compute="w8a8", quantized=pair)

    def product(x: Tensor) -> Tensor:
        return torch._int_mm(quantized[x.data_ptr()][0], transposed)

    def scaled(x: Tensor, y: Tensor) -> Tensor:
        return y * quantized[x.data_ptr()][1][:, None] * scale_row

    def torch_int8(x: Tensor) -> Tensor:
        xscale = x.abs().amax(dim=1, keepdim=True).float() / 127
        xq = (x / xscale).round().clamp(-127, 127).to(torch.int8)
        return (torch._int_mm(xq, transposed) * xscale * scale_row).to(x.dtype)

    def dequantize(x: Tensor) -> Tensor:
        return F.linear(x, qweight.to(x.dtype) * scale_column)

    def pack_mm(x: Tensor) -> Tensor:
        return torch._weight_int8pack_mm(x, qweight, scale_vector)

    gate, rate, size = float_gate(problem), float_rate(problem), qweight.nbytes

    def floor(name: str, gate: str, rate: str, forward: Callable[[Tensor], Tensor]) -> Variant:
        return Variant(name, gate, rate, forward, (), weight_bytes=size)

    yield floor("ftrt w8a8 base", "w8a8", "int8", own("w8a8"))
    yield floor("ftrt w8a8 GEMM", "w8a8", "int8", own_product)
    yield floor("ftrt w8a16 base", "w8a16", rate, own("w8a16"))
    yield replace(
        floor("F.linear", gate, rate, lambda x: F.linear(x, weight)), weight_bytes=weight.nbytes
    )
    yield floor("_weight_int8pack_mm", "int8 weight", rate, pack_mm)
    yield replace(floor("_int_mm alone", "product", "int8", product), finish=scaled)
    yield floor("torch int8 w8a8", "w8a8", "int8", torch_int8)
    yield floor("dequantize + F.linear", "int8 weight", rate, dequantize)
