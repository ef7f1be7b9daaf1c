"""What a figure was measured on: processor, instruction set, threads, versions, load."""

import os
from pathlib import Path
from typing import Any

import torch
from measuring.environment import processor, versions
from measuring.records import Records

from ftrt.ops import implementation_report
from ftrt.ops.extension import OPS

# Variables that hold ftrt or a peer to an instruction set.
FORCING = ("FTRT_CPU_ISA", "ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS")


def last_level_cache_bytes() -> int:
    """Size of the largest cache of the first core, 32 MiB where the system does not say."""
    sizes = [32 << 20]
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text().strip()
        unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 1)
        sizes.append(int(text.rstrip("KMG")) * unit)
    return max(sizes)


def facts(threads: int) -> dict[str, Any]:
    """JSON values that say what the figures of this process were measured on."""
    report = implementation_report()
    ops = {name: report[name] for name in OPS}
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "last_level_cache_bytes": last_level_cache_bytes(),
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "forced": {name: os.environ[name] for name in FORCING if name in os.environ},
        "implementations": ops,
        "reference_because": report.get("reason", ""),
        "versions": versions(),
        "load_average": os.getloadavg()[0],
    }


def start(records: Records, threads: int) -> dict[str, Any]:
    """Fix the threads, print and record what this is measured on, return it."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    found = facts(threads)
    records.write("machine", **found)
    forced = " ".join(f"{key}={value}" for key, value in found["forced"].items()) or "nothing"
    print(f"{found['processor']}, {found['cores']} cores, {threads} threads, load", end=" ")
    print(f"{found['load_average']:.1f}; torch sees {found['torch_cpu_capability']};", end=" ")
    print(f"forced: {forced}")
    print(", ".join(f"{name} {version}" for name, version in found["versions"].items()))
    by_isa: dict[str, list[str]] = {}
    for name, isa in found["implementations"].items():
        by_isa.setdefault(isa, []).append(name)
    for isa, names in by_isa.items():
        print(f"ftrt runs {isa}: {', '.join(names)}")
    if "reference" in by_isa:
        print(f"!!! reference ops, slow: {found['reference_because']}")
    return found
