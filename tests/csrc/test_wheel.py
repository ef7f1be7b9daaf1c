"""What a wheel and a source distribution have of the CUDA kernels, and how large a wheel is."""

import importlib.util
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = {path.name for path in (ROOT / "csrc" / "cuda").glob("*.cu*")}
LIMIT_BYTES = 5 * 10**6


def build(kind, folder, **environment):
    """The distribution that setup.py writes, without the extension, which takes minutes."""
    command = [sys.executable, "setup.py", "-q", "build", "--build-base", str(folder / "build")]
    command += [kind, "--dist-dir", str(folder / "dist")]
    # no compiler and no CUDA on PATH
    env = {**os.environ, "FTRT_BUILD": "0", "PATH": "/nowhere", **environment}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    if done.returncode:
        return done
    (made,) = (folder / "dist").iterdir()
    return made


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A bundle of one made-up cubin."""
    if importlib.util.find_spec("ftrt._C") is None:
        pytest.skip("ftrt._C is not built")
    from ftrt.kernels.native import native

    path = tmp_path_factory.mktemp("bundles") / "bundle"
    entry = {"key": "0" * 64, "label": "k sm_80", "compiler": (13, 0), "image": b"cubin"}
    native().write_bundle(str(path), [entry])
    return path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory, bundle):
    return build("bdist_wheel", tmp_path_factory.mktemp("wheel"), FTRT_BUILD_BUNDLE=str(bundle))


def packed_extension_bytes():
    """What the compiled extension adds to a wheel."""
    spec = importlib.util.find_spec("ftrt._C")
    return 0 if spec is None else len(zlib.compress(Path(spec.origin).read_bytes()))


def test_a_wheel_has_the_sources_and_the_bundle(wheel, bundle):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    prefix = "ftrt/kernels/cuda/"
    assert SOURCES and {n.removeprefix(prefix) for n in names if n.startswith(prefix)} == SOURCES
    assert "ftrt/kernels/bundle.xz" in names
    assert not [n for n in names if n.startswith("csrc/")]


def test_a_wheel_is_small(wheel):
    assert wheel.stat().st_size + packed_extension_bytes() < LIMIT_BYTES


def test_what_is_installed_finds_its_sources_and_its_bundle(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    extension = importlib.util.find_spec("ftrt._C").origin
    shutil.copy(extension, tmp_path / "ftrt")
    code = """
from ftrt.kernels import catalog, cubins
from ftrt.kernels.kernel import source_folder
print(source_folder())
print(*cubins.bundle_paths())
from ftrt.kernels.bundle import list_cubins
print(*(cubin.label for path in cubins.bundle_paths() for cubin in list_cubins(path)))
print(*sorted({len(kernel.source_hash()) for kernel in catalog.variants()}))
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "FTRT_KERNEL_BUNDLE": ""},
        capture_output=True,
        text=True,
    )
    package = tmp_path / "ftrt" / "kernels"
    expected = [f"{package}/cuda", f"{package}/bundle.xz", "k sm_80", "64"]
    assert done.stdout.splitlines() == expected, done.stderr


def test_a_bundle_in_one_file_is_shipped_too(tmp_path):
    file = tmp_path / "all.cubins"
    file.write_bytes(b"entries")
    with zipfile.ZipFile(build("bdist_wheel", tmp_path, FTRT_BUILD_BUNDLE=str(file))) as archive:
        assert lzma.decompress(archive.read("ftrt/kernels/bundle.xz")) == b"entries"


def test_a_bundle_that_is_not_there_is_an_error(tmp_path):
    done = build("bdist_wheel", tmp_path, FTRT_BUILD_BUNDLE="/nowhere")
    assert done.returncode != 0
    assert "FTRT_BUILD_BUNDLE: must be a folder or a file; got '/nowhere'" in done.stderr


def test_a_source_distribution_has_all_that_is_compiled(tmp_path):
    with tarfile.open(build("sdist", tmp_path)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "csrc").rglob("*")
        if path.suffix in (".cu", ".cuh", ".cpp", ".h")
    }
    assert wanted and wanted <= names
