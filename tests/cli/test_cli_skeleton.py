"""`ftrt plugins new` writes distributions that pass their own tests and ftrt's checks."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from ftrt.cli import run, skeleton
from ftrt.errors import PluginError, UsageError
from ftrt.manifest import Manifest, Offer
from ftrt.recipe import load

REPOSITORY = Path(__file__).parents[2]
NOTHING = Manifest(())


def test_the_example_plugin_is_what_the_skeleton_writes():
    folder = REPOSITORY / "plugins" / "ftrt-example"
    made = re.compile(r"(^|/)(\..*|__pycache__|build|.*\.egg-info)/")
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not made.search(path.relative_to(folder).as_posix())
    }

    assert files == {
        path: text.encode() for path, text in skeleton.render("example", "method").items()
    }


def test_head_and_loss_skeletons_pass_their_own_tests(tmp_path):
    # The method's is plugins/ftrt-example, whose tests run with all others.
    for kind in ("head", "loss"):
        skeleton.write(f"my_{kind}", kind, tmp_path, NOTHING)
    sources = [str(tmp_path / f"ftrt-my-{kind}" / "src") for kind in ("head", "loss")]

    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((*sources, str(REPOSITORY)))},
        capture_output=True,
        text=True,
    )

    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("kind", ["head", "loss"])
def test_a_skeleton_passes_plugins_check(tmp_path, monkeypatch, capsys, kind):
    name = f"checked_{kind}"
    skeleton.write(name, kind, tmp_path, NOTHING)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "good", "score": 2}\n{"text": "not so good", "score": 1}\n')
    monkeypatch.chdir(tmp_path / f"ftrt-checked-{kind}")
    monkeypatch.setattr(sys, "path", list(sys.path))

    code = run(["plugins", "check", f"ftrt_{name}.{name}", "--rows", str(rows)])

    assert (code, capsys.readouterr().out.splitlines()) == (
        0,
        [
            f"ok   ftrt_{name}.{name}: import and hooks",
            f"ok   {kind} {name}: contract",
            f"ok   {kind} {name}: conformance",
        ],
    )


@pytest.mark.parametrize("kind", skeleton.SKELETONS)
def test_a_skeleton_is_complete_and_consistent(kind):
    files = skeleton.render("my_own", kind)

    project = tomllib.loads(files["pyproject.toml"])
    assert project["project"]["entry-points"]["ftrt"] == {f"{kind}.my_own": "ftrt_my_own.my_own"}
    assert {"README.md", "recipe.yaml", "tests/test_my_own.py"} < set(files)
    assert "src/ftrt_my_own/py.typed" in files
    assert not any("@" in line and "@NAME" in line for text in files.values() for line in text)


@pytest.mark.parametrize("kind", skeleton.SKELETONS)
def test_a_skeletons_recipe_is_valid_and_names_the_plugin(tmp_path, kind):
    path = tmp_path / "recipe.yaml"
    path.write_text(skeleton.render("my_own", kind)["recipe.yaml"])

    recipe = load(path)

    named = [recipe.method, recipe.head, *recipe.losses]
    assert "my_own" in [section.name for section in named if section]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("class", "NAME: must not be a word of Python; got 'class'; try class_method"),
        ("match", "NAME: must not be a word of Python; got 'match'; try match_method"),
        ("My-Method", "got 'My-Method'; try my_method"),
        ("1st", "got '1st'; try st"),
        ("a__b", "got 'a__b'; try a_b"),
        ("../up", "got '../up'; try up"),
        ("a b", "got 'a b'; try a_b"),
        ("", "NAME: must be lower-case letters, digits and single _, a letter first; got ''"),
        ("ftrt_x", "NAME: must not start with ftrt"),
        ("ftrt", "NAME: must not start with ftrt"),
    ],
)
def test_a_bad_name_is_refused_with_a_better_one(tmp_path, name, message):
    with pytest.raises(UsageError) as caught:
        skeleton.write(name, "method", tmp_path, NOTHING)

    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_taken_name_is_refused(tmp_path):
    manifest = Manifest((Offer("method", "lora", "m", "ftrt-lowrank", "1"),))

    with pytest.raises(
        PluginError, match=r"method 'lora': must be a name that no installed plugin"
    ):
        skeleton.write("lora", "method", tmp_path, manifest)
    assert skeleton.write("lora", "head", tmp_path, manifest)


def test_an_unknown_kind_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"--kind: must be one of method, head, loss; got 'heads'"):
        skeleton.write("x", "heads", tmp_path, NOTHING)


def test_an_existing_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "ftrt-x").mkdir()

    with pytest.raises(UsageError, match=r"ftrt-x: must not exist; choose another name, or --dir"):
        skeleton.write("x", "method", tmp_path, NOTHING)
    assert list((tmp_path / "ftrt-x").iterdir()) == []


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(UsageError, match="must be a folder; it does not exist"):
        skeleton.write("x", "method", tmp_path / "no", NOTHING)


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)

    with pytest.raises(OSError, match="No space"):
        skeleton.write("x", "method", tmp_path, NOTHING)
    assert list(tmp_path.iterdir()) == []
