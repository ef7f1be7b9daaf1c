"""What the compiled extension depends on, and how setup.py behaves when it cannot be compiled."""

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ftrt.ops.extension import EXTENSION

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(EXTENSION.module is None, reason="ftrt._C is not built")
@pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")
def test_the_binary_uses_only_the_c_shim_of_torch():
    command = ["nm", "-D", "--undefined-only", EXTENSION.module.__file__]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    symbols = {line.split()[-1].partition("@")[0] for line in output.splitlines()}
    of_torch = {s for s in symbols if re.search(r"torch|c10|N2at|caffe", s)}
    assert {"torch_library_impl", "torch_parallel_for"} <= of_torch
    assert not [s for s in of_torch if not re.fullmatch(r"(aoti_torch|torch)_\w+", s)]


@pytest.mark.skipif(EXTENSION.module is None, reason="ftrt._C is not built")
@pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf is not installed")
def test_the_binary_brings_no_openmp_runtime():
    command = ["readelf", "-d", EXTENSION.module.__file__]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "NEEDED" in output and not re.search(r"lib(gomp|omp|iomp)", output)


@pytest.mark.skipif(EXTENSION.module is None, reason="ftrt._C is not built")
@pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump is not installed")
def test_the_amx_level_is_made_of_tile_instructions():
    if "amx" not in EXTENSION.module.built_isas():
        pytest.skip("built without the level amx")
    command = ["objdump", "-d", "--no-show-raw-insn", EXTENSION.module.__file__]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = set(re.findall(r"\b(ldtilecfg|tileloadd|tdpbssd|tdpbf16ps|tilestored)\b", output))
    assert len(found) == 5


def build(tmp_path, **environment):
    env = {k: v for k, v in os.environ.items() if k not in ("CXX", "FTRT_BUILD")} | environment
    folders = ["--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "temp")]
    command = [sys.executable, "setup.py", "build_ext", *folders]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


def test_without_a_compiler_the_build_succeeds_and_says_why(tmp_path):
    result = build(tmp_path, CXX="no-such-compiler")
    assert result.returncode == 0, result.stderr
    output = result.stdout + result.stderr
    assert "ftrt._C is not built: a C++ compiler (g++ 10 or clang++ 12, or newer) must be" in output
    assert "CXX='no-such-compiler'" in output and "ftrt will run on its reference ops" in output
    assert not list(tmp_path.rglob("*.so"))


def test_a_build_that_must_succeed_fails_without_a_compiler(tmp_path):
    result = build(tmp_path, CXX="no-such-compiler", FTRT_BUILD="1")
    assert result.returncode != 0
    assert "ftrt._C: a C++ compiler" in result.stdout + result.stderr


def test_a_compiler_that_fails_is_reported(tmp_path):
    compiler = tmp_path / "g++"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && echo g++ 12 && exit 0\nexit 3\n')
    compiler.chmod(0o755)
    result = build(tmp_path, CXX=str(compiler))
    assert result.returncode == 0, result.stderr
    assert "ftrt._C is not built: the compiler failed" in result.stdout + result.stderr
    assert build(tmp_path, CXX=str(compiler), FTRT_BUILD="1").returncode != 0


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="levels of x86")
def test_levels_the_compiler_is_too_old_for_are_left_out_with_a_note(tmp_path):
    # knows nothing of AMX, compiles probes, and fails on real sources to spare the time
    compiler = tmp_path / "g++"
    compiler.write_text(
        '#!/bin/sh\ncase "$*" in *--version*) echo g++ 10; exit 0;; *-mamx*) exit 1;; esac\n'
        f'case "$*" in *probe.cpp*) exec {shutil.which("g++")} "$@";; esac\nexit 3\n'
    )
    compiler.chmod(0o755)
    result = build(tmp_path, CXX=str(compiler))
    output = result.stdout + result.stderr
    assert "ftrt._C is built without kernels for amx" in output
    assert "does not compile for amx. A newer compiler does" in output
    ninja = next(tmp_path.rglob("build.ninja")).read_text()
    assert "gemm_avx512_bf16.cpp" in ninja and "-DFTRT_BUILD_AVX512_BF16" in ninja
    assert "gemm_amx.cpp" not in ninja and "-DFTRT_BUILD_AMX" not in ninja


def test_the_extension_can_be_left_out(tmp_path):
    result = build(tmp_path, CXX="no-such-compiler", FTRT_BUILD="0")
    assert result.returncode == 0 and "not built" not in result.stdout + result.stderr


def test_a_misspelt_switch_is_an_error(tmp_path):
    result = build(tmp_path, FTRT_BUILD="yes")
    assert result.returncode != 0
    assert "FTRT_BUILD: must be 0, 1 or unset; got 'yes'" in result.stdout + result.stderr
