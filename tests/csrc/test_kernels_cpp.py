"""The CPU kernels, without torch, under AddressSanitizer and UndefinedBehaviorSanitizer.

`cpp/` is one program, built from csrc/cpu and csrc/include with the flags that setup.py has for
each level. It runs random products and layers, in buffers of exactly their size, against float64;
at the level `amx` on an emulation of the tile instructions, which refuses what they refuse. That
the sanitizer sees what the kernels read and write is tested too: operands a byte short.

The objects stay in build/kernel_tests; only what changed is compiled again.
"""

import fcntl
import importlib.util
import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CPP = Path(__file__).parent / "cpp"
BUILD = ROOT / "build" / "kernel_tests"
LEVELS = ("portable", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")


def load_setup():
    spec = importlib.util.spec_from_file_location("ftrt_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_ninja(setup, compiler, levels):
    macros = [f"-D{level.macro}" for level in levels] + ["-DFTRT_EMULATE_AMX"]
    folders = [f"-I{path}" for path in (ROOT / "csrc/include", ROOT / "csrc/cpu", CPP)]
    common = [flag for flag in setup.FLAGS if flag not in ("-O3", "-fPIC")]
    common += [*SANITIZERS, "-Werror", "-g1", *folders, *macros]
    own_flags = {f"_{level.name}": list(level.flags) for level in setup.X86_LEVELS}
    lines = [
        f"flags = {' '.join(common)}",
        "rule compile",
        f"  command = {compiler} -MMD -MF $out.d $flags $own -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {compiler} $in {SANITIZERS[0]} -pthread -o $out",
    ]
    objects = []
    built = {f"_{level.name}" for level in levels}
    for source in sorted([*(ROOT / "csrc/cpu").glob("*.cpp"), *CPP.glob("*.cpp")]):
        suffix = next((s for s in own_flags if source.stem.endswith(s)), None)
        if suffix is not None and suffix not in built:
            continue
        # the references and the emulation take most of the time
        own = ["-O2"] if source.parent == CPP else ["-O1", *own_flags.get(suffix, [])]
        objects.append(f"{source.stem}.o")
        lines += [f"build {source.stem}.o: compile {source}", f"  own = {' '.join(own)}"]
    lines.append(f"build kernels: link {' '.join(objects)}")
    (BUILD / "build.ninja").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def program():
    """The test program; one worker builds it, the others wait."""
    pytest.importorskip("ninja")
    setup = load_setup()
    try:
        compiler = setup.find_compiler()
    except setup.CannotBuildError as error:
        pytest.skip(str(error))
    BUILD.mkdir(parents=True, exist_ok=True)
    probe = BUILD / "probe.cpp"
    probe.write_text("int main() {}\n")
    command = [*compiler.split(), *SANITIZERS, str(probe), "-o", str(BUILD / "probe")]
    if subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip(f"{compiler} has no sanitizers here")
    with open(BUILD / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        write_ninja(setup, compiler, setup.isa_levels(compiler))
        command = [setup.find_ninja(), "-C", str(BUILD), "-j", "2", "kernels"]
        result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    return BUILD / "kernels"


def run(program, *arguments):
    # fresh memory holds NaN, whatever is read from it
    options = "max_malloc_fill_size=268435456:malloc_fill_byte=255"
    env = os.environ | {"ASAN_OPTIONS": options}
    command = [str(program), *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True)


@pytest.fixture(params=LEVELS)
def level(request, program):
    usable = run(program, "levels").stdout.split()
    if request.param not in usable:
        pytest.skip(f"{request.param} needs a CPU or a compiler that has it; usable: {usable}")
    return request.param


def test_kernels_match_float64_within_their_buffers(program, level):
    result = run(program, level)
    assert result.returncode == 0, result.stdout + result.stderr[:4000]
    checks, failures = re.search(r"(\d+) checks, (\d+) failures", result.stdout).groups()
    assert int(checks) > 100_000 and int(failures) == 0


@pytest.mark.parametrize("operand", ["left", "right", "c"])
def test_the_sanitizer_sees_a_buffer_that_is_a_byte_short(program, level, operand):
    result = run(program, level, operand)
    assert result.returncode != 0
    kind = "WRITE" if operand == "c" else "READ"
    # "unknown-crash": a vector whose first bytes are still inside
    assert re.search("AddressSanitizer: (heap-buffer-overflow|unknown-crash)", result.stderr)
    assert f"{kind} of size" in result.stderr
