"""What is read from a cubin is what the assembler says; the gate's checks catch planted faults."""

import functools

import gate
import pytest

from ftrt.errors import UsageError
from ftrt.kernels.cubin import SHARED_LIMIT_BYTES, read_resources
from ftrt.kernels.cubins import COMPILE_OPTIONS
from ftrt.kernels.kernel import ARCHES

# Each thread keeps kSize floats at addresses known when it is compiled: few stay in registers, many
# are spilled.
SOURCE = """
#include "size.cuh"
extern "C" __global__ void __launch_bounds__(1024) planted(float* y, const float* x, int n) {
  __shared__ float table[64];
  table[threadIdx.x & 63] = x[threadIdx.x];
  __syncthreads();
  float kept[kSize];
#pragma unroll
  for (int i = 0; i < kSize; ++i) kept[i] = x[i * 32 + threadIdx.x];
  for (int j = 0; j < n; ++j) {
#pragma unroll
    for (int i = 0; i < kSize; ++i) kept[i] = kept[i] * kept[(i + 1) % kSize] + table[(i + j) & 63];
  }
#pragma unroll
  for (int i = 0; i < kSize; ++i) y[i * 32 + threadIdx.x] = kept[i];
}
"""
# A block of 1024 leaves 64 registers for a thread.
FEW, MANY = 8, 80
THREADS = 1024


@pytest.fixture(scope="module", params=sorted(gate.nvrtc_libraries()) or [None])
def planted(request):
    """Compiles `SOURCE` with a number of floats, for an architecture."""
    if request.param is None:
        pytest.skip("no NVRTC wheel is installed: pip install 'ftrt[dev]'")
    nvrtc = gate.Nvrtc(gate.nvrtc_libraries()[request.param])

    @functools.cache
    def make(size, arch):
        options = [f"-arch=sm_{arch}", *COMPILE_OPTIONS, *gate.VERBOSE]
        return nvrtc.compile(SOURCE, {"size.cuh": f"constexpr int kSize = {size};"}, options)

    return make


def faults(compiled, arch="80", *, threads=THREADS, dynamic_bytes=0):
    return gate.resource_faults(
        compiled, "planted", arch, threads=threads, dynamic_bytes=dynamic_bytes
    )


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("size", [FEW, MANY])
def test_the_file_says_what_the_assembler_says(planted, size, arch):
    compiled = planted(size, arch)

    assert read_resources(compiled.cubin, "planted") == gate.said_resources(compiled.log)


def test_a_kernel_without_fault_passes(planted):
    assert faults(planted(FEW, "80")) == []


@pytest.mark.parametrize("arch", ["80", "90a", "120"])
def test_a_planted_spill_is_found(planted, arch):
    found = faults(planted(MANY, arch), arch)

    assert "bytes of local memory a thread" in found[0]
    assert any(text.startswith("spills: ") for text in found)


@pytest.mark.parametrize("arch", SHARED_LIMIT_BYTES)
def test_a_byte_of_shared_memory_too_much_is_found(planted, arch):
    compiled, own = planted(FEW, arch), 64 * 4
    limit = SHARED_LIMIT_BYTES[arch]

    assert faults(compiled, arch, dynamic_bytes=limit - own) == []
    assert faults(compiled, arch, dynamic_bytes=limit - own + 1) == [
        f"{limit + 1} bytes of shared memory; sm_{arch} has {limit}"
    ]


def test_more_registers_than_a_block_has_are_found(planted):
    compiled = planted(FEW, "80")
    registers = read_resources(compiled.cubin, "planted").registers

    assert faults(compiled, threads=4096) == [f"{registers} registers for each of 4096 threads"]


def test_planted_opcodes_are_found(planted, tmp_path):
    tool = gate.disassembler()
    if tool is None:
        pytest.skip("no nvdisasm: pip install nvidia-cuda-nvdisasm")

    good = gate.opcodes(planted(FEW, "80").cubin, tool, tmp_path)
    spilling = gate.opcodes(planted(MANY, "80").cubin, tool, tmp_path)

    assert gate.opcode_faults(good, ("LDS", "STS", "BAR")) == []
    assert gate.opcode_faults(good, ("LDS", "IMMA", "LDGSTS")) == ["no IMMA", "no LDGSTS"]
    assert gate.opcode_faults(spilling, ()) == [
        f"{spilling['LDL']} LDL",
        f"{spilling['STL']} STL",
    ]


def test_a_source_that_does_not_compile_says_why(planted):
    with pytest.raises(AssertionError, match=r"size\.cuh\(1\): error: .*nothing"):
        planted("nothing", "80")


@pytest.mark.parametrize(
    "data", [b"", b"\x7fELF\x02", b"\x7fELF\x02" + bytes(200), b"\x7fELF\x01" + bytes(200)]
)
def test_what_is_no_cubin_is_refused(data):
    with pytest.raises(UsageError, match=rf"^cubin: must be a 64-bit ELF .* got {len(data)} bytes"):
        read_resources(data, "planted")


def test_another_kernels_name_is_refused(planted):
    with pytest.raises(UsageError, match="with a kernel 'other'"):
        read_resources(planted(FEW, "80").cubin, "other")
