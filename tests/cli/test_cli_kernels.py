"""`ftrt kernels` and what `ftrt doctor` says of CUDA, on a machine without a GPU."""

import json
import sys
from pathlib import Path

import pytest
import torch

from ftrt.cli import run
from ftrt.cli.cuda_diagnosis import kernel_findings, runtime_findings
from ftrt.errors import UnsupportedError
from ftrt.kernels import catalog
from ftrt.kernels.backend import use_backend
from ftrt.kernels.cubins import find_cubin
from ftrt.kernels.native import native
from ftrt.kernels.nvrtc import open_nvrtc
from ftrt.kernels.runtime import Status

sys.path.insert(0, str(Path(__file__).parents[1] / "csrc" / "cuda"))
from emulated import EmulatedBackend

SMALL = catalog.PACK_FACTOR.variant(FTRT_SOURCE="float32", FTRT_ELEMENT="float16")


@pytest.fixture
def nvrtc():
    """Needs the compiled runtime and NVRTC."""
    try:
        return open_nvrtc()
    except UnsupportedError as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FTRT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("FTRT_KERNEL_BUNDLE", raising=False)
    return tmp_path / "cache" / "kernels"


@pytest.fixture
def answer(capsys):
    """The JSON of a command that succeeds."""

    def ask(*arguments):
        assert run([*arguments, "--json"]) == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return ask


def refused(capsys, *arguments):
    code = run(list(arguments))
    return code, capsys.readouterr().err


def origins(listed, name, arch):
    return {row["origins"][arch] for row in listed["kernels"] if row["name"] == name}


def test_list_has_every_variant_and_the_plugins_kernels(nvrtc, answer):
    listed = answer("kernels", "list", "--arch", "80,sm_90a")

    own = [row["label"] for row in listed["kernels"] if row["distribution"] == "ftrt"]
    assert own == [kernel.label for kernel in catalog.variants()]
    assert listed["arches"] == ["80", "90a"]
    row = next(row for row in listed["kernels"] if row["name"] == "row_divergence")
    assert row["distribution"] == "ftrt-distill" and len(row["source_sha256"]) == 64
    assert origins(listed, "unpack", "90a") == {"compile"}


def test_list_says_where_a_kernel_comes_from(nvrtc, answer, tmp_path, monkeypatch, capsys):
    find_cubin(SMALL, "80")
    bundle = tmp_path / "kernels.cubins"
    build = ("kernels", "build", "--arch", "86", "--kernel", "row_divergence", "--out")
    built = answer(*build, str(bundle))
    monkeypatch.setenv("FTRT_KERNEL_BUNDLE", str(bundle))

    listed = answer("kernels", "list", "--arch", "80,86")

    assert origins(listed, "row_divergence", "80") == {"compile"}
    assert origins(listed, "row_divergence", "86") == {"bundle"}
    by_label = {row["label"]: row["origins"] for row in listed["kernels"]}
    assert by_label[SMALL.label] == {"80": "cache", "86": "compile"}
    (row,) = built["cubins"]
    assert (row["arch"], row["local_bytes"], row["shared_bytes"]) == ("86", 0, 256)
    assert row["shared_limit_bytes"] == 99 * 1024 and 0 < row["registers"] <= 255
    assert run(["kernels", "list", "--arch", "80,86"]) == 0
    out = capsys.readouterr().out.replace("\n", " ")
    assert "sm_80: " in out and "bundle" in out


def test_build_into_a_folder_shows_its_progress_and_a_table(nvrtc, tmp_path, capsys):
    out = tmp_path / "bundle"
    arguments = ["--arch", "80", "--kernel", "row_divergence", "--out", str(out)]

    assert run(["kernels", "build", *arguments]) == 0

    shown, logged = capsys.readouterr()
    assert logged.startswith("1 of 1: row_divergence[")
    assert f"wrote {out}: 1 kernels by NVRTC" in shown
    assert len(list(out.iterdir())) == 1


