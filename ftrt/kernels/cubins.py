"""A kernel's cubin: from a bundle that was built ahead, from the cache, or compiled."""

__all__ = [
    "COMPILE_OPTIONS",
    "Cubin",
    "bundle_paths",
    "choose_arch",
    "compile_kernel",
    "find_cubin",
    "kernel_key",
    "unpack_bundle",
]

import functools
import logging
import lzma
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftrt import config
from ftrt.errors import ConfigError, UnsupportedError
from ftrt.kernels.kernel import Kernel
from ftrt.kernels.native import USE_REFERENCE, native
from ftrt.kernels.nvrtc import open_nvrtc, require_arch

# What every kernel is compiled with, beside its macros and the architecture.
COMPILE_OPTIONS = ("--std=c++17",)

# How long a rank waits for local rank 0 to begin compiling, and anybody for who has begun. A kernel
# takes about a second.
LEADER_SECONDS = 5.0
LOCK_SECONDS = 120.0

_XZ = b"\xfd7zXZ\0"  # what an .xz file begins with

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cubin:
    """A compiled kernel.

    Attributes:
        image: the ELF file.
        arch: that it was compiled for.
        compiler: version of NVRTC.
        origin: "bundle", "cache" or "compiled".
        notes: what went wrong on the way and was got around.
    """

    image: bytes
    arch: str
    compiler: tuple[int, int]
    origin: str
    notes: tuple[str, ...] = ()


def choose_arch(kernel: Kernel, capability: tuple[int, int]) -> str:
    """The architecture of `kernel.arches` to compile for, for a device.

    A cubin runs on later minor versions of its major one, and one of "90a" on 9.0 only.

    Args:
        capability: of the device, (8, 6) for sm_86.

    Raises:
        UnsupportedError: the kernel is for none that the device runs.
    """
    usable = [arch for arch in kernel.arches if _runs_on(arch, capability)]
    if usable:
        return max(usable, key=_capability)
    got = f"{capability[0]}.{capability[1]}"
    if capability < (8, 0):
        raise UnsupportedError(
            f"CUDA kernels: the GPU must have compute capability 8.0 or newer; got {got}."
            f" {USE_REFERENCE}"
        )
    arches = ", ".join(f"sm_{arch}" for arch in kernel.arches)
    raise UnsupportedError(
        f"{kernel.label}: the GPU must run one of {arches}; got compute capability {got}."
        f" {USE_REFERENCE}"
    )


def find_cubin(kernel: Kernel, arch: str, newest: int | None = None) -> Cubin:
    """The cubin of `kernel` for `arch`, or where no compiler knows it, for an older one that `arch`
    runs.

    Args:
        newest: CUDA major version of the driver that will load it.

    Raises:
        UnsupportedError: there is no compiler for `arch`, and no bundle nor the cache has it.
        UsageError: the source does not compile; the message has the compiler's log.
    """
    notes: list[str] = []
    found = _from_bundles(kernel, arch, newest, notes)
    if found is None:
        try:
            require_arch(open_nvrtc(newest), arch, newest)
        except UnsupportedError as error:
            found = _without_compiler(kernel, arch, newest, error)
        else:
            found = _from_cache_or_compiler(kernel, arch, notes)
    for note in found.notes:
        logger.warning("%s", note)
    logger.info(
        "kernel %s, sm_%s: %s, by NVRTC %d.%d; sha256 of its source %s",
        *(kernel.label, found.arch, found.origin, *found.compiler, kernel.source_hash()),
    )
    return found


def compile_kernel(kernel: Kernel, arch: str, *, is_verbose: bool = False) -> tuple[bytes, str]:
    """Compile anew, without looking at bundles or the cache: the cubin and the compiler's log.

    Args:
        is_verbose: the log has what the kernel uses: registers, spills, shared memory.

    Raises:
        UnsupportedError: there is no compiler for `arch`.
        UsageError: the source does not compile; the message has the compiler's log.
    """
    require_arch(open_nvrtc(), arch)
    made: tuple[bytes, str] = native().compile(_source(kernel), arch, is_verbose)
    return made


def kernel_key(kernel: Kernel, arch: str) -> str:
    """What the cubin is looked up by: sha256 of source, headers, options and architecture."""
    key: str = native().source_key(_source(kernel), arch)
    return key


def bundle_paths() -> tuple[Path, ...]:
    """Bundles to look into: the one `FTRT_KERNEL_BUNDLE` names, and the package's if it has one."""
    named = config.kernel_bundle()
    shipped = Path(__file__).with_name("bundle.xz")
    return (*([named] if named else []), *([shipped] if shipped.exists() else []))


