"""How the emulation compiles and launches."""

import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import emulated
import pytest
import torch
from emulated import EmulatedBackend, EmulationError
from tiny_kernels import TinyKernels

from ftrt.errors import UsageError
from ftrt.kernels.backend import Backend, launch, use_backend
from ftrt.kernels.kernel import Kernel
from ftrt.kernels.signature import Signature

ADD_ONE = """
#include "ptx.cuh"
#include "amount.cuh"
extern "C" __global__ void __launch_bounds__(32)
add_one(const float* x, float* y, int count, unsigned zero, long long zeros, float amount) {
  const unsigned i = ftrt::ptx::block_index_x() * 32 + ftrt::ptx::thread_index();
  ftrt::ptx::barrier();
  if (i < static_cast<unsigned>(count)) y[i] = x[i] + amount + zero + zeros + FTRT_MORE + kAmount;
}
"""


@pytest.fixture
def add_one(tmp_path):
    (tmp_path / "amount.cuh").write_text("#pragma once\nconstexpr float kAmount = 0.25f;\n")
    source = tmp_path / "add_one.cu"
    source.write_text(ADD_ONE)
    return Kernel("add_one", source, Signature("pp iulf"), 32, {"FTRT_MORE": "0.5f"})


def run(kernel, x, y, *, grid=(3, 1, 1), shared_bytes=0, backend=None):
    with use_backend(backend or EmulatedBackend()):
        launch(kernel, grid, shared_bytes, x, y, x.numel(), 0, 0, 1.0)


def test_parameters_headers_and_macros_reach_the_kernel(add_one):
    x, y = torch.randn(70), torch.full((70,), torch.nan)
    run(add_one, x, y)
    assert torch.equal(y, x + 1 + 0.5 + 0.25)
    run(add_one.variant(FTRT_MORE="2.0f"), x, y)
    assert torch.equal(y, x + 1 + 2 + 0.25)


def test_the_machine_is_what_the_constructor_says():
    backend: Backend = EmulatedBackend(arch=(9, 0), multiprocessors=132, shared_limit=232448)
    device = torch.device("cpu")
    assert backend.arch(device) == (9, 0)
    assert backend.multiprocessors(device) == 132
    assert backend.shared_limit(device) == 232448


def test_the_architecture_reaches_the_kernel(add_one):
    x, y = torch.zeros(70), torch.zeros(70)
    kernel = add_one.variant(FTRT_MORE="__CUDA_ARCH__")
    run(kernel, x, y)
    assert y[0] == 801.25
    run(kernel, x, y, backend=EmulatedBackend(arch=(12, 0)))
    assert y[0] == 1201.25


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"shared_bytes": 166913},
            r"add_one\[FTRT_MORE=0.5f\]: a block has at most 166912 bytes of shared memory; got"
            " 166913",
        ),
        ({"grid": (1, 65536, 1)}, r"a grid is at most \(2147483647, 65535, 65535\); got"),
    ],
)
def test_a_launch_that_no_gpu_takes_is_refused(add_one, changes, message):
    x = torch.zeros(70)
    with pytest.raises(EmulationError, match=message):
        run(add_one, x, x.clone(), **changes)


@pytest.mark.parametrize("threads", [0, 48, 1056])
def test_a_block_is_whole_warps(add_one, threads):
    x = torch.zeros(70)
    message = f"a block must have 32 to 1024 threads, in warps of 32; got {threads}"
    with pytest.raises(EmulationError, match=message):
        run(replace(add_one, threads=threads), x, x.clone())


def test_a_signature_that_is_not_the_kernels_is_refused(add_one):
    kernel = replace(add_one, signature=Signature("ppiilf"))
    with pytest.raises(UsageError, match="must say what the kernel takes, 'ppiulf'; got 'ppiilf'"):
        run(kernel, torch.zeros(70), torch.zeros(70))


def test_tensors_elsewhere_are_refused(add_one):
    with pytest.raises(UsageError, match=r"takes CPU tensors; got \['meta'\]"):
        run(add_one, torch.zeros(70, device="meta"), torch.zeros(70))


