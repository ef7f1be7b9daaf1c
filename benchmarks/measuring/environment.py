"""Processor and versions that figures were taken with."""

import importlib.metadata
import platform
from pathlib import Path

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "torchao")


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((x.partition(": ")[2] for x in lines if x.startswith("model name")), "unknown")


def versions() -> dict[str, str]:
    """Version of each package that takes part, "not installed" for those that are away."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
