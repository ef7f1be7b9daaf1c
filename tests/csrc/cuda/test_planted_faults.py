"""Every barrier and every wait of the kernels is needed: without it the emulation reports a fault.

So no kernel waits without reason, and the emulation sees what is missing in real kernels too.
"""

import re
from dataclasses import replace

import emulated
import pytest
import torch
from emulated import EmulatedBackend, EmulationError
from rows import random_rows, unaligned
from test_quantize_project import run as quantize_project
from test_quantize_rows import run as quantize_rows
from test_thin_gradient import Sum
from test_unpack import run as unpack

from ftrt.kernels.backend import launch, use_backend
from ftrt.kernels.gemm import FORWARD, TILES, w8a8_gemm
from ftrt.ops import pack_int8

STATEMENT = re.compile(r"ptx::(barrier|warp_barrier|wait_copies<[^>]*>)\(\);")
FAULT = "race in shared memory|was never written|is on its way"


def run_product():
    """W8A8 on 70 rows, 140 columns and 6 stages of depth, with neither bias nor low-rank part."""
    rows, columns, depth = 70, 140, 330
    tile = TILES[-1]
    a = torch.ones(rows, 336, dtype=torch.int8)
    packed = pack_int8(torch.ones(columns, depth, dtype=torch.int8))
    y = torch.full((rows, columns), torch.nan)
    with use_backend(EmulatedBackend()):
        launch(
            w8a8_gemm("float32", FORWARD, tile),
            *(tile.grid(rows, columns), tile.shared_bytes),
            *(a, a.stride(0), packed, packed.shape[1], rows, columns, depth),
            *(torch.ones(rows), None, None, None, 0, None, 0, 0, 0, None, 0, 1.0, y, columns),
        )
    assert (y == depth).all()


def run_quantize_rows():
    """Rows that a warp has, with outliers far apart, and RMSNorm of rows that a block has."""
    quantize_rows(random_rows(5, 700, "float32"), outliers=torch.tensor([3, 400, 600]))
    long = random_rows(2, 1300, "float32")
    quantize_rows(long, front="rms_norm", weight=torch.ones(1300))


def run_quantize_project():
    """Rows that come by asynchronous copies and rows that do not, ranks for two slabs."""
    x, a = random_rows(17, 1112, "bfloat16"), random_rows(72, 1112, "bfloat16", seed=1)
    quantize_project(x, a, outliers=torch.tensor([3, 40]), cached=256)
    quantize_project(unaligned(x), a)


def run_thin_gradient():
    """Several tiles of rows, ranks for two slabs."""
    Sum(300, 150, 72, "int8", "bfloat16").run(rows_per_split=300)


def run_unpack():
    weight = torch.ones(70, 150, dtype=torch.int8)
    unpack(weight, None, "int8", transpose=False)


RUNS = {
    "quantize_project.cu": run_quantize_project,
    "quantize_rows.cu": run_quantize_rows,
    "row_scale.cuh": run_quantize_rows,
    "thin_gradient.cu": run_thin_gradient,
    "unpack.cu": run_unpack,
    "w8a8_gemm.cu": run_product,
}


def statements():
    """File, number in it, and line of each barrier and wait."""
    for path in sorted(emulated.CUDA.iterdir()):
        if path.suffix in (".cu", ".cuh") and path.name != "ptx.cuh":
            text = path.read_text()
            for number, match in enumerate(STATEMENT.finditer(text)):
                yield path.name, number, text.count("\n", 0, match.start()) + 1


def without(text, number):
    begin, end = list(STATEMENT.finditer(text))[number].span()
    return f"{text[:begin]};{text[end:]}"


def test_each_file_that_waits_is_run():
    assert {file for file, _, _ in statements()} == set(RUNS)


@pytest.mark.parametrize("run", sorted(set(RUNS.values()), key=lambda run: run.__name__))
def test_the_kernels_as_they_are_have_no_fault(run):
    run()


@pytest.mark.parametrize(("file", "number", "line"), list(statements()))
def test_nothing_that_waits_can_be_left_out(monkeypatch, tmp_path, file, number, line):
    intact = EmulatedBackend.launch

    def launch_mutated(self, kernel, *rest):
        for path in (*kernel.source.parent.glob("*.cuh"), kernel.source):
            text = path.read_text()
            copy = without(text, number) if path.name == file else text
            (tmp_path / path.name).write_text(copy)
        intact(self, replace(kernel, source=tmp_path / kernel.source.name), *rest)

    monkeypatch.setattr(EmulatedBackend, "launch", launch_mutated)
    with pytest.raises(EmulationError, match=FAULT):
        RUNS[file]()
