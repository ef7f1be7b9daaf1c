"""Runs kernels on CPU tensors: a backend that compiles the same sources for the host.

    with use_backend(EmulatedBackend(seed=1)):
        launch(kernel, grid, shared_bytes, *tensors)

Each thread of a block is a fibre, and `seed` says in which order they and the blocks run. What is
checked while they do, and ends the launch with an EmulationError: races in shared memory, reads of
shared memory that was never written or is still on its way, barriers and operations of a warp that
not all threads reach, addresses outside of shared memory or of the arguments' tensors or not
aligned, races between threads and between blocks in tensors that the kernel writes, and what C++
leaves undefined. `emulation/` has the C++ part.

A pointer given as an integer may point anywhere: then addresses outside of the tensors are allowed.
"""

__all__ = ["EmulatedBackend", "EmulationError", "context_switches"]

import ctypes
import fcntl
import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import torch

from ftrt.errors import UsageError
from ftrt.kernels.backend import Grid
from ftrt.kernels.kernel import Kernel
from ftrt.kernels.signature import Argument

EMULATION = Path(__file__).parent / "emulation"
CUDA = Path(__file__).parents[3] / "csrc" / "cuda"
BUILD = Path(__file__).parents[3] / "build" / "emulation"

# The flags below are gcc's, from version 12 on.
_COMPILER = "g++"
_RUNTIME_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-Wall", "-Wextra", "-Werror")
_KERNEL_FLAGS = (
    # Calls functions of the runtime for each access to memory, and where a kernel does what is
    # undefined; no library of the sanitizers is linked.
    *("-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0"),
    "-fsanitize=alignment,null,bounds,shift,signed-integer-overflow,integer-divide-by-zero,"
    "float-cast-overflow",
    # Variables without a value hold 0xfe bytes; a thread's stack is no larger than fiber.h says.
    *("-ftrivial-auto-var-init=pattern", "-Werror=frame-larger-than=131072"),
    *("-std=c++17", "-O1", "-g1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off"),
    "-Wno-unknown-pragmas",
)
_LINK_FLAGS = ("-shared", "-Wl,-z,defs")


class EmulationError(Exception):
    """A kernel did what it may not do; the message says which one, where, and what."""


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("begin", ctypes.c_size_t),
        ("end", ctypes.c_size_t),
        ("first", ctypes.c_size_t),
        ("last", ctypes.c_size_t),
        ("argument", ctypes.c_int),
        ("is_written", ctypes.c_int),
    )


