"""Imports the benchmarks, which are scripts and no part of the package."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # modules that stand above this folder

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    """Imports a module of benchmarks, those of benchmarks/cpu by their bare names; afterwards none
    of them is left, nor their threads."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.syspath_prepend(str(BENCHMARKS / "cpu"))
    threads, before = torch.get_num_threads(), set(sys.modules)
    with torch.random.fork_rng():
        yield importlib.import_module
    torch.set_num_threads(threads)
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(BENCHMARKS)):
            del sys.modules[name]
