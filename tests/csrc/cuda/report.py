"""Writes the table of what each kernel takes on each architecture.

    python tests/csrc/cuda/report.py benchmarks/results/DATE-cuda-resources.md

It compiles every kernel for every architecture with each NVRTC wheel that is installed; see
`test_compile_gate.py`, which asserts what the table shows.
"""

import sys
from datetime import date
from pathlib import Path

import gate

from ftrt.kernels.cubin import SHARED_LIMIT_BYTES, read_resources
from ftrt.kernels.kernel import ARCHES
from ftrt.kernels.resources import most_shared_bytes

HEAD = """# CUDA kernels: registers, shared and local memory, {date}

Compiled by {compilers} without a GPU; `python tests/csrc/cuda/report.py` writes this page, and
`tests/csrc/cuda/test_compile_gate.py` asserts that nothing is spilled and that everything fits.

A cell is the registers of a thread{order}; "L8" stands beside 8 bytes
of local memory, which is where registers are spilled to. "Shared" is shared memory of a block,
static and dynamic, at the largest problem, on sm_80 where that depends on the architecture; a block
may have {limits}.

{spills}

"""


def cell(kernel, arch, compilers):
    """Registers by each compiler, and local memory where there is any."""
    if arch not in kernel.arches:
        return "-"
    found = [
        read_resources(compiler.compile_kernel(kernel, arch).cubin, kernel.name)
        for compiler in compilers
    ]
    texts = [f"{r.registers}" + (f" L{r.local_bytes}" if r.local_bytes else "") for r in found]
    return texts[0] if len(set(texts)) == 1 else " / ".join(texts)


def table(kernels, compilers):
    """The rows, one a kernel, and how many cells spill."""
    rows, spilling = [], 0
    for kernel in kernels:
        cells = [cell(kernel, arch, compilers) for arch in ARCHES]
        spilling += sum("L" in text for text in cells)
        first = kernel.arches[0]
        image = compilers[0].compile_kernel(kernel, first).cubin
        shared = read_resources(image, kernel.name).shared_bytes + most_shared_bytes(kernel, first)
        label = kernel.label.replace("FTRT_", "")
        rows.append([f"`{label}`", str(kernel.threads), str(shared), *cells])
    return rows, spilling


def main(out):
    from test_compile_gate import VARIANTS

    libraries = gate.nvrtc_libraries()
    compilers = [gate.Nvrtc(libraries[major]) for major in sorted(libraries)]
    rows, spilling = table(VARIANTS, compilers)
    limits = ", ".join(f"{n // 1024} KiB on sm_{arch}" for arch, n in SHARED_LIMIT_BYTES.items())
    versions = [f"NVRTC {compiler.version}" for compiler in compilers]
    head = HEAD.format(
        date=date.today().isoformat(),
        compilers=" and ".join(versions),
        order=f" by {' / '.join(versions)} where they differ" if len(versions) > 1 else "",
        limits=limits,
        spills=f"Of {len(rows)} kernels on {len(ARCHES)} architectures, {spilling} spill.",
    )
    names = ["kernel", "threads", "shared", *(f"sm_{arch}" for arch in ARCHES)]
    lines = [names, ["---"] * len(names), *rows]
    Path(out).write_text(head + "".join(f"| {' | '.join(line)} |\n" for line in lines))


if __name__ == "__main__":
    main(*sys.argv[1:])
