"""What `ftrt doctor` finds out about CUDA kernels: what runs them, and whether they are right."""

__all__ = ["kernel_findings", "runtime_findings"]

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ftrt import config
from ftrt.cli.diagnosis import Finding
from ftrt.errors import FtrtError, UnsupportedError

if TYPE_CHECKING:
    from ftrt.kernels import Kernel

NO_GPU = "not checked: no GPU"
KIB = 2**10


def runtime_findings() -> Iterator[Finding]:
    """Driver, GPUs, compiler, cache and what ops use. Something missing is a problem only on a
    machine with a GPU."""
    import torch

    from ftrt.kernels.runtime import status

    found = status()
    driver = f"{found.driver}, CUDA {_dotted(found.driver_version)}" if found.driver else "none"
    yield Finding("cuda", "driver", driver)
    for index, gpu in enumerate(found.devices):
        shared = f"{gpu.shared_limit // KIB} KiB shared memory"
        arch = f"sm_{gpu.arch[0]}{gpu.arch[1]}"
        value = f"{gpu.name}, {arch}, {gpu.multiprocessors} multiprocessors, {shared}"
        yield Finding("cuda", f"GPU {index}", value)
    compiler = found.compiler
    nvrtc = f"{_dotted(compiler.version)}, {compiler.path}" if compiler else "none"
    yield Finding("cuda", "NVRTC", nvrtc)
    yield Finding("cuda", "kernel cache", str(config.kernel_cache_dir()))
    if found.bundles:
        yield Finding("cuda", "kernel bundles", " ".join(found.bundles))
    has_gpu = bool(found.devices) or torch.cuda.is_available()
    if config.cuda_ops() == "reference":
        yield Finding("cuda", "ops on CUDA tensors", "reference, as FTRT_CUDA says")
    elif not found.missing:
        yield Finding("cuda", "ops on CUDA tensors", "kernels")
    elif has_gpu:
        for text in found.missing:
            yield Finding("cuda", "ops on CUDA tensors", "", text)
    else:
        yield Finding("cuda", "ops on CUDA tensors", f"none: {'; '.join(found.missing)}")


def kernel_findings() -> Iterator[Finding]:
    """Each plugin's kernel against its reference, where a GPU can launch it."""
    import torch

    from ftrt.kernels import is_available
    from ftrt.registry import Registry

    registry = Registry()
    can_launch = torch.cuda.is_available() and is_available(torch.device("cuda"))
    for offer in registry.manager.manifest.offers:
        if offer.kind != "kernel":
            continue
        try:
            names = registry.manager.members(offer, "kernel")
            found = {name: registry.kernel(name) for name in names}
        except FtrtError:
            continue  # the look at plugins says what is wrong with it
        for name, kernel in found.items():
            yield _checked(name, kernel, offer.distribution, can_launch=can_launch)


def _checked(name: str, kernel: "Kernel", distribution: str, *, can_launch: bool) -> Finding:
    from ftrt.testing import check_kernel

    label = f"kernel {name} of {distribution}"
    if not can_launch:
        return Finding("kernels", label, NO_GPU)
    try:
        check_kernel(kernel)
    except UnsupportedError as error:
        return Finding("kernels", label, f"not checked: {error}")
    except (AssertionError, FtrtError) as error:
        problem = f"must compute what its reference does; {' '.join(str(error).split())}"
        fix = f"report it to the authors of {distribution}; FTRT_CUDA=reference avoids it meanwhile"
        return Finding("kernels", label, "", problem, fix)
    return Finding("kernels", label, "computes what its reference does")


def _dotted(version: tuple[int, int] | None) -> str:
    return "unknown" if version is None else f"{version[0]}.{version[1]}"
