"""Every kernel for every architecture, by the NVRTC of CUDA 12 and of CUDA 13, without a GPU.

Compiled kernels have no local memory, fit into a block's registers and shared memory at the largest
problem, and have the instructions they were written for: a tensor-core product that became a loop,
or a copy that became a load and a store, would still compute the right thing.

Each kernel is compiled for each architecture by one of the two, float16 variants by CUDA 12's and
the others by CUDA 13's, so both see all kernels and all architectures; `FTRT_GATE=full` in the
environment has both compile all.
"""

import functools
import os

import gate
import pytest

from ftrt.kernels import catalog
from ftrt.kernels.kernel import ARCHES
from ftrt.kernels.resources import most_shared_bytes
from ftrt.manifest import discover
from ftrt.registry import Registry

MAJORS = (12, 13)
# 86 and 89 have the instructions of 80, 100 those of 90 as far as they are used.
DISASSEMBLED = ("80", "90a", "120")

# What a kernel calls in its own text -> the opcode that must come of it.
OPCODES = {
    "ptx::multiply_int8(": "IMMA",
    "ptx::multiply(": "HMMA",
    "ptx::copy_async_16(": "LDGSTS",
    "ptx::load_matrices(": "LDSM",
    "ptx::load_matrices_transposed(": "LDSM",
}
# What those of that name must not lose; float32 x takes torch's products for the low-rank part.
PROMISED = {
    "w8a8_gemm": {"IMMA", "HMMA", "LDGSTS", "LDSM"},
    "quantize_project": {"HMMA", "LDGSTS"},
    "thin_gradient": {"HMMA"},
}


def plugin_kernels():
    """The kernels of ftrt's own plugins, as they are registered."""
    names = {offer.name for offer in discover().offers if offer.kind == "kernel"}
    registry = Registry()
    return [registry.kernel(name) for name in sorted(names)]


CATALOG = list(catalog.variants())
VARIANTS = [*CATALOG, *plugin_kernels()]


def is_compiled(kernel, arch, major):
    """Whether this one of the two compilers is to compile it."""
    is_half = "float16" in kernel.defines.values()
    wanted = os.environ.get("FTRT_GATE") == "full" or is_half == (major == 12)
    return arch in kernel.arches and wanted


CASES = [
    pytest.param(kernel, arch, major, id=f"{kernel.label}-sm_{arch}-NVRTC {major}")
    for kernel in VARIANTS
    for arch in ARCHES
    for major in MAJORS
    if is_compiled(kernel, arch, major)
]


@functools.cache
def compiler(major):
    libraries = gate.nvrtc_libraries()
    if major not in libraries:
        pytest.skip(f"no NVRTC {major} is installed: pip install 'ftrt[dev]'")
    return gate.Nvrtc(libraries[major])


def wanted_opcodes(kernel):
    """The opcodes that a kernel must have: what its calls stand for, in this variant."""
    if kernel.defines.get("FTRT_ELEMENT") == "float32":
        return wanted_of(kernel) - {"HMMA"}
    return wanted_of(kernel)


def wanted_of(kernel):
    """What the calls in a kernel's source, and in the headers it includes, stand for."""
    text, headers = kernel.source.read_text(), kernel.headers()
    included = [name for name in headers if f'#include "{name}"' in text and name != "ptx.cuh"]
    text += "".join(headers[name] for name in included)
    return {opcode for call, opcode in OPCODES.items() if call in text}


@pytest.mark.parametrize(("kernel", "arch", "major"), CASES)
def test_a_kernel_compiles_within_its_means(kernel, arch, major, tmp_path):
    compiled = compiler(major).compile_kernel(kernel, arch)

    faults = gate.resource_faults(
        compiled,
        kernel.name,
        arch,
        threads=kernel.threads,
        dynamic_bytes=most_shared_bytes(kernel, arch),
    )
    tool, wanted = gate.disassembler(), wanted_opcodes(kernel)
    if tool is not None and wanted and arch in DISASSEMBLED:
        counts = gate.opcodes(compiled.cubin, tool, tmp_path)
        faults += gate.opcode_faults(counts, sorted(wanted))

    assert faults == []


def test_opcodes_are_looked_at():
    if gate.disassembler() is None:
        pytest.skip("no nvdisasm, so no opcode was looked at: pip install 'ftrt[dev]'")


@pytest.mark.parametrize("name", PROMISED)
def test_a_kernel_calls_what_it_was_written_for(name):
    kernels = [kernel for kernel in CATALOG if kernel.name == name]

    assert kernels
    assert [k.label for k in kernels if not PROMISED[name] <= wanted_of(k)] == []


def test_both_compilers_see_every_kernel_and_architecture():
    seen = {(case.values[0].name, case.values[1], case.values[2]) for case in CASES}
    names = {kernel.name for kernel in CATALOG}

    assert {(n, a, m) for n in names for a in ARCHES for m in MAJORS} <= seen


def test_every_source_has_its_variants():
    folder = CATALOG[0].source.parent

    assert {path.stem for path in folder.glob("*.cu")} == {kernel.name for kernel in CATALOG}


def test_labels_are_unique():
    labels = [kernel.label for kernel in VARIANTS]

    assert len(labels) == len(set(labels))
