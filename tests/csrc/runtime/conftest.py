"""A made-up driver and a made-up NVRTC, and processes that use them."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
# variables that change what the runtime does
OURS = ("FTRT_", "FAKE_", "LOCAL_RANK", "XDG_CACHE_HOME", "CUDA_VISIBLE_DEVICES")


@dataclass(frozen=True)
class Fakes:
    """Paths of the libraries."""

    driver: str
    nvrtc: str
    disaster: str


@pytest.fixture(scope="session")
def fakes(tmp_path_factory):
    compiler = shutil.which("gcc") or shutil.which("cc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("fakes")
    paths = {}
    for name, soname in (("driver", "libcuda.so.1"), ("nvrtc", "libnvrtc.so.12"), ("disaster", "")):
        paths[name] = str(folder / (soname or f"{name}.so"))
        command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
        command += [f"-Wl,-soname,{soname}"] if soname else []
        subprocess.run([*command, str(HERE / f"{name}.c"), "-o", paths[name], "-ldl"], check=True)
    return Fakes(**paths)


def clean_environment():
    return {k: v for k, v in os.environ.items() if not k.startswith(OURS)}


class Zygote:
    """See zygote.py."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "zygote.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**clean_environment(), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )

    def ask(self, code, environment):
        print(json.dumps({"code": code, "environment": environment}), file=self._process.stdin)
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self):
        self._process.stdin.close()
        self._process.wait()


@pytest.fixture(scope="session")
def zygote():
    if importlib.util.find_spec("ftrt._C") is None:
        pytest.skip("ftrt._C is not built")
    made = Zygote()
    yield made
    made.close()


@pytest.fixture
def run(zygote, tmp_path):
    """Runs code in a fresh process and returns its `result`; the cache is a folder of the test."""

    def run_code(code, **environment):
        answer = zygote.ask(code, {"FTRT_CACHE_DIR": str(tmp_path / "cache"), **environment})
        assert answer["status"] == 0, answer["output"]
        return answer["result"]

    return run_code


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"mounting is not allowed here: {made.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)
