"""The findings of `ftrt doctor`, each with its problem and fix if it has one."""

__all__ = ["Finding", "diagnose"]

import os
import platform
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from ftrt import __version__
from ftrt.config import cache_dir, cpu_isa, is_offline
from ftrt.errors import ConfigError, FtrtError, one_line

GIB = 2**30
REPORT = "report this with what `ftrt doctor --json` prints"
# A model, its tokenizer and a data set of the demo's size fit into this.
LEAST_FREE_BYTES = GIB

# the instruction sets that decide how fast the CPU kernels are, as Linux calls them
CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    area: str
    name: str
    value: str
    problem: str = ""
    fix: str = ""

    def to_json(self) -> dict[str, Any]:
        """Its fields by name."""
        return asdict(self)


def diagnose() -> list[Finding]:
    """Look at everything; nothing that is broken keeps the rest from being looked at."""
    findings: list[Finding] = []
    for look in LOOKS:
        area = look.__name__.lstrip("_")
        # The doctor runs where things are broken: what breaks a look is its finding.
        try:
            findings.extend(_news(look(), findings))
        except FtrtError as error:
            findings.extend(_news([Finding(area, area, "", str(error))], findings))
        except Exception as error:
            findings.append(Finding(area, area, "", one_line(error), REPORT))
    return findings


def _news(found: Iterable[Finding], before: list[Finding]) -> Iterator[Finding]:
    """`found`, where a problem that another area has told already is no plugin's to mend."""
    told = {finding.problem: finding.name for finding in before if finding.problem}
    for finding in found:
        cause = told.get(finding.problem)
        yield replace(finding, value=f"not read, for {cause}", problem="") if cause else finding


def _versions() -> Iterator[Finding]:
    yield Finding("versions", "ftrt", __version__)
    yield Finding("versions", "python", f"{platform.python_version()} ({sys.executable})")
    for name, wanted in _requirements().items():
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Finding(
                "versions", name, "", f"must be installed; {name}{wanted}", f"pip install {name}"
            )
            continue
        if wanted and not _fits(found, wanted):
            yield Finding(
                "versions",
                name,
                found,
                f"ftrt is tested with {name}{wanted}; got {found}",
                f"pip install '{name}{wanted}'",
            )
        else:
            yield Finding("versions", name, f"{found} (tested: {wanted})" if wanted else found)


def _requirements() -> dict[str, str]:
    """name -> version range of what ftrt needs, as its own metadata says."""
    from packaging.requirements import Requirement

    try:
        lines = metadata.requires("ftrt") or []
    except metadata.PackageNotFoundError:
        # run from a source folder that is not installed: there is no range to compare with
        return dict.fromkeys(("torch", "transformers", "peft", "accelerate", "safetensors"), "")
    wanted = [Requirement(line) for line in lines]
    return {need.name: str(need.specifier) for need in wanted if need.marker is None}


def _fits(found: str, wanted: str) -> bool:
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(wanted).contains(found, prereleases=True)


def _torch() -> Iterator[Finding]:
    import torch

    yield Finding("torch", "threads", str(torch.get_num_threads()))
    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = f"no usable GPU; torch is built for CUDA {built}" if built else "torch is a CPU build"
        yield Finding("torch", "cuda", f"not available ({why})")
        return
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        yield Finding(
            "torch",
            f"cuda:{index}",
            f"{facts.name}, {facts.total_memory / GIB:.1f} GiB, sm_{facts.major}{facts.minor}",
        )


def _ops() -> Iterator[Finding]:
    try:
        forced = cpu_isa()
        from ftrt.ops.extension import OPS, implementation_report
    except ConfigError as error:
        variable = str(error).partition(":")[0]
        yield Finding("ops", variable, "", str(error), f"unset {variable}")
        return
    report = implementation_report()
    for op in OPS:
        yield Finding("ops", op, f"{report[op]} on CPU tensors")
    built = f"built with torch {report['built_with_torch']} by {report['compiler']}"
    yield Finding(
        "ops",
        "extension",
        f"{report['extension']}, {built}" if report["extension"] else "none: reference ops run",
        report["reason"],
        report["fix"],
    )
    yield Finding("ops", "FTRT_CPU_ISA", forced or "not set: the best available is used")
    if report["usable_isas"]:
        yield Finding("ops", "instruction sets", " ".join(report["usable_isas"]))


def _compiler() -> Iterator[Finding]:
    wanted = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    found = next((path for name in wanted if name and (path := shutil.which(name))), None)
    value = found or "none; needed only to build the compiled kernels"
    yield Finding("build", "C++ compiler", value)


def _processor() -> Iterator[Finding]:
    cpuinfo = Path("/proc/cpuinfo")
    flags: set[str] = set()
    model = platform.processor() or platform.machine()
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(errors="replace").splitlines()
        pairs = (line.partition(":") for line in lines)
        fields = {key.strip(): value.strip() for key, _, value in pairs}
        flags = set((fields.get("flags") or fields.get("Features") or "").split())
        model = fields.get("model name", model)
    yield Finding("machine", "processor", f"{model}, {os.cpu_count()} cores")
    yield Finding("machine", "CPU features", " ".join(f for f in CPU_FLAGS if f in flags) or "none")


def _memory() -> Iterator[Finding]:
    page = os.sysconf("SC_PAGE_SIZE")
    total = page * os.sysconf("SC_PHYS_PAGES")
    free = page * os.sysconf("SC_AVPHYS_PAGES")
    yield Finding("machine", "memory", f"{total / GIB:.1f} GiB, {free / GIB:.1f} GiB unused")


def _cache() -> Iterator[Finding]:
    folder = cache_dir()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    value = f"{folder}, {free / GIB:.1f} GiB free" + (", offline" if is_offline() else "")
    problem = ""
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        problem = f"{existing} must be a folder you may write to"
    elif free < LEAST_FREE_BYTES:
        problem = f"{existing} must have 1 GiB free; got {free / GIB:.2f} GiB"
    fix = "set FTRT_CACHE_DIR to another folder" if problem else ""
    yield Finding("machine", "cache", value, problem, fix)


def _cuda() -> Iterator[Finding]:
    from ftrt.cli.cuda_diagnosis import runtime_findings

    yield from runtime_findings()


def _kernels() -> Iterator[Finding]:
    from ftrt.cli.cuda_diagnosis import kernel_findings

    yield from kernel_findings()


def _plugins() -> Iterator[Finding]:
    from ftrt.manifest import discover
    from ftrt.plugins import PluginManager
    from ftrt.registry import Registry

    manifest = discover()
    registry = Registry(PluginManager(manifest))
    for text in manifest.malformed:
        fix = "reinstall the distribution, or report it to its author"
        yield Finding("plugins", "entry point", "", text, fix)
    for kind, name in sorted({(offer.kind, offer.name) for offer in manifest.offers}):
        try:
            offer = manifest.find(kind, name)
            members = registry.manager.members(offer, kind)
            for member in members:
                registry.find(kind, member)
        except FtrtError as error:
            yield Finding("plugins", f"{kind} {name}", "", str(error))
        else:
            count = f", {len(members)} names" if offer.is_family else ""
            yield Finding("plugins", f"{kind} {name}", f"{offer}{count}")
    if not manifest.offers:
        problem = "no method can be used: no plugin is installed"
        fix = "pip install ftrt-lowrank ftrt-heads"
        yield Finding("plugins", "installed", "0", problem, fix)


# in the order of the report
LOOKS = (
    *(_versions, _torch, _ops, _cuda, _compiler, _processor, _memory, _cache),
    *(_plugins, _kernels),
)
