"""A machine without driver, compiler or extension: ftrt is imported and says what is missing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
REFERENCE = "FTRT_CUDA=reference in the environment computes with torch's own ops instead"
BACKEND = """
from ftrt.kernels.backend import current_backend
try:
    current_backend()
except Exception as error:
    result = [type(error).__name__, str(error)]
"""


@pytest.fixture
def without_driver(run):
    """`run`, where the machine has no driver."""
    code = (
        "import ctypes\ntry:\n    ctypes.CDLL('libcuda.so.1')\n    result = 1\nexcept OSError: pass"
    )
    if run(code):
        pytest.skip("this machine has NVIDIA's driver")
    return run


def test_the_backend_names_the_driver_and_two_fixes(without_driver):
    kind, text = without_driver(BACKEND)
    assert kind == "UnsupportedError"
    assert text.startswith("CUDA driver: libcuda.so.1 must be there; got libcuda.so.1: cannot open")
    assert ". Install NVIDIA's driver; in a container, start it with the GPUs" in text
    assert text.endswith(". " + REFERENCE)


def test_status_lists_what_is_missing(without_driver):
    code = """
s = runtime.status()
result = [s.driver, s.driver_version, s.compiler, list(s.candidates), list(s.devices),
          list(s.missing)]
"""
    *facts, missing = without_driver(code, FTRT_NVRTC="/nowhere/libnvrtc.so")
    assert facts == [None, None, None, ["/nowhere/libnvrtc.so"], []]
    assert [text.partition(":")[0] for text in missing] == ["CUDA driver", "NVRTC"]
    assert missing[1].endswith(
        ". Install NVRTC, say `pip install nvidia-cuda-nvrtc-cu12`, or name the library with"
        " FTRT_NVRTC"
    )


def test_status_describes_a_complete_machine(run, fakes):
    code = """
import ctypes, os
ctypes.CDLL(os.environ["DRIVER"])
s = runtime.status()
result = [s.driver, s.driver_version, s.compiler.path, s.compiler.version, s.compiler.arches,
          [[d.name, d.arch] for d in s.devices], list(s.missing)]
"""
    environment = {"DRIVER": fakes.driver, "FTRT_NVRTC": fakes.nvrtc}
    facts = run(code, FAKE_DEVICES="90,86", **environment)
    assert facts == [
        *(fakes.driver, [12, 8], fakes.nvrtc, [12, 8], [80, 86, 89, 90, 100, 120]),
        *([["Fake 0", [9, 0]], ["Fake 1", [8, 6]]], []),
    ]
    *_, devices, missing = run(code, FAKE_DEVICES="75", **environment)
    assert devices == [["Fake 0", [7, 5]]]
    assert missing == [
        f"Fake 0: the GPU must have compute capability 8.0 or newer; got 7.5. {REFERENCE}"
    ]


def test_a_library_that_is_no_driver_is_told(run, fakes, tmp_path):
    source = tmp_path / "old.c"
    source.write_text("int cuInit(unsigned flags) { return (int)flags; }\n")
    library = tmp_path / "libcuda.so.1"
    command = ["cc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", source, "-o", library]
    subprocess.run(command, check=True)
    kind, text = run(f"import ctypes\nctypes.CDLL({str(library)!r}){BACKEND}")
    assert kind == "UnsupportedError"
    assert text.startswith(
        "CUDA driver: libcuda.so.1 must have the functions of CUDA 12; got none of"
        " cuDriverGetVersion, cuGetErrorName, "
    )
    assert ". Install a driver of series 525 or newer. " in text


def test_a_library_that_is_no_nvrtc_is_told(run, fakes):
    code = """
try:
    native.open_compiler(["/nowhere.so", os.environ["OTHER"]])
except Exception as error:
    result = [type(error).__name__, str(error)]
"""
    kind, text = run("import os" + code, OTHER=fakes.disaster)
    assert kind == "UnsupportedError"
    assert text.startswith("NVRTC: libnvrtc must load; got /nowhere.so: cannot open shared object")
    assert text.endswith(f"; {fakes.disaster}: is no NVRTC of CUDA 12 or newer")


@pytest.mark.parametrize(
    ("stand_in", "reason"),
    [
        ("find_spec = lambda name: None", "got it is not built for this Python"),
        ("sys.modules['ftrt._C'] = None", "got it does not load with torch"),
        (
            "sys.modules['ftrt._C'] = types.ModuleType('ftrt._C')",
            "got it is of another version of ftrt, without a CUDA runtime",
        ),
    ],
)
def test_without_the_extension_everything_is_imported_and_says_so(stand_in, reason):
    code = f"""
import importlib.util, sys, types
import torch
real = importlib.util.find_spec
find_spec = lambda name: True
{stand_in}
importlib.util.find_spec = lambda name, *a: find_spec(name) if name == "ftrt._C" else real(name, *a)
import ftrt, ftrt.kernels.runtime, ftrt.kernels.bundle
from ftrt.kernels.backend import current_backend
print(ftrt.kernels.runtime.status().missing[0])
try:
    current_backend()
except ftrt.errors.UnsupportedError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stderr
    for line in lines:
        assert line.startswith("CUDA kernels: ftrt._C must be there; ") and reason in line
        assert "FTRT_BUILD=1 pip install" in line and line.endswith(REFERENCE)


def test_a_build_of_torch_for_rocm_is_told(run, fakes):
    code = """
import ctypes, os, torch
ctypes.CDLL(os.environ["DRIVER"])
torch.version.hip = "6.4.43482"
from ftrt.kernels.availability import is_available
""" + BACKEND.replace(
        "[type", "[is_available(torch.device('cuda', 0)), runtime.status().missing, type"
    )
    environment = {"DRIVER": fakes.driver, "FTRT_NVRTC": fakes.nvrtc, "FAKE_DEVICES": "90"}
    available, missing, kind, text = run(code, **environment)
    assert not available and kind == "UnsupportedError" and missing == [text]
    assert text == (
        "CUDA kernels: torch must be a build for NVIDIA's GPUs; got one for ROCm 6.4.43482, whose"
        f' GPUs are "cuda" to torch too. {REFERENCE}'
    )
