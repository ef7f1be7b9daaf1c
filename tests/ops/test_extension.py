"""Which implementation runs, and what is said about it."""

import os
import subprocess
import sys

import pytest
import torch

from ftrt.config import ISAS
from ftrt.ops import implementation_report
from ftrt.ops.extension import EXTENSION, OPS

built = pytest.mark.skipif(EXTENSION.module is None, reason="ftrt._C is not built")

HIDE = """
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "ftrt._C" else find_spec(name, *a)
"""


def python(code, **environment):
    """stdout of `code` in a fresh interpreter; stderr where it fails."""
    env = {k: v for k, v in os.environ.items() if k != "FTRT_CPU_ISA"} | environment
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    return run.stdout if run.returncode == 0 else run.stderr


def test_report_names_an_implementation_for_each_op():
    report = implementation_report()
    for op in OPS:
        assert report[op] in (*ISAS, "reference")
    assert report["lora_linear"] == report["lora_linear_backward"] == "torch"
    assert (report["extension"] is None) == bool(report["reason"]) == bool(report["fix"])


def test_without_the_extension_ops_run_on_the_reference_and_say_so():
    out = python(
        HIDE + "import torch\n"
        "from ftrt.ops import implementation_report, int8_linear\n"
        "x = torch.ones(2, 8).half().requires_grad_()\n"
        "y = int8_linear(x, torch.ones(3, 8, dtype=torch.int8), torch.ones(3, 1))\n"
        "y.sum().backward()\n"
        "print(y.tolist(), x.grad.sum().item())\n"
        "report = implementation_report()\n"
        "print(report['int8_linear'], report['extension'], report['reason'], report['fix'])\n"
    )
    assert "[[8.0, 8.0, 8.0], [8.0, 8.0, 8.0]] 48.0" in out
    assert "reference None ftrt._C is not built for this Python with a C++ compiler" in out
    assert "FTRT_BUILD=1 pip install" in out


def test_an_extension_that_does_not_load_is_reported_with_its_error():
    out = python(
        "import importlib\n"
        "import importlib.util\n"
        "import torch\n"
        "load = importlib.import_module\n"
        "def broken(name, *a):\n"
        "    if name == 'ftrt._C':\n"
        "        raise ImportError('undefined symbol: torch_parallel_for')\n"
        "    return load(name, *a)\n"
        "importlib.util.find_spec = lambda name, *a: True\n"
        "importlib.import_module = broken\n"
        "from ftrt.ops import implementation_report\n"
        "print(implementation_report()['reason'])\n"
    )
    assert "ftrt._C does not load with torch" in out
    assert "undefined symbol: torch_parallel_for" in out


def test_an_extension_of_another_version_is_not_used():
    out = python(
        "import importlib.util, sys, types\n"
        "import torch\n"
        "def other(*arguments):\n"
        "    raise AssertionError('a kernel of another version ran')\n"
        "# What importing the extension does: its kernels are registered.\n"
        "kernels = torch.library.Library('ftrt', 'IMPL')\n"
        "kernels.impl('int8_linear', other, 'CPU')\n"
        "stale = types.ModuleType('ftrt._C')\n"
        "stale.ops = ('int8_linear',)\n"
        "sys.modules['ftrt._C'] = stale\n"
        "importlib.util.find_spec = lambda name, *a: True\n"
        "from ftrt.ops import implementation_report, int8_linear\n"
        "print(implementation_report()['reason'])\n"
        "print(int8_linear(torch.ones(8), torch.ones(3, 8).char(), torch.ones(3, 1)).tolist())\n"
    )
    assert "ftrt._C is of another version of ftrt: it has no int8_linear_dx, int8_lora_lin" in out
    assert "[8.0, 8.0, 8.0]" in out


CUDA_REPORT = (
    "import logging\n"
    "logging.basicConfig(level=logging.INFO)\n"
    "import torch\n"
    "from ftrt.ops import implementation_report as r\n"
    "print(r('cuda'), r('meta')['int8_linear'])\n"
    "print(torch._C._dispatch_has_kernel_for_dispatch_key('ftrt::int8_linear', 'CUDA'))\n"
)


def test_the_report_of_cuda_names_the_kernels_and_what_is_missing():
    report = implementation_report("cuda")
    assert {report[op] for op in OPS} == {"cuda"} and report["lora_linear"] == "torch"
    assert ("FTRT_CUDA=reference" in report["reason"]) != torch.cuda.is_available()
    assert {implementation_report("meta")[op] for op in OPS} == {"reference"}


def test_the_environment_sends_cuda_tensors_to_the_reference():
    out = python(CUDA_REPORT, FTRT_CUDA="reference")
    assert "'int8_linear': 'reference'" in out and "'reason': ''" in out
    assert out.endswith("reference\nFalse\n")
    assert python(CUDA_REPORT).endswith("reference\nTrue\n")


def test_an_unknown_choice_for_cuda_is_an_error():
    out = python("import ftrt.ops", FTRT_CUDA="refrence")
    assert (
        "ConfigError: FTRT_CUDA: must be one of kernels, reference; got 'refrence'; did you mean"
        " 'reference'?"
    ) in out


@built
def test_the_environment_forces_an_instruction_set():
    code = "from ftrt.ops import implementation_report as r; print(r()['int8_linear'])"
    assert python(code, FTRT_CPU_ISA="portable").strip() == "portable"


def test_an_unknown_instruction_set_is_an_error():
    out = python("import ftrt.ops", FTRT_CPU_ISA="avx9")
    levels = "portable, avx2, avx512, avx512_vnni, avx512_bf16, amx"
    assert f"ConfigError: FTRT_CPU_ISA: must be one of {levels}; got 'avx9'" in out


def test_forcing_an_instruction_set_without_the_extension_is_an_error():
    out = python(HIDE + "import ftrt.ops", FTRT_CPU_ISA="avx2")
    assert (
        "ConfigError: FTRT_CPU_ISA: needs the compiled kernels; got 'avx2', and ftrt._C is not"
        " built"
    ) in out


def test_an_instruction_set_the_cpu_lacks_is_an_error():
    out = python(
        "import importlib.util, sys, types\n"
        "import torch\n"
        "def set_isa(name):\n"
        "    raise ValueError(f'must be built and run on this CPU; got {name!r}, built: none')\n"
        "old = types.ModuleType('ftrt._C')\n"
        f"old.ops, old.set_isa = {OPS!r}, set_isa\n"
        "sys.modules['ftrt._C'] = old\n"
        "importlib.util.find_spec = lambda name, *a: True\n"
        "import ftrt.ops\n",
        FTRT_CPU_ISA="avx512",
    )
    assert (
        "ConfigError: FTRT_CPU_ISA: must be built and run on this CPU; got 'avx512', built:"
        " none. Unset it to use the best one"
    ) in out


@built
def test_set_isa_refuses_what_is_not_usable_and_keeps_what_was():
    before = EXTENSION.module.chosen_isa()
    with pytest.raises(ValueError, match="must be built and run on this CPU; got 'mmx', built: "):
        EXTENSION.module.set_isa("mmx")
    assert EXTENSION.module.chosen_isa() == before


@built
def test_the_best_usable_instruction_set_is_the_default():
    code = "from ftrt.ops.extension import EXTENSION as e; print(e.module.chosen_isa())"
    assert python(code).strip() == EXTENSION.module.usable_isas()[-1]