def test_a_kernel_that_is_not_for_an_architecture_is_not_listed_for_it():
    from dataclasses import replace

    from ftrt.cli.kernel_facts import Collected, list_kernels

    try:
        native()
    except UnsupportedError as error:
        pytest.skip(str(error))
    (row,) = list_kernels([Collected(replace(SMALL, arches=("90a",)), "ftrt")], ("80", "90a"))

    assert row["origins"]["80"] is None and row["origins"]["90a"] is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["list", "--arch", "90"],
            "--arch: must be of 80, 86, 89, 90a, 100, 120; got '90'; did you mean '90a'?",
        ),
        (["build", "--arch", "80,75", "--out", "x"], "--arch: must be of 80, .*; got '75'"),
        (
            ["build", "--kernel", "unpak", "--out", "x"],
            "--kernel: must be one there is; got 'unpak'; did you mean 'unpack'?",
        ),
    ],
)
def test_wrong_words_are_usage_errors(capsys, arguments, message):
    code, err = refused(capsys, "kernels", *arguments)

    assert code == 2
    assert message.partition(".*")[0] in err and message.rpartition(".*")[2] in err


def test_a_bundle_that_cannot_be_written_is_refused_before_compiling(capsys, tmp_path):
    blocker = tmp_path / "file"
    blocker.touch()
    out = blocker / "kernels.cubins"

    code, err = refused(capsys, "kernels", "build", "--out", str(out))

    assert (code, "1 of" in err) == (5, False)
    assert f"--out {out}: must be in a folder that you may write to; got {blocker}" in err


