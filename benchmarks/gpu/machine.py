"""What a figure was measured on: the GPU, its driver, its clocks while measuring, versions."""

import datetime
import shutil
import subprocess
import sys
from typing import Any

import torch
from measuring.environment import processor, versions

import ftrt

# what nvidia-smi is asked for -> the name here
_STATE = {
    "clocks.sm": "sm_mhz",
    "clocks.max.sm": "sm_max_mhz",
    "power.draw": "watts",
    "temperature.gpu": "celsius",
}


def state(device: torch.device) -> dict[str, float]:
    """SM clock and its maximum (MHz), power (W), temperature (°C); empty where nothing tells."""
    return {name: float(text) for name, text in _ask(device, _STATE).items() if _is_number(text)}


def facts(device: torch.device) -> dict[str, Any]:
    """JSON values that say what the figures of this process were measured on."""
    common = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", *sys.argv]),
        "ftrt": ftrt.__version__,
        "commit": _commit(),
        "python": sys.version.split()[0],
        "versions": versions(),
        "processor": processor(),
        "device": str(device),
    }
    if device.type != "cuda":
        return {**common, "gpu": None}
    properties = torch.cuda.get_device_properties(device)
    driver = _ask(device, {"driver_version": "driver"}).get("driver", "unknown")
    return {
        **common,
        "gpu": properties.name,
        "driver": driver,
        "cuda": torch.version.cuda,
        "arch": f"sm_{properties.major}{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "int8_product": default_product(device),
    }


def default_product(device: torch.device) -> str:
    """Who multiplies int8 on this GPU where nothing is forced, at 8192 rows of a 4096 x 4096."""
    from ftrt.ops.cuda import choice

    properties = torch.cuda.get_device_properties(device)
    found = choice.Device(
        (properties.major, properties.minor),
        properties.multi_processor_count,
        properties.shared_memory_per_block_optin,
    )
    return choice.int8_product(found, rows=8192, columns=4096, depth=4096).value


def cache_bytes(device: torch.device) -> int:
    """What a working set has to exceed: the GPU's L2; on a CPU, where figures mean nothing, 0."""
    if device.type != "cuda":
        return 0
    return torch.cuda.get_device_properties(device).L2_cache_size


def describe(found: dict[str, Any]) -> str:
    """One line for people."""
    if found["gpu"] is None:
        return f"no GPU: {found['processor']}; figures show that the script runs, and no more"
    return (
        f"{found['gpu']} ({found['arch']}, {found['multiprocessors']} SMs,"
        f" {found['memory_bytes'] / 2**30:.0f} GiB, L2 {found['l2_bytes'] / 2**20:.0f} MiB),"
        f" driver {found['driver']}, CUDA {found['cuda']}, int8 by {found['int8_product']}"
    )


def _ask(device: torch.device, fields: dict[str, str]) -> dict[str, str]:
    program = shutil.which("nvidia-smi")
    if device.type != "cuda" or program is None:
        return {}
    gpu = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    query = f"--query-gpu={','.join(fields)}"
    command = [program, query, "--format=csv,noheader,nounits", "-i", gpu]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    values = done.stdout.strip().split(", ")
    return dict(zip(fields.values(), values, strict=False))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _commit() -> str:
    command = ["git", "rev-parse", "--short=12", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()