@functools.lru_cache(maxsize=4)
def unpack_bundle(path: Path) -> bytes | None:
    """Entries of a bundle that is packed as wheels have it, by LZMA, which finds what kernels and
    architectures have in common; None for any other, and where it is damaged, which who reads it
    as one says.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(_XZ)) != _XZ:
                return None
        return lzma.decompress(path.read_bytes())
    except (OSError, lzma.LZMAError):
        return None


def _source(kernel: Kernel) -> Any:
    return native().Source(
        kernel.source.name,
        kernel.source.read_text(),
        list(kernel.headers().items()),
        [*COMPILE_OPTIONS, *kernel.options],
    )


def _from_bundles(kernel: Kernel, arch: str, newest: int | None, notes: list[str]) -> Cubin | None:
    paths = bundle_paths()
    if not paths:
        return None
    key = kernel_key(kernel, arch)
    for path in paths:
        packed = unpack_bundle(path)
        if packed is None:
            entry, said = native().find_in_bundle(str(path), key)
        else:
            entry, said = native().find_in_bytes(str(path), packed, key)
        notes += said
        if entry is not None and _loads(entry, f"kernel bundle: {path}", newest, notes):
            return Cubin(entry["image"], arch, entry["compiler"], "bundle", tuple(notes))
    return None


def _loads(entry: Mapping[str, Any], where: str, newest: int | None, notes: list[str]) -> bool:
    """Whether a driver of CUDA `newest` loads it: those of a newer major version it does not."""
    major, minor = entry["compiler"]
    if newest is None or major <= newest:
        return True
    notes.append(
        f"{where} has {entry['label']} by NVRTC {major}.{minor}, which a driver of CUDA {newest}"
        " does not load; it is not used"
    )
    return False


def _from_cache_or_compiler(kernel: Kernel, arch: str, notes: list[str]) -> Cubin:
    folder = _cache_folder(notes)
    if folder is None:
        image, _ = compile_kernel(kernel, arch)
        return Cubin(image, arch, open_nvrtc().version, "compiled", tuple(notes))
    entry, was_compiled, log, said = native().compile_cached(
        _source(kernel),
        arch,
        label=f"{kernel.label} sm_{arch}",
        folder=folder,
        is_leader=config.local_rank() == 0,
        leader_seconds=LEADER_SECONDS,
        lock_seconds=LOCK_SECONDS,
    )
    if log:
        notes.append(f"{kernel.source.name}: the compiler says:\n{log}")
    origin = "compiled" if was_compiled else "cache"
    return Cubin(entry["image"], arch, entry["compiler"], origin, (*notes, *said))


def _without_compiler(
    kernel: Kernel, arch: str, newest: int | None, reason: UnsupportedError
) -> Cubin:
    notes: list[str] = []
    folder = _cache_folder(notes)
    capability = _capability(arch)
    older = [one for one in kernel.arches if one != arch and _runs_on(one, capability)]
    for candidate in (arch, *sorted(older, key=_capability, reverse=True)):
        found = _from_bundles(kernel, candidate, newest, notes)
        if found is None and folder is not None:
            entry, said = native().find_in_cache(folder, kernel_key(kernel, candidate))
            notes += said
            if entry is not None and _loads(entry, f"kernel cache: {folder}", newest, notes):
                found = Cubin(entry["image"], candidate, entry["compiler"], "cache", tuple(notes))
        if found is not None and candidate != arch:
            note = (
                f"{kernel.label}: runs as compiled for sm_{candidate}, which is slower than for"
                f" sm_{arch}: there is no NVRTC to compile it anew. {reason}"
            )
            return Cubin(found.image, candidate, found.compiler, found.origin, (*notes, note))
        if found is not None:
            return found
    said_before = "".join(f". {note}" for note in notes)
    places = ", ".join([*map(str, bundle_paths()), *([folder] if folder else [])]) or "no place"
    raise UnsupportedError(
        f"{kernel.label}: must be compiled for sm_{arch}; got it neither from a compiler nor"
        f" compiled from {places}. {reason}{said_before}. {USE_REFERENCE}"
    )


def _cache_folder(notes: list[str]) -> str | None:
    try:
        return str(config.kernel_cache_dir())
    except ConfigError as error:
        notes.append(f"kernel cache: each process compiles its own. {error}")
        return None


def _capability(arch: str) -> tuple[int, int]:
    digits = re.sub(r"\D", "", arch)
    return int(digits[:-1]), int(digits[-1])


def _runs_on(arch: str, capability: tuple[int, int]) -> bool:
    own = _capability(arch)
    if arch[-1].isalpha():
        return own == capability
    return own[0] == capability[0] and own[1] <= capability[1]
