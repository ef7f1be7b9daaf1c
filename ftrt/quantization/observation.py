"""Running a model on batches and looking at what reaches its int8 layers."""

__all__ = ["Observer", "cut", "observe", "sequences_in"]

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from ftrt.errors import UsageError
from ftrt.quantization.int8_linear import Int8Linear

# Tokens of a batch that an error is computed on, in each layer: spread over the batch, they give
# the norm of a random vector to a few percent.
SAMPLED_ROWS = 256


class ForwardLook(Protocol):
    """Called for each x that reaches a layer."""

    def __call__(self, name: str, x: Tensor, rows: Tensor, *, is_same: bool) -> None:
        """x as it is; rows: some tokens of it, float32; is_same: the layer before had this x."""


class Observer:
    """While it is entered, shows what reaches `layers`, in the forward or the backward pass."""

    def __init__(
        self,
        layers: Mapping[str, Int8Linear],
        *,
        forward: ForwardLook | None = None,
        backward: Callable[[str, Tensor], None] | None = None,
    ) -> None:
        self._layers = layers
        self._forward = forward
        self._backward = backward
        self._handles: list[Any] = []
        self._leaves: list[Tensor] = []
        # Held strongly, so that its memory cannot come back as another x.
        self._last: Tensor | None = None

    def __enter__(self) -> Self:
        for name, layer in self._layers.items():
            if self._forward is not None:
                self._handles.append(layer.register_forward_pre_hook(self._on_input(name)))
            if self._backward is not None:
                self._handles.append(layer.register_forward_pre_hook(self._let_gradients_start))
                self._handles.append(layer.register_forward_hook(self._on_output(name)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._leaves, self._last = [], [], None

    def differentiate(self, model: nn.Module, batch: Any) -> bool:
        """Run the model on `batch` and its loss backward; False where it returns no loss.

        Only gradients for the inputs of layers are computed; none is added to a parameter.
        """
        with _quiet_model(model), torch.enable_grad():
            outputs = _call(model, batch)
            loss = outputs.get("loss") if isinstance(outputs, Mapping) else None
            loss = getattr(outputs, "loss", None) if loss is None else loss
            is_loss = isinstance(loss, Tensor) and loss.requires_grad and loss.numel() == 1
            if is_loss and self._leaves:
                loss.backward(inputs=self._leaves)  # type: ignore[union-attr]
        return bool(is_loss and self._leaves)

    def _on_input(self, name: str) -> Any:
        def hook(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            x = inputs[0]
            is_same = self._last is not None and _is_same(x, self._last)
            self._last = x
            if self._forward is not None and x.numel():
                with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
                    self._forward(name, x, _sample(x), is_same=is_same)

        return hook

    def _let_gradients_start(self, layer: nn.Module, inputs: tuple[Any, ...]) -> Any:
        # Everything before is frozen, so without this no gradient would come back this far.
        if inputs[0].requires_grad or not torch.is_grad_enabled():
            return None
        leaf = inputs[0].detach().requires_grad_()
        self._leaves.append(leaf)
        return (leaf, *inputs[1:])

    def _on_output(self, name: str) -> Any:
        def on_gradient(gradient: Tensor) -> None:
            if self._backward is not None and gradient.numel():
                with torch.no_grad(), torch.autocast(gradient.device.type, enabled=False):
                    self._backward(name, _sample(gradient))

        def hook(layer: nn.Module, inputs: Any, output: Tensor) -> None:
            if output.requires_grad:
                output.register_hook(on_gradient)  # type: ignore[no-untyped-call]

        return hook


def observe(model: nn.Module, batches: Iterable[Any]) -> None:
    """Run the model on each batch, in eval mode and without gradients."""
    with _quiet_model(model), torch.no_grad():
        for batch in batches:
            _call(model, batch)


def sequences_in(batch: Any) -> int:
    """Rows of the batch: the first dimension of its first tensor."""
    values = batch.values() if isinstance(batch, Mapping) else batch
    if isinstance(batch, Tensor):
        values = (batch,)
    tensors = [value for value in values if isinstance(value, Tensor) and value.dim()]
    if not tensors:
        raise UsageError(
            "calibrate: a batch must hold a tensor with a row a sequence; got"
            f" {type(batch).__name__}"
        )
    return tensors[0].shape[0]


def cut(batch: Any, rows: int) -> Any:
    """The first `rows` rows of the batch."""
    count = sequences_in(batch)
    if count <= rows:
        return batch

    def first(value: Any) -> Any:
        has_rows = isinstance(value, Tensor) and value.dim() and value.shape[0] == count
        return value[:rows] if has_rows else value

    if isinstance(batch, Tensor):
        return first(batch)
    if isinstance(batch, Mapping):
        return {key: first(value) for key, value in batch.items()}
    return tuple(first(value) for value in batch)


def _call(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, Sequence) else model(batch)


@contextmanager
def _quiet_model(model: nn.Module) -> Iterator[None]:
    """Eval mode and no parameter that trains; both are put back."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, is_training in modes:
            module.training = is_training
        for parameter, requires_grad in flags:
            parameter.requires_grad_(requires_grad)


def _sample(x: Tensor) -> Tensor:
    """At most `SAMPLED_ROWS` rows of x, evenly spread, in float32."""
    rows = x.detach().reshape(-1, x.shape[-1])
    if rows.shape[0] > SAMPLED_ROWS:
        places = torch.linspace(0, rows.shape[0] - 1, SAMPLED_ROWS, device=rows.device)
        rows = rows.index_select(0, places.long())
    return rows.float()


def _is_same(x: Tensor, last: Tensor) -> bool:
    """Whether x is `last` or a view of all of it, and nobody has written to it since."""
    if x is last:
        return True
    return (
        x.data_ptr() == last.data_ptr()
        and (x.numel(), x.dtype) == (last.numel(), last.dtype)
        and not x.is_inference()
        and x._version == last._version
    )