class _Launch(ctypes.Structure):
    _fields_ = (
        ("call", ctypes.c_void_p),
        ("parameters", ctypes.c_char_p),
        ("threads", ctypes.c_uint),
        ("grid", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("seed", ctypes.c_uint64),
        ("tensors", ctypes.POINTER(_Tensor)),
        ("tensor_count", ctypes.c_int),
        ("has_addresses", ctypes.c_bool),
        ("image", ctypes.c_void_p),
        ("image_end", ctypes.c_void_p),
    )


class EmulatedBackend:
    """Implements `ftrt.kernels.Backend` for CPU tensors.

    Args:
        seed: of the order in which threads and blocks run. A correct kernel gives the same with
            each, except where it adds floats atomically.
        arch: compute capability that callers are told, and `__CUDA_ARCH__` of the kernels.
        multiprocessors: that callers are told.
        shared_limit: bytes of shared memory that a block may have.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        arch: tuple[int, int] = (8, 0),
        multiprocessors: int = 108,
        shared_limit: int = 166912,
    ) -> None:
        self.seed = seed
        self._arch = arch
        self._multiprocessors = multiprocessors
        self._shared_limit = shared_limit

    def arch(self, device: torch.device) -> tuple[int, int]:
        return self._arch

    def multiprocessors(self, device: torch.device) -> int:
        return self._multiprocessors

    def shared_limit(self, device: torch.device) -> int:
        return self._shared_limit

    def launch(
        self,
        kernel: Kernel,
        grid: Grid,
        shared_bytes: int,
        arguments: tuple[Argument, ...],
        device: torch.device,
    ) -> None:
        """Run all blocks, and return when they are done.

        Raises:
            EmulationError: the kernel or the launch is faulty.
            UsageError: the arguments do not fit the signature, or the signature the kernel.
        """
        self._check(kernel, grid, shared_bytes, arguments)
        library = _load(kernel, self._arch)
        letters = library.emulation_letters().decode()
        if letters.lower() != kernel.signature.letters:
            raise UsageError(
                f"{kernel.label}: the signature must say what the kernel takes,"
                f" {letters.lower()!r}; got {kernel.signature.letters!r}"
            )
        parameters = kernel.signature.pack(arguments)
        pairs = list(zip(letters, arguments, strict=True))
        tensors = [
            _describe(argument, number, letter == "P")
            for number, (letter, argument) in enumerate(pairs)
            if isinstance(argument, torch.Tensor)
        ]
        request = _Launch(
            ctypes.cast(library.emulation_call, ctypes.c_void_p),
            parameters,
            kernel.threads,
            grid,
            shared_bytes,
            self.seed,
            (_Tensor * len(tensors))(*tensors),
            len(tensors),
            any(letter in "pP" and isinstance(a, int) and a != 0 for letter, a in pairs),
            library.emulation_image(0),
            library.emulation_image(1),
        )
        message = ctypes.create_string_buffer(8192)
        if _runtime().emulation_launch(ctypes.byref(request), message, len(message)) != 0:
            text = _resolve(message.value.decode(errors="replace"), library)
            raise EmulationError(f"{kernel.label}: {text}")

    def _check(
        self, kernel: Kernel, grid: Grid, shared_bytes: int, arguments: tuple[Argument, ...]
    ) -> None:
        tensors = [a for a in arguments if isinstance(a, torch.Tensor)]
        away = sorted({str(t.device) for t in tensors if t.device.type != "cpu"})
        if away:
            raise UsageError(f"{kernel.label}: the emulation takes CPU tensors; got {away}")
        limits = (2**31 - 1, 65535, 65535)
        if not all(0 < n <= limit for n, limit in zip(grid, limits, strict=True)):
            raise EmulationError(f"{kernel.label}: a grid is at most {limits}; got {grid}")
        if not 0 <= shared_bytes <= self._shared_limit:
            raise EmulationError(
                f"{kernel.label}: a block has at most {self._shared_limit} bytes of shared memory;"
                f" got {shared_bytes}"
            )
        if not 0 < kernel.threads <= 1024 or kernel.threads % 32 != 0:
            raise EmulationError(
                f"{kernel.label}: a block must have 32 to 1024 threads, in warps of 32; got"
                f" {kernel.threads}"
            )


def _describe(tensor: torch.Tensor, number: int, is_written: bool) -> _Tensor:
    """The bytes of a tensor's storage, and those from its first to its last element."""
    storage = tensor.untyped_storage()
    begin, first = storage.data_ptr(), tensor.data_ptr()
    span = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    size = 0 if tensor.numel() == 0 else (span + 1) * tensor.element_size()
    return _Tensor(begin, begin + storage.nbytes(), first, first + size, number, is_written)


def _resolve(message: str, library: ctypes.CDLL) -> str:
    """`message` with a source line for each `{pc <offset in the library>}`."""

    def line(match: re.Match[str]) -> str:
        # the address before a call's return belongs to the call
        offset = hex(int(match[1], 16) - 1)
        command = ["addr2line", "-e", library._name, offset]
        result = subprocess.run(command, capture_output=True, text=True)
        return Path(result.stdout.split(" ")[0].strip() or f"offset {offset}").name

    return re.sub(r"\{pc ([0-9a-f]+)\}", line, message)


@cache
def _runtime() -> ctypes.CDLL:
    library = ctypes.CDLL(str(_runtime_path()))
    library.emulation_launch.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t)
    library.emulation_switches.restype = ctypes.c_uint64
    return library