def test_what_the_compiler_refuses_is_shown(add_one):
    add_one.source.write_text(ADD_ONE.replace("zeros +", "threadIdx.x +"))
    with pytest.raises(
        EmulationError, match=r"add_one\[.*\]: .*\n(.*\n)*.*add_one\.cu:8:.*threadIdx"
    ):
        run(add_one, torch.zeros(70), torch.zeros(70))


def test_more_local_memory_than_a_fibre_has_is_refused(tmp_path):
    body = {"large": "float a[100000]; for (float& v : a) v = x[i]; y[i] = a[lane];"}
    kernels = TinyKernels(tmp_path, body)
    with pytest.raises(EmulationError, match="the frame size of 400... bytes is larger than"):
        kernels.run("large", torch.zeros(64), torch.zeros(64))


def test_what_has_no_value_is_not_zero(tmp_path):
    kernels = TinyKernels(
        tmp_path, {"none": "float v[9]; if (x[i] != 0.0f) v[i % 9] = 1.0f;y[i] = v[i % 9];"}
    )
    y = torch.zeros(64)
    kernels.run("none", torch.tensor([1.0, 0.0]).repeat(32), y)
    assert (y[::2] == 1).all() and (y[1::2] < -1e38).all()


def test_a_missing_compiler_is_named(add_one, monkeypatch):
    monkeypatch.setattr(emulated, "_COMPILER", "no-such-compiler")
    kernel = add_one.variant(FTRT_MORE="3.0f")
    with pytest.raises(
        EmulationError, match=r"add_one\[.*\]: the emulation needs no-such-compiler: "
    ):
        run(kernel, torch.zeros(70), torch.zeros(70))


def test_an_address_may_point_outside_of_the_tensors(add_one):
    x, y = torch.zeros(70), torch.zeros(70)
    with use_backend(EmulatedBackend()):
        launch(add_one, (3, 1, 1), 0, x, y.data_ptr(), 70, 0, 0, 1.0)
    assert (y == 1.75).all()


def test_processes_that_start_together_compile_once(add_one, tmp_path):
    """In a folder of their own, and with the context switch of other machines than x86-64."""
    folder = Path(emulated.__file__).parent
    program = f"""
import sys
sys.path.insert(0, {str(folder)!r})
from pathlib import Path
import emulated
emulated.BUILD = Path({str(tmp_path / "build")!r})
from ftrt.kernels.kernel import Kernel
from ftrt.kernels.signature import Signature
kernel = Kernel("add_one", Path({str(add_one.source)!r}), Signature("ppiulf"), 32,
                {{"FTRT_MORE": "0.5f"}})
emulated._RUNTIME_FLAGS = (*emulated._RUNTIME_FLAGS, "-DEMULATION_UCONTEXT")
built = emulated._run_compiler
emulated._run_compiler = lambda *args: print("compiles") or built(*args)
import torch
from ftrt.kernels.backend import launch, use_backend
x, y = torch.zeros(70), torch.zeros(70)
with use_backend(emulated.EmulatedBackend()):
    launch(kernel, (3, 1, 1), 0, x, y, 70, 0, 0, 1.0)
assert (y == 1.75).all()
"""
    command = [sys.executable, "-c", program]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert "".join(printed).count("compiles") == 4, "and links, the emulation and the kernel"


EXCHANGES = """
float v = x[i];
for (int k = 0; k < 1250; ++k) v += ptx::exchange(v, k % 32);
y[i] = v;
"""


def test_ten_thousand_operations_of_warps_take_well_under_a_second(tmp_path):
    kernels = TinyKernels(tmp_path, {"many": EXCHANGES}, threads=256)
    x, y = torch.zeros(256), torch.zeros(256)
    kernels.run("many", x, y)
    before, start = emulated.context_switches(), time.process_time()
    kernels.run("many", x, y)
    assert emulated.context_switches() - before > 300_000
    assert time.process_time() - start < 0.5


def test_the_emulation_has_all_that_ptx_has_and_no_more():
    function = re.compile(r"^(?:__device__ )?inline [\w:]+ (\w+)\(", re.MULTILINE)
    real, emulation = (
        set(function.findall((folder / "ptx.cuh").read_text()))
        for folder in (emulated.CUDA, emulated.EMULATION)
    )
    assert len(real) > 30 and emulation == real
