"""Where NVRTC is: the compiler that CUDA builds of torch bring along."""

__all__ = ["Compiler", "find_nvrtc", "open_nvrtc", "open_nvrtc_for_others", "require_arch"]

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from ftrt import config
from ftrt.errors import UnsupportedError
from ftrt.kernels.native import native

# The CUDA versions whose NVRTC compiles for all that `ftrt.kernels.ARCHES` has, newest first.
MAJORS = (13, 12)


@dataclass(frozen=True)
class Compiler:
    """The NVRTC in use.

    Attributes:
        path: of libnvrtc.
        version: (13, 0) for CUDA 13.0.
        arches: numbers of the architectures it compiles for, 90 for sm_90 and sm_90a.
    """

    path: str
    version: tuple[int, int]
    arches: tuple[int, ...]


def find_nvrtc(newest: int | None = None) -> tuple[str, ...]:
    """Libraries to try, best first; those without a folder are searched for by the loader.

    `FTRT_NVRTC` alone where it is set. Otherwise the `nvidia-*` wheels and the environment's own
    lib folder, that of torch's CUDA version first, then newer before older ones, then the system.

    Args:
        newest: the CUDA major version of the driver, which does not load what newer ones compile;
            None where kernels are not loaded here.
    """
    explicit = config.nvrtc_path()
    if explicit is not None:
        return (str(explicit),)
    cuda = torch.version.cuda
    own = int(cuda.partition(".")[0]) if cuda else None
    found = [(major, str(path)) for major, path in _installed()]
    found += [(major, f"libnvrtc.so.{major}") for major in MAJORS]
    usable = [one for one in found if one[0] in MAJORS and (newest is None or one[0] <= newest)]
    usable.sort(key=lambda one: ("/" not in one[1], one[0] != own, -one[0]))
    return tuple(dict.fromkeys(path for _, path in usable))


def _installed() -> list[tuple[int, Path]]:
    folders = [Path(torch.__file__).parents[1], *map(Path, sys.path)]
    files = [file for folder in folders for file in folder.glob("nvidia/*/lib/libnvrtc.so.*")]
    files += (Path(sys.prefix) / "lib").glob("libnvrtc.so.*")
    matches = [(re.fullmatch(r"libnvrtc\.so\.(\d+)", file.name), file) for file in files]
    return [(int(match[1]), file) for match, file in matches if match]


def open_nvrtc(newest: int | None = None) -> Compiler:
    """The compiler, opened once a process; later calls return the same one.

    Args:
        newest: see `find_nvrtc`.

    Raises:
        UnsupportedError: there is none; the message has what was tried.
    """
    try:
        facts = native().open_compiler(list(find_nvrtc(newest)))
    except UnsupportedError as error:
        raise UnsupportedError(f"{error}. {_install('NVRTC', newest)}") from None
    return Compiler(facts["path"], facts["version"], tuple(facts["arches"]))


def open_nvrtc_for_others() -> Compiler:
    """As `open_nvrtc`, the oldest there is: a driver does not load what a newer CUDA compiled, and
    that of the machine where the kernels will run may be older than this one's.

    Raises:
        UnsupportedError: there is none; the message has what was tried.
    """
    for newest in sorted(MAJORS)[:-1]:
        try:
            return open_nvrtc(newest)
        except UnsupportedError:
            continue
    return open_nvrtc()


def require_arch(compiler: Compiler, arch: str, newest: int | None = None) -> None:
    """Raise unless `compiler` compiles for `arch`: sm_100 and sm_120 are known from CUDA 12.8 on.

    Args:
        newest: see `find_nvrtc`; for the message.

    Raises:
        UnsupportedError: it does not; the message has what it compiles for.
    """
    if int(re.sub(r"\D", "", arch)) not in compiler.arches:
        known = ", ".join(f"sm_{number}" for number in compiler.arches)
        major, minor = compiler.version
        raise UnsupportedError(
            f"{compiler.path}: must compile for sm_{arch}; got version {major}.{minor}, which does"
            f" for {known}. {_install('a newer one', newest, '-U ')}"
        )


def _install(what: str, newest: int | None, option: str = "") -> str:
    limit = "" if newest is None else f" of CUDA {newest} or older, as the driver is"
    return (
        f"Install {what}{limit}, say `pip install {option}nvidia-cuda-nvrtc-cu12`, or name the"
        " library with FTRT_NVRTC"
    )
