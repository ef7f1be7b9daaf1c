"""Makes `op_subjects` importable by the tests beside it, and runs tests on each implementation."""

import contextlib
import sys
import warnings
from pathlib import Path

import pytest
import torch

from ftrt.config import ISAS
from ftrt.ops.extension import EXTENSION, TORCH_OPS
from ftrt.ops.registration import REFERENCES

sys.path.insert(0, str(Path(__file__).parent))
from op_subjects import CUDA_PLACE


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


LEVELS = ["cuda"] if CUDA_PLACE else ["reference", *ISAS]


@pytest.fixture(params=LEVELS)
def isa(request):
    """Runs the test on the reference and once at each instruction set; those that cannot run are
    skipped by name."""
    level = request.param
    is_float = request.node.callspec.params.get("compute") == "float"
    if level == "cuda":
        if is_float and CUDA_PLACE == "emulated":
            pytest.skip("lora_linear is torch's own product on every device")
        yield level
        return
    if level == "reference":
        with references():
            yield level
        return
    if EXTENSION.module is None:
        pytest.skip(f"{level}: no compiled kernels, {EXTENSION.reason}")
    if is_float and "lora_linear" in TORCH_OPS:
        pytest.skip(f"{level}: lora_linear is torch's own product at every level")
    usable = EXTENSION.module.usable_isas()
    if level not in usable:
        pytest.skip(f"{level}: not usable in this build on this CPU, which has {', '.join(usable)}")
    before = EXTENSION.module.chosen_isa()
    EXTENSION.module.set_isa(level)
    yield level
    EXTENSION.module.set_isa(before)
