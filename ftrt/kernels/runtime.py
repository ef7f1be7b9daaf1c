"""Kernels on this machine's GPUs, through the CUDA driver; and what there is to run them with."""

__all__ = ["CudaBackend", "Device", "Status", "current_stream", "status"]

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch

from ftrt.errors import FtrtError, UnsupportedError
from ftrt.kernels.backend import Grid
from ftrt.kernels.cubins import bundle_paths, choose_arch, find_cubin
from ftrt.kernels.kernel import Kernel
from ftrt.kernels.native import USE_REFERENCE, native
from ftrt.kernels.nvrtc import Compiler, find_nvrtc, open_nvrtc
from ftrt.kernels.signature import Argument

# A program has some dozens of kernels. Past this many `Kernel` objects, somebody makes new ones for
# each launch, and they are looked up by what they are.
_REMEMBERED_KERNELS = 1024

# Of a loaded function: grid, shared bytes, stream, parameters.
_Launcher = Callable[[Grid, int, int, bytes], None]


def current_stream(index: int) -> int:
    """Address of torch's current stream of a device."""
    stream: int = torch.cuda.current_stream(index).cuda_stream
    return stream


# A private name of torch does the same in a tenth of the time; builds without CUDA lack it.
_raw_stream: Callable[[int], int] = getattr(torch._C, "_cuda_getCurrentRawStream", current_stream)


@dataclass(frozen=True)
class Device:
    """A GPU.

    Attributes:
        arch: compute capability.
        shared_limit: most bytes of shared memory a block may have.
    """

    name: str
    arch: tuple[int, int]
    multiprocessors: int
    shared_limit: int


class CudaBackend:
    """A `ftrt.kernels.backend.Backend` on the CUDA driver.

    A kernel is loaded, and compiled if it must be, when it is first launched on a device. Launches
    do not wait, allocate or synchronise, so a CUDA graph captures them.

    Args:
        stream_of: address of the stream to launch in, by the device's index; torch's current one
            without.

    Raises:
        UnsupportedError: ftrt._C or the driver is missing, or torch is a build for ROCm.
    """

    def __init__(self, stream_of: Callable[[int], int] | None = None) -> None:
        _refuse_rocm()
        self._native = native()
        self._driver_major = self._native.driver_facts()["version"] // 1000
        self._stream_of = _raw_stream if stream_of is None else stream_of
        self._devices: dict[int, Device] = {}
        # By id: a launch cannot afford to hash a kernel. The kernel is held, so its id stays its.
        self._by_id: dict[tuple[int, int], tuple[_Launcher, Kernel]] = {}
        self._by_value: dict[tuple[Any, ...], Any] = {}
        self._lock = threading.Lock()

    def launch(
        self,
        kernel: Kernel,
        grid: Grid,
        shared_bytes: int,
        arguments: tuple[Argument, ...],
        device: torch.device,
    ) -> None:
        """Launch on the current stream of `device`, without waiting for it.

        Raises:
            UnsupportedError: the kernel cannot be had for this device; the message says why.
            UsageError: its source does not compile, or it cannot be launched like this.
            FtrtError: the driver failed.
        """
        index = device.index  # of a tensor's device, so there is one
        found = self._by_id.get((id(kernel), index)) or self._load(kernel, device)
        found[0](grid, shared_bytes, self._stream_of(index), kernel.signature.pack(arguments))

    def arch(self, device: torch.device) -> tuple[int, int]:
        """Compute capability of `device`: (9, 0) for sm_90."""
        return self.device(device).arch

    def multiprocessors(self, device: torch.device) -> int:
        """How many of them `device` has."""
        return self.device(device).multiprocessors

    def shared_limit(self, device: torch.device) -> int:
        """Most bytes of shared memory a block may have."""
        return self.device(device).shared_limit

    def device(self, device: torch.device) -> Device:
        """What is known about `device`."""
        index = _index(device)
        if index not in self._devices:
            self._devices[index] = Device(**self._native.device_facts(index))
        return self._devices[index]

    def function(self, kernel: Kernel, device: torch.device) -> Any:
        """The loaded `ftrt._C.kernels.Function`: registers, local and shared memory.

        Raises:
            FtrtError: as `launch` does.
        """
        index = _index(device)
        value = (kernel.name, kernel.source, kernel.options, kernel.signature.letters)
        key = (*value, kernel.threads, index)
        with self._lock:
            if key not in self._by_value:
                self._by_value[key] = self._new_function(kernel, index)
            return self._by_value[key]

    def _load(self, kernel: Kernel, device: torch.device) -> tuple[_Launcher, Kernel]:
        found = (self.function(kernel, device).launch, kernel)
        if len(self._by_id) >= _REMEMBERED_KERNELS:
            self._by_id.clear()
        self._by_id[id(kernel), device.index] = found
        return found

    def _new_function(self, kernel: Kernel, index: int) -> Any:
        arch = choose_arch(kernel, self.device(torch.device("cuda", index)).arch)
        cubin = find_cubin(kernel, arch, self._driver_major)
        return self._native.Function(
            cubin.image,
            kernel.name,
            kernel.label,
            index,
            kernel.threads,
            kernel.signature.size_bytes,
        )


def _refuse_rocm() -> None:
    if torch.version.hip is not None:
        raise UnsupportedError(
            "CUDA kernels: torch must be a build for NVIDIA's GPUs; got one for ROCm"
            f' {torch.version.hip}, whose GPUs are "cuda" to torch too. {USE_REFERENCE}'
        )


def _index(device: torch.device) -> int:
    index = cast("int | None", device.index)
    return torch.cuda.current_device() if index is None else index


@dataclass(frozen=True)
class Status:
    """What there is to run kernels with.

    Attributes:
        driver: path of libcuda, or None.
        driver_version: newest CUDA version it knows, or None.
        compiler: NVRTC, or None.
        candidates: the libraries that were tried for NVRTC.
        devices: that the driver sees.
        bundles: of kernels built ahead.
        missing: one message for each thing that is not there, with the fix; empty if kernels can
            be compiled and launched.
    """

    driver: str | None
    driver_version: tuple[int, int] | None
    compiler: Compiler | None
    candidates: tuple[str, ...]
    devices: tuple[Device, ...]
    bundles: tuple[str, ...]
    missing: tuple[str, ...]


def status() -> Status:
    """Look at driver, devices and compiler. It initialises CUDA's driver, if there is one."""
    missing: list[str] = []
    driver: dict[str, Any] = {}
    devices: list[Device] = []
    try:
        _refuse_rocm()
        driver = native().driver_facts()
        count = native().device_count()
        devices = [Device(**native().device_facts(index)) for index in range(count)]
    except FtrtError as error:
        missing.append(str(error))
    version = driver.get("version")
    newest = None if version is None else version // 1000
    compiler = None
    try:
        compiler = open_nvrtc(newest)
    except UnsupportedError as error:
        missing.append(str(error))
    old = [device for device in devices if device.arch < (8, 0)]
    missing += [
        f"{device.name}: the GPU must have compute capability 8.0 or newer; got"
        f" {device.arch[0]}.{device.arch[1]}. {USE_REFERENCE}"
        for device in old
    ]
    return Status(
        driver=driver.get("path"),
        driver_version=None if version is None else (version // 1000, version % 1000 // 10),
        compiler=compiler,
        candidates=find_nvrtc(newest),
        devices=tuple(devices),
        bundles=tuple(map(str, bundle_paths())),
        missing=tuple(dict.fromkeys(missing)),
    )
