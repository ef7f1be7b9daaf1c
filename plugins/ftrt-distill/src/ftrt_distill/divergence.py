"""KL(p ‖ q) of rows of logits by CUDA kernels, which read both once each way and widen neither."""

__all__ = ["register_kernels", "row_divergence"]

from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ftrt import hookimpl
from ftrt.errors import UnsupportedError
from ftrt.kernels import Kernel, Launch, Signature, launch

ftrt_hookspec = 1

_FOLDER = Path(__file__).parent
_THREADS = 256
_SHARED_BYTES = 256
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def _reference(
    p: Tensor,
    p_stride: int,
    q: Tensor,
    q_stride: int,
    columns: int,
    inverse: float,
    statistics: Tensor,
) -> None:
    u, v = p.to(statistics.dtype) * inverse, q.to(statistics.dtype) * inverse
    p_lse, q_lse = u.logsumexp(dim=-1), v.logsumexp(dim=-1)
    divergence = (u.softmax(dim=-1) * (u - v)).sum(dim=-1) - p_lse + q_lse
    statistics.copy_(torch.stack([p_lse, q_lse, divergence], dim=-1))


def _gradient_reference(
    p: Tensor,
    p_stride: int,
    q: Tensor,
    q_stride: int,
    columns: int,
    inverse: float,
    statistics: Tensor,
    grad: Tensor,
    gradient: Tensor,
    gradient_stride: int,
    *,
    is_of_p: bool,
) -> None:
    p_lse, q_lse, divergence = (column[:, None] for column in statistics.unbind(dim=-1))
    p_log = p.to(statistics.dtype) * inverse - p_lse
    q_log = q.to(statistics.dtype) * inverse - q_lse
    slope = p_log.exp() * (p_log - q_log - divergence) if is_of_p else q_log.exp() - p_log.exp()
    gradient.copy_(grad[:, None] * inverse * slope)


def _example(device: torch.device) -> Launch:
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randn(3, 1001, generator=generator).to(device) for _ in range(2))
    statistics = torch.zeros(3, 3, device=device)
    arguments = (p, p.stride(0), q, q.stride(0), p.shape[1], 0.5, statistics)
    return Launch((3, 1, 1), _SHARED_BYTES, arguments)


def _gradient_example(device: torch.device) -> Launch:
    problem = _example(device)
    _reference(*problem.arguments)  # type: ignore[arg-type]
    grad, gradient = torch.arange(1.0, 4.0, device=device), torch.zeros(3, 1001, device=device)
    return Launch(problem.grid, 0, (*problem.arguments, grad, gradient, gradient.stride(0)))


_DIVERGENCE = Kernel(
    "row_divergence",
    _FOLDER / "row_divergence.cu",
    Signature("pl pl i f p"),
    _THREADS,
    {"FTRT_P": "float32", "FTRT_Q": "float32"},
    reference=_reference,
    example=_example,
)
_GRADIENT_OF_Q = Kernel(
    "row_divergence_gradient",
    _FOLDER / "row_divergence_gradient.cu",
    Signature("pl pl i f p p pl"),
    _THREADS,
    {"FTRT_P": "float32", "FTRT_Q": "float32", "FTRT_SIDE": "1"},
    reference=partial(_gradient_reference, is_of_p=False),
    example=_gradient_example,
)
_GRADIENT_OF_P = replace(
    _GRADIENT_OF_Q.variant(FTRT_SIDE=0), reference=partial(_gradient_reference, is_of_p=True)
)


def row_divergence(p: Tensor, q: Tensor, temperature: float) -> Tensor:
    """KL(softmax(p / temperature) ‖ softmax(q / temperature)) of each row; differentiable once.

    Args:
        p: (rows, columns) logits, float32, float16 or bfloat16. q: the same shape, any of these.

    Returns:
        (rows), float32.

    Raises:
        UnsupportedError: shapes or dtypes are others; or there is no CUDA runtime, which the
            message explains.
    """
    if p.dim() != 2 or p.shape != q.shape or not {p.dtype, q.dtype} <= {*_DTYPES}:
        raise UnsupportedError(
            "row_divergence: p and q must have one shape (rows, columns) and be float32, float16 or"
            f" bfloat16; got {tuple(p.shape)} {p.dtype} and {tuple(q.shape)} {q.dtype}"
        )
    divergence: Tensor = _RowDivergence.apply(p, q, temperature)  # type: ignore[no-untyped-call]
    return divergence


class _RowDivergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, p: Tensor, q: Tensor, temperature: float) -> Tensor:
        p, q = _with_rows(p), _with_rows(q)
        sums = torch.promote_types(p.dtype, torch.float32)
        statistics = torch.empty(len(p), 3, dtype=sums, device=p.device)
        ctx.inverse = 1 / temperature
        ctx.save_for_backward(p, q, statistics)
        kernel = _variant(None, p.dtype, q.dtype)
        _launch(kernel, _SHARED_BYTES, p, q, ctx.inverse, statistics)
        return statistics[:, 2].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        p, q, statistics = ctx.saved_tensors
        gradients: list[Tensor | None] = [None, None]
        for side, logits in enumerate((p, q)):
            if ctx.needs_input_grad[side]:
                kernel = _variant(side, p.dtype, q.dtype)
                gradient = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
                more = (grad.contiguous(), gradient, gradient.stride(0))
                _launch(kernel, 0, p, q, ctx.inverse, statistics, *more)
                gradients[side] = gradient
        return gradients[0], gradients[1], None


@cache
def _variant(side: int | None, p: torch.dtype, q: torch.dtype) -> Kernel:
    """The divergence (None), or its gradient with respect to p (0) or q (1), for these dtypes.

    The same object for each launch is found by the runtime at once.
    """
    kernel = _DIVERGENCE if side is None else (_GRADIENT_OF_P, _GRADIENT_OF_Q)[side]
    p_type, q_type = (str(dtype).removeprefix("torch.") for dtype in (p, q))
    return kernel.variant(FTRT_P=p_type, FTRT_Q=q_type)


def _launch(
    kernel: Kernel, shared_bytes: int, p: Tensor, q: Tensor, inverse: float, *rest: Tensor | int
) -> None:
    arguments = (p, p.stride(0), q, q.stride(0), p.shape[1], inverse, *rest)
    launch(kernel, (len(p), 1, 1), shared_bytes, *arguments)


def _with_rows(logits: Tensor) -> Tensor:
    """The logits with neighbouring elements in a row; rows may be any distance apart."""
    return logits if logits.stride(1) == 1 else logits.contiguous()


@hookimpl
def register_kernels() -> list[Kernel]:
    """Offer `row_divergence` and `row_divergence_gradient`."""
    return [_DIVERGENCE, _GRADIENT_OF_Q]
