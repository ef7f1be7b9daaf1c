"""Rules about the C++ sources that a grep can check."""

import re
from pathlib import Path

CSRC = Path(__file__).parents[2] / "csrc"
SOURCES = sorted(path for path in CSRC.rglob("*") if path.suffix in (".h", ".cpp", ".cu", ".cuh"))
INCLUDE = re.compile(r'^\s*#\s*include\s+[<"]([^>"]+)[>"]', re.MULTILINE)


def includes(path):
    return INCLUDE.findall(path.read_text())


def test_there_are_sources():
    assert len(SOURCES) > 8


def test_no_torch_or_python_header_stands_outside_bindings():
    for path in SOURCES:
        if "bindings" not in path.relative_to(CSRC).parts:
            bad = [
                h for h in includes(path) if re.match(r"(torch|ATen|c10|pybind11)/|Python\.h", h)
            ]
            assert not bad, f"{path}: {bad}"


def test_bindings_use_only_the_stable_abi():
    for path in (CSRC / "bindings").iterdir():
        for header in includes(path):
            if header.startswith(("torch/", "ATen/", "c10/")):
                assert header.startswith(("torch/csrc/stable/", "torch/headeronly/")), path


def test_what_every_instruction_set_includes_has_no_standard_library_code():
    allowed = {"cstdint", "cstring"}
    for name in ("int8_gemm.h", "int8_gemm_kernel.h", "int8_pack.h"):
        system = {h for h in includes(CSRC / "cpu" / name) if "/" not in h and "." not in h}
        assert system <= allowed, name


def test_sources_are_short_and_narrow():
    for path in SOURCES:
        lines = path.read_text().splitlines()
        assert len(lines) <= 300, path
        assert not [n for n, line in enumerate(lines, 1) if len(line) > 100], path