def context_switches() -> int:
    """How often a thread has given way to another, in this process."""
    return int(_runtime().emulation_switches())


_loaded: dict[tuple[str, str, tuple[str, ...], tuple[int, int]], ctypes.CDLL] = {}


def _load(kernel: Kernel, arch: tuple[int, int]) -> ctypes.CDLL:
    key = (kernel.source_hash(), kernel.name, kernel.options, arch)
    if key not in _loaded:
        _runtime()
        library = ctypes.CDLL(str(_kernel_path(kernel, arch)))
        library.emulation_letters.restype = ctypes.c_char_p
        library.emulation_image.restype = ctypes.c_void_p
        _loaded[key] = library
    return _loaded[key]


def _runtime_path() -> Path:
    sources = sorted(map(str, EMULATION.glob("*.cpp")))
    objects = [f"{Path(source).stem}.o" for source in sources]
    texts = [path.read_text() for path in sorted(EMULATION.iterdir())]

    def build(folder: Path, output: str) -> None:
        soname = f"-Wl,-soname,{output}"
        _run_compiler("emulation", [*_RUNTIME_FLAGS, "-c", *sources], folder)
        _run_compiler("emulation", [*_LINK_FLAGS, soname, *objects, "-o", output], folder)

    return _built("emulation", (*_RUNTIME_FLAGS, *_LINK_FLAGS, *texts), build)


def _kernel_path(kernel: Kernel, arch: tuple[int, int]) -> Path:
    runtime = _runtime_path()
    flags = (*_KERNEL_FLAGS, *kernel.options, f"-D__CUDA_ARCH__={arch[0]}{arch[1]}0")

    def build(folder: Path, output: str) -> None:
        texts = {"types.cuh": (CUDA / "types.cuh").read_text(), **kernel.headers()}
        texts["ptx.cuh"] = (EMULATION / "ptx.cuh").read_text()
        texts[kernel.source.name] = kernel.source.read_text()
        texts["main.cpp"] = (
            f'#include "device.h"\n#include "{kernel.source.name}"\n#include "thunk.h"\n'
            f"EMULATION_ENTRY({kernel.name})\n"
        )
        for name, text in texts.items():
            (folder / name).write_text(text)
        compiling = [*flags, "-I", str(EMULATION), "-c", "main.cpp"]
        _run_compiler(kernel.label, compiling, folder)
        rpath = f"-Wl,-rpath,$ORIGIN/../{runtime.parent.name}"
        linking = [*_LINK_FLAGS, "main.o", str(runtime), rpath, "-o", output]
        _run_compiler(kernel.label, linking, folder)

    parts = (kernel.source_hash(), kernel.name, *flags, *_LINK_FLAGS, runtime.parent.name)
    return _built(kernel.name, parts, build)


def _built(name: str, parts: Iterable[str], build: Callable[[Path, str], None]) -> Path:
    """The shared object that `build` makes in a folder of its own, which is named after `parts`.

    It stays there for later; one process builds it, others wait.
    """
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    folder = BUILD / f"{name}-{digest[:24]}"
    output = f"lib{name}.so"
    if (folder / output).exists():
        return folder / output
    BUILD.mkdir(parents=True, exist_ok=True)
    with open(BUILD / f"{folder.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / output).exists():
            return folder / output
        work = Path(tempfile.mkdtemp(dir=BUILD, prefix="building-"))
        try:
            build(work, output)
            for path in work.glob("*.o"):
                path.unlink()
            shutil.rmtree(folder, ignore_errors=True)
            work.rename(folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return folder / output


def _run_compiler(name: str, arguments: list[str], folder: Path) -> None:
    try:
        command = [_COMPILER, *arguments]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise EmulationError(f"{name}: the emulation needs {_COMPILER}: {error}") from None
    if result.returncode != 0:
        raise EmulationError(f"{name}: {_COMPILER} says\n{result.stderr}")