def test_without_nvrtc_build_says_what_is_missing(plugin_folder, tmp_path):
    arguments = ("kernels", "build", "--arch", "80", "--out", str(tmp_path / "b.cubins"))

    result = plugin_folder.ftrt(*arguments, FTRT_NVRTC="/nowhere/libnvrtc.so")
    listed = plugin_folder.ftrt(
        "kernels", "list", "--arch", "80", "--json", FTRT_NVRTC="/nowhere/libnvrtc.so"
    )

    assert result.returncode == 3
    assert "/nowhere/libnvrtc.so" in result.stderr or "ftrt._C must be there" in result.stderr
    assert "Traceback" not in result.stderr
    if listed.returncode == 0:
        found = json.loads(listed.stdout.splitlines()[-1])
        assert origins(found, "unpack", "80") == {"missing"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_bench_without_a_gpu_says_what_is_missing(capsys):
    code, err = refused(capsys, "kernels", "bench")

    assert code == 3
    assert "must be there" in err or "must see a GPU" in err


def test_bench_finds_the_launches_of_a_layer():
    from ftrt.cli.kernel_timing import record_layer

    with use_backend(EmulatedBackend(seed=1)):
        found = record_layer(torch.device("cpu"), rows=40, features=64, rank=8)

    names = {launched.kernel.name for launched in found.values()}
    assert {"quantize_rows", "quantize_project", "w8a8_gemm", "thin_gradient", "unpack"} <= names
    products = [launched for launched in found.values() if launched.kernel.name == "w8a8_gemm"]
    assert {launched.operations for launched in products} == {2 * 40 * 64 * 64}
    assert all(launched.nbytes > 0 for launched in found.values())


def test_the_cache_is_shown_and_cleared_of_what_ftrt_wrote(nvrtc, answer, cache_folder):
    find_cubin(SMALL, "80")
    (entry,) = cache_folder.iterdir()
    (cache_folder / "notes.txt").write_text("mine")
    (cache_folder / f"{entry.name}.lock").touch()
    (cache_folder / f"{entry.name}.12-0.tmp").touch()
    shown = answer("kernels", "cache")
    target = cache_folder.parent / "elsewhere"
    target.write_text("mine")
    link = cache_folder / f"{'0' * 64}-13.0.cubin"
    link.symlink_to(target)

    cleared = answer("kernels", "cache", "--clear")

    assert shown["folder"] == str(cache_folder)
    assert f"{SMALL.label} sm_80" in [one["label"] for one in shown["entries"]]
    assert cleared["removed"] == 3
    assert cleared["kept"] == sorted([link.name, "notes.txt"])
    assert {path.name for path in cache_folder.iterdir()} == {link.name, "notes.txt"}
    assert target.read_text() == "mine"


def test_a_link_in_the_cache_is_listed_with_what_is_wrong(nvrtc, answer, cache_folder):
    find_cubin(SMALL, "80")
    link = cache_folder / f"{'0' * 64}-13.0.cubin"
    link.symlink_to(cache_folder.parent / "elsewhere")

    entries = {one["file"]: one for one in answer("kernels", "cache")["entries"]}

    assert len(entries) == 2 and link.name in entries[link.name]["problem"]


def test_clearing_an_empty_cache_removes_its_folder(nvrtc, answer, cache_folder):
    assert answer("kernels", "cache", "--clear")["removed"] == 0
    find_cubin(SMALL, "80")

    assert answer("kernels", "cache", "--clear")["removed"] == 1
    assert not cache_folder.exists()


@pytest.fixture
def machine(monkeypatch):
    """Makes the doctor see a machine."""

    def make(*, devices=(), missing=(), has_gpu=False):
        facts = Status(None, None, None, (), devices, (), missing)
        monkeypatch.setattr("ftrt.kernels.runtime.status", lambda: facts)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
        monkeypatch.setattr("ftrt.kernels.is_available", lambda device: has_gpu and not missing)
        return {finding.name: finding for finding in (*runtime_findings(), *kernel_findings())}

    return make


def test_the_doctor_does_not_mind_a_machine_without_a_gpu(machine, cache_folder):
    found = machine(missing=("no driver. Install it",))

    assert [finding.name for finding in found.values() if finding.problem] == []
    assert found["ops on CUDA tensors"].value == "none: no driver. Install it"
    assert found["kernel cache"].value == str(cache_folder)
    assert found["kernel row_divergence of ftrt-distill"].value == "not checked: no GPU"


def test_what_a_gpu_lacks_is_a_problem_with_its_fix(machine):
    found = machine(missing=("NVRTC: must load. Install NVRTC",), has_gpu=True)

    assert found["ops on CUDA tensors"].problem == "NVRTC: must load. Install NVRTC"
    assert found["kernel row_divergence of ftrt-distill"].value == "not checked: no GPU"


def test_the_doctor_names_a_kernel_that_is_wrong(machine, monkeypatch):
    def check(kernel):
        if kernel.name == "row_divergence":
            raise AssertionError("tensor 2:\n3 of 9 differ")

    monkeypatch.setattr("ftrt.testing.check_kernel", check)
    found = machine(has_gpu=True)

    wrong = found["kernel row_divergence of ftrt-distill"]
    assert wrong.problem == "must compute what its reference does; tensor 2: 3 of 9 differ"
    assert "FTRT_CUDA=reference" in wrong.fix
    right = found["kernel row_divergence_gradient of ftrt-distill"]
    assert (right.value, right.problem) == ("computes what its reference does", "")
    assert found["ops on CUDA tensors"].value == "kernels"


def test_plugins_info_shows_a_kernel(answer):
    found = answer("plugins", "info", "row_divergence")

    assert found["summary"].startswith("KL(p ‖ q) of each row")
    assert found["file"].endswith("row_divergence.cu")
    assert (found["facts"]["signature"], found["facts"]["threads"]) == ("plplifp", 256)
    assert found["options"] == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_plugins_check_says_that_a_kernel_needs_a_gpu(answer):
    found = answer("plugins", "check", "ftrt_distill.divergence")

    results = {(one["subject"], one["check"]): one for one in found["results"]}
    assert results["kernel row_divergence", "contract"]["ok"] is True
    assert results["kernel row_divergence", "conformance"]["ok"] is None
    assert found["passed"] is True
