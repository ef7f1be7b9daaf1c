"""Cubins on disk: one process compiles, and nothing that is not an entry is taken for one."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

# fetch() is one process's way to a cubin: (image, whether it compiled, notes)
FETCH = """
import os
native.open_compiler([os.environ["NVRTC"]])
def fetch(text="text", arch="80", is_leader=True, leader=5.0, lock=60.0, options=(), headers=()):
    source = native.Source("k.cu", text, list(headers), list(options))
    folder = os.environ["FTRT_CACHE_DIR"]
    entry, compiled, log, notes = native.compile_cached(
        source, arch, "k sm_" + arch, folder, is_leader, leader, lock)
    assert entry["key"] == native.source_key(source, arch)
    return entry["image"].decode(), compiled, notes
"""
FORKS = """
import json
def fork_all(count, work):
    ready, go = os.pipe()
    pipes = []
    for number in range(count):
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.close(go)
            os.read(ready, 1)  # until the parent closes its end
            os.write(writer, json.dumps(work(number)).encode())
            os._exit(0)
        os.close(writer)
        pipes.append(reader)
    os.close(go)
    answers = [json.loads(open(pipe).read()) for pipe in pipes]
    for _ in pipes:
        os.wait()
    return answers
"""


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def compilations(tmp_path):
    """Lines that the made-up NVRTC has written: (process, option)."""

    def read():
        log = tmp_path / "compilations"
        return [line.split() for line in log.read_text().splitlines()] if log.exists() else []

    return read


@pytest.fixture
def fetch(run, fakes, tmp_path):
    def fetch_in_a_process(code="result = fetch()", **environment):
        environment = {"FAKE_NVRTC_LOG": str(tmp_path / "compilations"), **environment}
        return run(FETCH + code, NVRTC=fakes.nvrtc, **environment)

    return fetch_in_a_process


def entries(cache):
    return sorted(cache.glob("*.cubin"))


def test_the_second_process_reads_what_the_first_compiled(fetch, cache, compilations):
    image, compiled, notes = fetch()
    assert image == "--gpu-architecture=sm_80 k.cu:text" and compiled and notes == []
    assert fetch() == [image, False, []]
    assert len(compilations()) == 1
    assert [path.name for path in cache.iterdir()] == [entries(cache)[0].name]
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert stat.S_IMODE(entries(cache)[0].stat().st_mode) == 0o600


def test_sixteen_processes_compile_once(fetch, cache, compilations):
    code = FORKS + "result = fork_all(16, lambda number: fetch())"
    answers = fetch(code, FAKE_NVRTC_MS="300")
    assert len(compilations()) == 1
    assert sum(compiled for _, compiled, _ in answers) == 1
    assert {image for image, _, _ in answers} == {"--gpu-architecture=sm_80 k.cu:text"}
    assert [notes for *_, notes in answers] == [[]] * 16
    assert len(list(cache.iterdir())) == 1


def test_eight_threads_compile_once(fetch, compilations):
    code = """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(8) as pool:
    result = [future.result() for future in [pool.submit(fetch) for _ in range(8)]]
"""
    answers = fetch(code, FAKE_NVRTC_MS="100")
    assert len(compilations()) == 1 and [notes for *_, notes in answers] == [[]] * 8


def test_sixteen_kernels_at_once_are_all_kept(fetch, cache, compilations):
    fetch(FORKS + "result = fork_all(16, lambda number: fetch(str(number % 4)))")
    assert len(compilations()) == 4 and len(entries(cache)) == 4


@pytest.mark.parametrize(
    "changed",
    ["'other'", "arch='90'", "options=['-DX=1']", "headers=[('h', 't')]", "headers=[('ht', '')]"],
)
def test_whatever_the_cubin_depends_on_is_in_the_key(fetch, compilations, changed):
    fetch()
    fetch(f"result = fetch({changed})")
    assert len(compilations()) == 2


def test_another_compiler_has_entries_of_its_own(fetch, cache, compilations):
    fetch()
    assert fetch(FAKE_NVRTC_VERSION="13.0")[1]
    assert [path.name.rpartition("-")[2] for path in entries(cache)] == ["12.8.cubin", "13.0.cubin"]
    assert fetch()[1] is False and len(compilations()) == 2


def flip_last_bit(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_flipped_byte_anywhere_is_noticed(fetch, cache):
    fetch()
    (path,) = entries(cache)
    whole = path.read_bytes()
    code = f"""
path, whole = {str(path)!r}, {whole!r}
result = []
for position in range(len(whole)):
    data = bytearray(whole)
    data[position] ^= 0x10
    open(path, "wb").write(data)
    result.append(fetch())
