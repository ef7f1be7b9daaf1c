"""What `ftrt kernels bench` measures: the launches of an int8 layer, each repeated alone."""

__all__ = ["record_layer", "time_kernels"]

import statistics
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ftrt.errors import UnsupportedError, UsageError, suggest
from ftrt.kernels.backend import Backend, current_backend
from ftrt.kernels.recording import RecordedLaunch, recording

LAUNCHES = 20


def record_layer(
    device: torch.device, *, rows: int, features: int, rank: int
) -> dict[str, RecordedLaunch]:
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
    with recording() as recorder:
        q, scale = OPS["quantize_per_channel"](draw(features, features))
        weight = (pack_int8(q), scale)
        update = (a, b, 0.5, None, 0.0, None)
        for quantized in (OPS["quantize_per_token"](x, None), (None, None)):
            _, h = OPS["int8_lora_linear"](x, *quantized, *weight, None, *update)
            saved = (x if quantized[0] is None else None, *quantized, h)
            OPS["int8_lora_linear_backward"](grad, *saved, *weight, *update, True, True, True)
    found: dict[str, RecordedLaunch] = {}
    for launched in recorder.launches:
        found.setdefault(launched.kernel.label, launched)
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
    known = {launched.kernel.name for launched in found.values()}
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
            _timed(backend, launched)
            for launched in found.values()
            if not names or launched.kernel.name in set(names)
        ],
    }


def _timed(backend: Backend, launched: RecordedLaunch) -> dict[str, Any]:
    launched.run(backend)
    seconds = []
    for _ in range(LAUNCHES):
        begin, end = _event(), _event()
        begin.record()
        launched.run(backend)
        end.record()
        end.synchronize()
        seconds.append(begin.elapsed_time(end) / 1e3)
    median = statistics.median(seconds)
    moved, operations = launched.nbytes, launched.operations
    return {
        "kernel": launched.kernel.label,
        "microseconds": median * 1e6,
        "bytes": moved,
        "gigabytes_per_second": moved / median / 1e9,
        "operations": operations,
        "tera_operations_per_second": operations / median / 1e12,
    }


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
