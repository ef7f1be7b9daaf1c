"""The real compilers, where they are installed: for any architecture, without a GPU."""

import re
import struct

import pytest

from ftrt.kernels.kernel import ARCHES
from ftrt.kernels.nvrtc import find_nvrtc

SOURCE = """
#include "value.cuh"
extern "C" __global__ void __launch_bounds__(64) twice(float* p, int n) {
  extern __shared__ float shared[];
  shared[threadIdx.x] = p[threadIdx.x];
  p[threadIdx.x] = shared[threadIdx.x] * value() * n + FTRT_ADDED;
}
"""
HEADER = "#pragma once\n__device__ inline float value() { return 2; }\n"
USE = f"""
import os
native.open_compiler([os.environ["NVRTC"]])
def source(text={SOURCE!r}, options=("--std=c++17", "-DFTRT_ADDED=3")):
    return native.Source("twice.cu", text, [("value.cuh", {HEADER!r})], list(options))
"""


@pytest.fixture(params=[12, 13])
def nvrtc(request):
    """Path of an installed libnvrtc of CUDA 12, of CUDA 13."""
    found = [path for path in find_nvrtc() if path.endswith(f"/libnvrtc.so.{request.param}")]
    if not found:
        pytest.skip(f"no NVRTC of CUDA {request.param}: pip install 'ftrt[dev]'")
    return found[0]


def test_it_finds_its_builtins_and_compiles_for_each_architecture(run, nvrtc):
    code = f"result = [native.compile(source(), arch)[0].hex() for arch in {ARCHES!r}]"
    for image in map(bytes.fromhex, run(USE + code, NVRTC=nvrtc)):
        assert image[:4] == b"\x7fELF" and struct.unpack_from("<H", image, 18) == (190,)  # EM_CUDA
        assert b"twice" in image


def test_the_facts_are_the_library_s(run, nvrtc):
    facts = run("import os\nresult = native.open_compiler([os.environ['NVRTC']])", NVRTC=nvrtc)
    assert facts["path"] == nvrtc
    assert facts["version"][0] == int(nvrtc.rpartition(".")[2])
    assert {80, 86, 89, 90, 100, 120} <= set(facts["arches"])


def test_resources_are_logged_on_request(run, nvrtc):
    code = "result = [native.compile(source(), '90a', verbose)[1] for verbose in (False, True)]"
    quiet, verbose = run(USE + code, NVRTC=nvrtc)
    assert quiet == ""
    assert re.search(r"Used \d+ registers", verbose) and "0 bytes spill stores" in verbose


def test_what_does_not_compile_is_told_with_the_log(run, nvrtc):
    code = """
try:
    native.compile(source(options=["--std=c++17"]), "80")
except Exception as error:
    result = [type(error).__name__, str(error)]
"""
    kind, text = run(USE + code, NVRTC=nvrtc)
    assert kind == "UsageError"
    assert re.match(
        r"twice\.cu: must compile with NVRTC 1\d\.\d+, options --gpu-architecture=sm_80"
        r" --std=c\+\+17; got NVRTC_ERROR_COMPILATION:\n",
        text,
    )
    assert 'identifier "FTRT_ADDED" is undefined' in text


def test_an_option_it_does_not_know_is_told(run, nvrtc):
    code = """
try:
    native.compile(source(options=["--no-such-option"]), "80")
except Exception as error:
    result = str(error)
"""
    assert "--no-such-option" in run(USE + code, NVRTC=nvrtc)


def test_sixteen_processes_compile_once(run, nvrtc):
    code = """
import json
def fetch():
    folder = os.environ["FTRT_CACHE_DIR"]
    entry, compiled, _, notes = native.compile_cached(
        source(), "90a", "twice sm_90a", folder, True, 5.0, 60.0)
    return [len(entry["image"]), compiled, notes]
"""
    code = USE.replace("native.open_compiler", "_ = ") + code
    code += """
pipes = []
for _ in range(16):
    reader, writer = os.pipe()
    if os.fork() == 0:
        native.open_compiler([os.environ["NVRTC"]])
        os.write(writer, json.dumps(fetch()).encode())
        os._exit(0)
    os.close(writer)
    pipes.append(reader)
result = [json.loads(open(pipe).read()) for pipe in pipes]
for _ in pipes:
    os.wait()
"""
    answers = run(code, NVRTC=nvrtc)
    assert len(answers) == 16 and len({size for size, *_ in answers}) == 1
    assert sum(compiled for _, compiled, _ in answers) == 1
    assert [notes for *_, notes in answers] == [[]] * 16


def test_what_other_machines_load_is_compiled_by_the_oldest(run):
    majors = {path.rpartition(".")[2] for path in find_nvrtc() if "/" in path}
    if not majors >= {"12", "13"}:
        pytest.skip("NVRTC of CUDA 12 and 13 must be there to choose: pip install 'ftrt[dev]'")
    code = """
from ftrt.kernels.nvrtc import open_nvrtc_for_others
result = open_nvrtc_for_others().version
"""
    assert run(code)[0] == 12
