"""How an op gets its schema, reference, fake, autograd and autocast: the same way for each."""

__all__ = ["REFERENCES", "register", "register_autocast", "register_autograd", "register_cuda"]

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ftrt.ops.autocast import cast_dtype
from ftrt.ops.extension import EXTENSION

# Name of each op, without namespace -> its reference.
REFERENCES: dict[str, Callable[..., Any]] = {}

_LIBRARY: Any = torch.library.Library("ftrt", "FRAGMENT")  # type: ignore[no-untyped-call]


def register(schema: str, *, reference: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Define an op whose reference runs wherever no kernel is registered.

    Args:
        schema: `name(Tensor x, ...) -> ...`, without namespace.
        reference: the op in torch ops, with its checks; it never sees autograd.
        fake: shapes and dtypes of the results, with the same checks.
    """
    name = schema.partition("(")[0]
    REFERENCES[name] = reference
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    if EXTENSION.is_foreign:
        # Importing an extension registers its kernels; those of another version have other schemas.
        with warnings.catch_warnings():
            # torch warns that a kernel is overridden; the report says why.
            warnings.simplefilter("ignore")
            _LIBRARY.impl(name, reference, "CPU")
    torch.library.register_fake(f"ftrt::{name}", fake, lib=_LIBRARY)


def register_autograd(
    name: str, backward: Callable[..., Any], setup: Callable[..., None] | None = None
) -> None:
    """As torch.library.register_autograd, for an op that `register` has defined."""
    torch.library.register_autograd(f"ftrt::{name}", backward, setup_context=setup, lib=_LIBRARY)


def register_cuda(name: str, implementation: Callable[..., Any]) -> None:
    """Give an op that `register` has defined an implementation for CUDA tensors."""
    _LIBRARY.impl(name, implementation, "CUDA")


def register_autocast(name: str, casts: Sequence[int] = ()) -> None:
    """Cast some operands to the autocast dtype, and run the op with autocast off.

    torch.library.register_autocast would round scales and biases to half precision too.

    Args:
        name: of an op that `register` has defined.
        casts: positions of the operands to cast; the first decides whether any is.
    """
    op = getattr(torch.ops.ftrt, name).default

    def run(device: str, arguments: tuple[Any, ...]) -> Any:
        operands = list(arguments)
        if casts:
            dtype = cast_dtype(operands[casts[0]], device)
            for position in casts:
                operands[position] = operands[position].to(dtype)
        with torch.autocast(device, enabled=False):
            return op(*operands)

    _LIBRARY.impl(name, lambda *arguments: run("cpu", arguments), "AutocastCPU")
    _LIBRARY.impl(name, lambda *arguments: run("cuda", arguments), "AutocastCUDA")
