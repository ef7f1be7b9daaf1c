"""Kernels of plugins: found by name, held to their contract, compiled from their package alone."""

import pytest

from ftrt.errors import PluginError
from ftrt.kernels import Kernel
from ftrt.plugin_kernels import kernel_fault
from ftrt.registry import Registry

MODULE = """
    from pathlib import Path
    import ftrt
    from ftrt.kernels import Kernel, Launch, Signature

    ftrt_hookspec = 1

    def reference(x, count):
        x.mul_(2)

    def example(device):
        import torch
        return Launch((1, 1, 1), 0, (torch.ones(3, device=device), 3))

    @ftrt.hookimpl
    def register_kernels():
        source = {source}
        return [Kernel("twice", source, Signature("pi"), 32, reference=reference, example=example)]
"""
SOURCE = 'extern "C" __global__ void __launch_bounds__(32) twice(float* x, int count) {}\n'
BESIDE = 'Path(__file__).with_name("twice.cu")'


@pytest.fixture
def package(plugin_folder):
    """Installs the package `zz_kernels`, whose kernel's source is the given expression's."""

    def install(source=BESIDE, module="zz_kernels.offered", text=MODULE):
        plugin_folder.add(
            "zz-kernels", {"kernel.twice": module}, {module: text.format(source=source)}
        )
        folder = plugin_folder.path / "zz_kernels"
        if folder.is_dir():
            (folder / "twice.cu").write_text(SOURCE)
        return folder

    return install


def test_a_kernel_is_found_by_name(package):
    folder = package()

    kernel = Registry().kernel("twice")

    assert (kernel.name, kernel.source) == ("twice", folder / "twice.cu")
    assert kernel.headers() == {}


def test_a_kernel_has_the_headers_it_includes_and_no_others(package):
    folder = package()
    (folder / "own.cuh").write_text('#include "ptx.cuh"\n')
    (folder / "unused.cuh").write_text("")
    (folder / "twice.cu").write_text(f'#include "own.cuh"\n#include "not_there.cuh"\n{SOURCE}')

    assert set(Registry().kernel("twice").headers()) == {"own.cuh", "ptx.cuh", "types.cuh"}


def test_a_source_in_a_model_folder_is_refused(package, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "twice.cu").write_text(SOURCE)
    folder = package(f"Path({str(model / 'twice.cu')!r})")

    with pytest.raises(PluginError) as caught:
        Registry().kernel("twice")

    assert str(caught.value) == (
        "plugin zz-kernels 1.0 (zz_kernels.offered): register_kernels(): kernel 'twice' must have"
        f" its source in the package that registers it, {folder.resolve()}; got"
        f" {(model / 'twice.cu').resolve()}; nothing else is compiled"
    )


@pytest.mark.parametrize("name", ["twice.cu", "extra.cuh"])
def test_a_link_out_of_the_package_is_refused(package, tmp_path, name):
    elsewhere = tmp_path / name
    elsewhere.write_text(SOURCE)
    folder = package()
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(elsewhere)

    with pytest.raises(PluginError, match=f"got {elsewhere.resolve()}; nothing else is compiled"):
        Registry().kernel("twice")


def test_a_path_that_climbs_out_of_the_package_is_refused(package, plugin_folder):
    package('Path(__file__).parent / "../twice.cu"')
    (plugin_folder.path / "twice.cu").write_text(SOURCE)

    with pytest.raises(PluginError, match="nothing else is compiled"):
        Registry().kernel("twice")


def test_a_module_without_a_package_is_refused(package):
    package(module="zz_lone")

    with pytest.raises(
        PluginError, match="must be registered by a module of a package.*; got zz_lone$"
    ):
        Registry().kernel("twice")


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        ("[Kernel]", "must return ftrt.kernels.Kernel objects; got the class Kernel"),
        ("['twice']", "must return ftrt.kernels.Kernel objects; got 'twice'"),
        ("None", "must return a list of kernels; got None"),
        ("[].nothing", "must return a list of kernels; it raised AttributeError"),
    ],
)
def test_what_is_no_kernel_is_refused(package, returned, says):
    package(text=MODULE.replace("source = {source}", f"return {returned}"))

    with pytest.raises(PluginError) as caught:
        Registry().kernel("twice")

    assert f"register_kernels() {says}" in str(caught.value)


def made(tmp_path, **changes):
    source = tmp_path / "k.cu"
    source.touch()
    fields = {
        "name": "k",
        "source": source,
        "signature": None,
        "threads": 32,
        "reference": print,
        "example": print,
    }
    return Kernel(**{**fields, **changes})


def test_a_whole_kernel_has_no_fault(tmp_path):
    assert kernel_fault(made(tmp_path)) is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"threads": 48}, "must have whole warps of threads, 32 to 1024; got 48"),
        ({"threads": 2048}, "must have whole warps of threads, 32 to 1024; got 2048"),
        ({"arches": ()}, "must have arches among 80, 86, 89, 90a, 100, 120; got none"),
        ({"arches": ("90",)}, "must have arches among 80, 86, 89, 90a, 100, 120; got 90"),
        ({"reference": None}, "must have a callable reference; got None"),
        ({"example": None}, "must have a callable example; got None"),
    ],
)
def test_a_fault_of_a_kernel_is_named(tmp_path, changes, says):
    assert kernel_fault(made(tmp_path, **changes)) == says


@pytest.mark.parametrize("name", ["gone.cu", "notes.txt"])
def test_a_source_must_be_a_file_of_cuda(tmp_path, name):
    (tmp_path / "notes.txt").touch()
    source = tmp_path / name

    assert kernel_fault(made(tmp_path, source=source)) == (
        f"must have a `.cu` file as source; got {source}"
    )


def test_a_kernels_fault_names_its_plugin(package):
    package(text=MODULE.replace("example=example", "example=None"))

    with pytest.raises(PluginError) as caught:
        Registry().kernel("twice")

    assert str(caught.value) == (
        "kernel 'twice' of zz-kernels 1.0 (zz_kernels.offered): it must have a callable example;"
        " got None"
    )
