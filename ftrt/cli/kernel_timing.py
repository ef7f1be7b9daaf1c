"""What `ftrt kernels bench` measures: the launches of an int8 layer, each repeated alone."""

__all__ = ["Recorder", "record_layer", "time_kernels"]

import statistics
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ftrt.errors import UnsupportedError, UsageError, suggest
from ftrt.kernels import Kernel, Launch
from ftrt.kernels.backend import Backend, Grid, current_backend, use_backend
from ftrt.kernels.signature import Argument

LAUNCHES = 20


class Recorder:
    """A backend that launches with another one, and keeps what was launched.

    Attributes:
        launches: in order, their tensors with them.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.launches: list[tuple[Kernel, Launch]] = []

    def launch(
        self,
        kernel: Kernel,
        grid: Grid,
        shared_bytes: int,
        arguments: tuple[Argument, ...],
        device: torch.device,
    ) -> None:
        """Launch, and keep it."""
        self.launches.append((kernel, Launch(grid, shared_bytes, arguments)))
        self._backend.launch(kernel, grid, shared_bytes, arguments, device)

    def arch(self, device: torch.device) -> tuple[int, int]:
        """Compute capability of `device`."""
        return self._backend.arch(device)

    def multiprocessors(self, device: torch.device) -> int:
        """How many of them `device` has."""
        return self._backend.multiprocessors(device)

    def shared_limit(self, device: torch.device) -> int:
        """Most bytes of shared memory a block may have."""
        return self._backend.shared_limit(device)


def record_layer(
    device: torch.device, *, rows: int, features: int, rank: int
) -> dict[str, tuple[Kernel, Launch]]:
    """Each kernel that an int8 layer with LoRA launches, by its label, with its first launch.

    The layer is square and in bfloat16; it runs forward and backward, w8a8 and w8a16.
    """
    from ftrt.ops.cuda import IMPLEMENTATIONS as OPS
    from ftrt.ops.packing import pack_int8

    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, torch.bfloat16)

    x, grad = draw(rows, features), draw(rows, features)
    a, b = draw(rank, features), draw(features, rank)
    recorder = Recorder(current_backend())
    with use_backend(recorder):
        q, scale = OPS["quantize_per_channel"](draw(features, features))
        weight = (pack_int8(q), scale)
        update = (a, b, 0.5, None, 0.0, None)
        for quantized in (OPS["quantize_per_token"](x, None), (None, None)):
            _, h = OPS["int8_lora_linear"](x, *quantized, *weight, None, *update)
            saved = (x if quantized[0] is None else None, *quantized, h)
            OPS["int8_lora_linear_backward"](grad, *saved, *weight, *update, True, True, True)
    found: dict[str, tuple[Kernel, Launch]] = {}
    for kernel, launched in recorder.launches:
        found.setdefault(kernel.label, (kernel, launched))
    return found


def time_kernels(
    *, rows: int, features: int, rank: int, names: Iterable[str] | None
) -> dict[str, Any]:
    """Median time of a launch of each kernel, on the current GPU.

    Raises:
        UnsupportedError: there is no GPU to launch on; the message says what is missing.
        UsageError: a kernel is named that the layer does not launch.
    """
    backend = current_backend()
    if not torch.cuda.is_available():
        raise UnsupportedError(
            "ftrt kernels bench: torch must see a GPU; got none from torch"
            f" {torch.__version__}. Install a CUDA build of torch"
        )
    device = torch.device("cuda", torch.cuda.current_device())
    found = record_layer(device, rows=rows, features=features, rank=rank)
    known = {kernel.name for kernel, _ in found.values()}
    for name in names or ():
        if name not in known:
            raise UsageError(
                f"--kernel: must be one that the layer launches; got {name!r}{suggest(name, known)}"
            )
    return {
        "device": torch.cuda.get_device_name(device),
        "rows": rows,
        "features": features,
        "rank": rank,
        "launches": LAUNCHES,
        "kernels": [
            _timed(backend, kernel, launched, device)
            for kernel, launched in found.values()
            if not names or kernel.name in set(names)
        ],
    }


def _timed(
    backend: Backend, kernel: Kernel, launched: Launch, device: torch.device
) -> dict[str, Any]:
    def launch() -> None:
        backend.launch(kernel, launched.grid, launched.shared_bytes, launched.arguments, device)

    launch()
    seconds = []
    for _ in range(LAUNCHES):
        begin, end = _event(), _event()
        begin.record()
        launch()
        end.record()
        end.synchronize()
        seconds.append(begin.elapsed_time(end) / 1e3)
    median = statistics.median(seconds)
    moved, operations = _bytes(launched), _operations(kernel, launched)
    return {
        "kernel": kernel.label,
        "microseconds": median * 1e6,
        "bytes": moved,
        "gigabytes_per_second": moved / median / 1e9,
        "operations": operations,
        "tera_operations_per_second": operations / median / 1e12,
    }


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _bytes(launched: Launch) -> int:
    """Of all tensors among the arguments: what must be moved at least, each of them once."""
    tensors = {a.data_ptr(): a for a in launched.arguments if isinstance(a, Tensor)}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _operations(kernel: Kernel, launched: Launch) -> int:
    """Multiplications and additions of the int8 product; 0 for what is bound by memory."""
    if kernel.name != "w8a8_gemm":
        return 0
    rows, columns, depth = (int(a) for a in launched.arguments[4:7] if isinstance(a, int))
    return 2 * rows * columns * depth