"""
    answers = fetch(code)
    assert len(answers) == len(whole) > 124
    for image, compiled, notes in answers:
        assert image == "--gpu-architecture=sm_80 k.cu:text" and compiled
        assert len(notes) == 1
        assert notes[0].startswith(f"kernel cache: {path} ")
        assert notes[0].endswith("; compiled again")
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("length", "problem"),
    [
        (0, "does not begin as a cubin of ftrt"),
        (50, "is cut short"),
        (-1, "is cut short"),
    ],
)
def test_a_short_entry_is_noticed(fetch, cache, length, problem):
    fetch()
    (path,) = entries(cache)
    path.write_bytes(path.read_bytes()[:length])
    assert fetch()[1:] == [True, [f"kernel cache: {path} {problem}; compiled again"]]
    assert fetch()[1:] == [False, []]


def test_damage_is_named(fetch, cache):
    fetch()
    (path,) = entries(cache)
    flip_last_bit(path)
    note = f"kernel cache: {path} is damaged: its SHA-256 differs; compiled again"
    assert fetch()[1:] == [True, [note]]


@pytest.mark.parametrize("behind", [b"", b"more"])
def test_an_entry_of_another_kernel_is_not_run(fetch, cache, behind):
    fetch()
    (path,) = entries(cache)
    fetch("result = fetch('other')")
    (other,) = set(entries(cache)) - {path}
    path.write_bytes((path if behind else other).read_bytes() + behind)
    image, compiled, notes = fetch()
    assert image == "--gpu-architecture=sm_80 k.cu:text" and compiled
    assert notes == [f"kernel cache: {path} is another kernel's; compiled again"]


def put_link(path, target):
    path.symlink_to(target)


def put_pipe(path, target):
    os.mkfifo(path)


@pytest.mark.parametrize("put", [put_link, put_pipe])
def test_an_entry_that_is_no_file_is_replaced(fetch, cache, tmp_path, put):
    fetch()
    (path,) = entries(cache)
    target = tmp_path / "target"
    path.rename(target)
    whole = target.read_bytes()
    put(path, target)
    _, compiled, notes = fetch()
    assert compiled and len(notes) == 1 and path.name in notes[0]
    assert fetch()[1:] == [False, []]
    assert target.read_bytes() == whole  # what a link leads to is not written


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_a_process_killed_while_writing_leaves_no_entry(fetch, fakes, cache, call, compilations):
    code = "import torch, ftrt._C\nnative = ftrt._C.kernels\n" + FETCH + "fetch()"
    killed = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={
            **os.environ,
            "LD_PRELOAD": fakes.disaster,
            "DISASTER": call,
            "NVRTC": fakes.nvrtc,
            "FTRT_CACHE_DIR": str(cache),
        },
        capture_output=True,
    )
    assert killed.returncode == -9, killed.stderr
    left = list(cache.glob("*.tmp"))
    assert len(left) == 1 and not entries(cache)
    assert (left[0].stat().st_size < 140) == (call == "write")
    assert fetch()[1:] == [True, []]
    assert [path.name for path in cache.iterdir()] == [entries(cache)[0].name]
    assert fetch()[1:] == [False, []] and len(compilations()) == 1


def test_what_others_left_is_swept_when_it_is_old(fetch, cache):
    cache.mkdir(mode=0o700)
    old, new, foreign = (cache / name for name in ("a.cubin.1-0.tmp", "b.cubin.2-0.tmp", "notes"))
    for path in (old, new, foreign):
        path.touch()
        os.utime(path, (0, 0) if path != new else None)
    fetch()
    assert not old.exists() and new.exists() and foreign.exists()


def test_without_file_locks_entries_are_kept_all_the_same(fakes, cache):
    code = "import torch, ftrt._C\nnative = ftrt._C.kernels\n" + FETCH + "print(fetch())"
    environment = {"LD_PRELOAD": fakes.disaster, "DISASTER": "nolocks", "NVRTC": fakes.nvrtc}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment, "FTRT_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
    )
    assert "True" in done.stdout, done.stderr
    assert f"files in {cache} cannot be locked: flock: No locks available" in done.stdout
    assert len(entries(cache)) == 1


def unusable(fetch, folder, reason):
    """The cubin comes from memory, and the note has the folder, the reason and the fix."""
    image, compiled, notes = fetch(FTRT_CACHE_DIR=str(folder))
    assert image == "--gpu-architecture=sm_80 k.cu:text" and compiled
    assert len(notes) == 1
    assert notes[0].startswith(f"kernel cache: kernels cannot be kept in {folder}: ")
    assert reason in notes[0]
    assert notes[0].endswith(
        "; each process compiles its own; set FTRT_CACHE_DIR to a folder that you may write and"
        " that has room"
    )


def test_a_folder_that_cannot_be_made_costs_a_note(fetch, tmp_path):
    (tmp_path / "file").touch()
    unusable(fetch, tmp_path / "file" / "cache", "Not a directory")


def test_a_folder_that_is_a_link_is_not_used(fetch, tmp_path):
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    unusable(fetch, tmp_path / "link", "link: ")
    assert not list((tmp_path / "real").iterdir())


def test_a_folder_that_others_may_write_is_not_used(fetch, tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    unusable(fetch, tmp_path / "open", "open may be written by other users")


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a folder away needs root")
def test_a_folder_of_another_user_is_not_used(fetch, tmp_path):
    (tmp_path / "theirs").mkdir(mode=0o755)
    os.chown(tmp_path / "theirs", 12345, 12345)
    unusable(fetch, tmp_path / "theirs", "theirs belongs to user 12345")


def test_a_full_disk_costs_a_note(fetch, small_disk):
    (small_disk / "kernels").mkdir(mode=0o700)
    try:
        (small_disk / "filling").write_bytes(bytes(2**20))
    except OSError:
        pass  # it is full now
    unusable(fetch, small_disk / "kernels", "No space left on device")
    assert not list((small_disk / "kernels").iterdir())


def test_a_read_only_disk_is_read_and_costs_a_note(fetch, small_disk):
    folder = small_disk / "kernels"
    fetch("result = fetch('there')", FTRT_CACHE_DIR=str(folder))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert fetch("result = fetch('there')", FTRT_CACHE_DIR=str(folder))[1:] == [False, []]
    unusable(fetch, folder, "Read-only file system")


def test_a_source_that_does_not_compile_leaves_nothing(fetch, cache):
    code = """
