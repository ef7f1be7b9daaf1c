"""Where NVRTC is looked for, and which is taken."""

import sys

import pytest
import torch

from ftrt.kernels.nvrtc import find_nvrtc


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """An environment with the wheels of CUDA 12 and 13, and files that are none of theirs."""
    site = tmp_path / "site"
    for folder, names in (
        ("cu13", ["libnvrtc.so.13", "libnvrtc.alt.so.13", "libnvrtc-builtins.so.13.0"]),
        ("cuda_nvrtc", ["libnvrtc.so.12", "libnvrtc-builtins.so.12.8", "libnvrtc.so.11"]),
    ):
        library = site / "nvidia" / folder / "lib"
        library.mkdir(parents=True)
        for name in names:
            (library / name).touch()
    monkeypatch.setattr(sys, "path", [str(site)])
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "prefix"))
    monkeypatch.setattr(torch, "__file__", str(site / "torch" / "__init__.py"))
    monkeypatch.delenv("FTRT_NVRTC", raising=False)
    return site


def names(paths, site):
    return [path.replace(str(site / "nvidia"), "") for path in paths]


@pytest.mark.parametrize(
    ("cuda", "newest", "found"),
    [
        (None, None, ["/cu13/lib/libnvrtc.so.13", "/cuda_nvrtc/lib/libnvrtc.so.12"]),
        ("12.8", None, ["/cuda_nvrtc/lib/libnvrtc.so.12", "/cu13/lib/libnvrtc.so.13"]),
        ("13.0", 13, ["/cu13/lib/libnvrtc.so.13", "/cuda_nvrtc/lib/libnvrtc.so.12"]),
        (None, 12, ["/cuda_nvrtc/lib/libnvrtc.so.12"]),
    ],
)
def test_that_of_torch_comes_first_and_none_newer_than_the_driver(
    wheels, monkeypatch, cuda, newest, found
):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    system = ["libnvrtc.so.13", "libnvrtc.so.12"]
    system = system[::-1] if cuda == "12.8" else system[1:] if newest == 12 else system
    assert names(find_nvrtc(newest), wheels) == [*found, *system]


def test_the_environment_s_own_lib_folder_is_looked_into(wheels, monkeypatch, tmp_path):
    library = tmp_path / "prefix" / "lib" / "libnvrtc.so.13"
    library.parent.mkdir(parents=True)
    library.touch()
    monkeypatch.setattr(torch.version, "cuda", None)
    assert str(library) in find_nvrtc() and str(library) not in find_nvrtc(12)


def test_a_named_library_is_the_only_one(wheels, monkeypatch):
    monkeypatch.setenv("FTRT_NVRTC", "/opt/libnvrtc.so")
    assert find_nvrtc(12) == ("/opt/libnvrtc.so",)
