"""csrc/runtime without Python, under AddressSanitizer and UndefinedBehaviorSanitizer.

The objects stay in build/runtime_tests; only what changed is compiled again.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
BUILD = ROOT / "build" / "runtime_tests"
SANITIZERS = "-fsanitize=address,undefined -fno-sanitize-recover=undefined"


@pytest.fixture(scope="module")
def program():
    compiler = shutil.which("g++") or shutil.which("clang++")
    ninja = shutil.which("ninja") or shutil.which("ninja", path=str(Path(sys.executable).parent))
    if compiler is None or ninja is None:
        pytest.skip("no C++ compiler, or no ninja")
    BUILD.mkdir(parents=True, exist_ok=True)
    sources = [*sorted((ROOT / "csrc" / "runtime").glob("*.cpp")), HERE / "entries.cpp"]
    folders = f"-I{ROOT / 'csrc/include'} -I{ROOT / 'csrc/runtime'}"
    lines = [
        f"flags = -std=c++20 -O1 -g1 -Wall -Wextra -Werror {SANITIZERS} {folders}",
        "rule compile",
        f"  command = {compiler} -MMD -MF $out.d $flags -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {compiler} $in {SANITIZERS} -pthread -ldl -o $out",
        *(f"build {source.stem}.o: compile {source}" for source in sources),
        f"build entries: link {' '.join(f'{source.stem}.o' for source in sources)}",
    ]
    with open(BUILD / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of the workers that tests run in
        (BUILD / "build.ninja").write_text("\n".join(lines) + "\n")
        done = subprocess.run([ninja, "-C", str(BUILD), "-j", "2"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    return BUILD / "entries"


def output(program, *words, given=b""):
    # NVRTC's libraries, and the made-up one, are never closed
    env = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run([program, *words], input=given, capture_output=True, env=env)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def test_hashes_are_those_of_hashlib(program):
    given = bytes(i * 7 % 256 for i in range(300))
    expected = [hashlib.sha256(given[:size]).hexdigest() for size in range(301)]
    assert output(program, "sha256", given=given).split() == expected


def test_every_damage_is_refused_within_the_buffer(program):
    refused, tried = output(program, "damage").split(" of ")
    assert int(refused) == int(tried) > 1000


def test_eight_threads_compile_once(program, fakes, tmp_path):
    assert output(program, "cache", fakes.nvrtc, tmp_path / "cache").split() == ["1", "0"]
