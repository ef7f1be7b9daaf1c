"""Rules about the C++ sources that a grep can check."""

import re
from pathlib import Path

CSRC = Path(__file__).parents[2] / "csrc"
TESTS = Path(__file__).parent / "cpp"
SUFFIXES = (".h", ".cpp", ".cu", ".cuh")
SOURCES = sorted(path for path in CSRC.rglob("*") if path.suffix in SUFFIXES)
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


def headers_of_levels():
    """Headers of csrc/cpu that the units of several instruction sets include, directly or not."""
    found, waiting = set(), [p for p in (CSRC / "cpu").glob("gemm_*.cpp") if "driver" not in p.name]
    while waiting:
        for name in includes(waiting.pop()):
            header = CSRC / "cpu" / name
            if header.exists() and header not in found:
                found.add(header)
                waiting.append(header)
    return sorted(found)


def test_what_every_instruction_set_includes_has_no_standard_library_code():
    headers = headers_of_levels()
    assert {"gemm.h", "gemm_tile.h", "gemm_pack.h", "lanes.h"} <= {path.name for path in headers}
    for path in headers:
        system = {h for h in includes(path) if "/" not in h and "." not in h}
        assert system <= {"cstdint", "cstring"}, path


def test_each_level_has_kernels_and_only_tests_emulate_tiles():
    setup = (CSRC.parent / "setup.py").read_text()
    levels = re.findall(r'IsaLevel\("(\w+)"', setup)
    kernels = {p.stem.removeprefix("gemm_") for p in (CSRC / "cpu").glob("gemm_*.cpp")}
    assert kernels == {"portable", "driver", *levels} and len(levels) == 5
    assert "FTRT_EMULATE_AMX" not in setup


def test_sources_are_short_and_narrow():
    for path in (*SOURCES, *TESTS.iterdir()):
        lines = path.read_text().splitlines()
        assert len(lines) <= 300, path
        assert not [n for n, line in enumerate(lines, 1) if len(line) > 100], path