try:
    fetch("#error")
except Exception as error:
    result = [type(error).__name__, str(error)]
"""
    name, text = fetch(code)
    assert name == "UsageError"
    assert text == (
        "k.cu: must compile with NVRTC 12.8, options --gpu-architecture=sm_80; got"
        " NVRTC_ERROR_COMPILATION:\nline 1: error: told to fail"
    )
    assert list(cache.iterdir()) == []


def test_other_ranks_wait_for_the_leader(fetch, compilations):
    code = (
        FORKS
        + """
import time
def work(rank):
    time.sleep(0.3 if rank == 0 else 0)
    return [os.getpid(), *fetch(is_leader=rank == 0)]
result = fork_all(4, work)
"""
    )
    answers = fetch(code, FAKE_NVRTC_MS="200")
    assert [line[0] for line in compilations()] == [str(answers[0][0])]
    assert [answer[2:] for answer in answers] == [[True, []]] + [[False, []]] * 3


def test_a_rank_whose_leader_does_not_come_compiles(fetch, compilations):
    assert fetch("result = fetch(is_leader=False, leader=0.2)")[1:] == [
        True,
        [
            "kernel cache: local rank 0 has not begun to compile k sm_80 within 0.2 s; compiled by"
            " this rank"
        ],
    ]
    assert len(compilations()) == 1


def test_a_process_that_never_ends_is_not_waited_for(fetch, cache):
    code = """
import fcntl, glob
fetch()
path = glob.glob(os.environ["FTRT_CACHE_DIR"] + "/*.cubin")[0]
os.unlink(path)
lock = open(path + ".lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
result = fetch(lock=0.2)
"""
    assert fetch(code)[1:] == [
        True,
        [
            "kernel cache: another process has not compiled k sm_80 within 0.2 s; compiled by this"
            " one"
        ],
    ]


def test_without_a_compiler_the_newest_entry_is_found(fetch, run, cache):
    find = f"result = native.find_in_cache({str(cache)!r}, KEY)"
    fetch()
    fetch(FAKE_NVRTC_VERSION="13.0")
    key = entries(cache)[0].name.partition("-")[0]
    code = f"KEY = {key!r}\n{find}\nresult[0]['image'] = result[0]['image'].decode()"
    assert run(code)[0] == {
        "key": key,
        "label": "k sm_80",
        "compiler": [13, 0],
        "image": "--gpu-architecture=sm_80 k.cu:text",
    }
    flip_last_bit(entries(cache)[1])
    entry, notes = run(code)
    assert entry["compiler"] == [12, 8] and "SHA-256 differs" in notes[0]
    assert run(f"KEY = {'0' * 64!r}\n{find}") == [None, []]
    shutil.rmtree(cache)
    assert run(f"KEY = {key!r}\n{find}") == [None, []]
