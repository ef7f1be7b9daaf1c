"""Makes `op_subjects` importable by the tests beside it, and runs tests on each implementation."""

import contextlib
import os
import sys
import warnings
from pathlib import Path

import pytest
import torch

from ftrt.config import ISAS
from ftrt.ops.extension import EXTENSION, TORCH_OPS
from ftrt.ops.registration import REFERENCES

sys.path.insert(0, str(Path(__file__).parent))


@contextlib.contextmanager
def references():
    """References in place of the kernels that are registered."""
    with torch.library._scoped_library("ftrt", "IMPL") as library, warnings.catch_warnings():
        # torch warns that kernels are overridden, which is the purpose.
        warnings.simplefilter("ignore")
        for name, implementation in REFERENCES.items():
            library.impl(name, implementation, torch.get_default_device().type.upper())
        yield


@pytest.fixture
def reference():
    """Runs the test on the references, which take float16 and float64 too."""
    with references():
        yield


# With FTRT_TEST_CUDA the CUDA implementations are what is tested, see tests/conftest.py.
LEVELS = ["cuda"] if os.environ.get("FTRT_TEST_CUDA") else ["reference", *ISAS]


@pytest.fixture(params=LEVELS)
def isa(request):
    """Runs the test on the reference and once at each instruction set; those that cannot run are
    skipped by name."""
    level = request.param
    if level == "cuda":
        yield level
        return
    if level == "reference":
        with references():
            yield level
        return
    if EXTENSION.module is None:
        pytest.skip(f"{level}: no compiled kernels, {EXTENSION.reason}")
    if request.node.callspec.params.get("compute") == "float" and "lora_linear" in TORCH_OPS:
        pytest.skip(f"{level}: lora_linear is torch's own product at every level")
    usable = EXTENSION.module.usable_isas()
    if level not in usable:
        pytest.skip(f"{level}: not usable in this build on this CPU, which has {', '.join(usable)}")
    before = EXTENSION.module.chosen_isa()
    EXTENSION.module.set_isa(level)
    yield level
    EXTENSION.module.set_isa(before)
