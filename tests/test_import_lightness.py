"""Importing ftrt costs nothing: no torch, no output; and each module can be imported alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
HEAVY = (
    "torch",
    "transformers",
    "peft",
    "numpy",
    "pydantic",
    "accelerate",
    "pyarrow",
    "matplotlib",
)
MODULES = sorted(
    ".".join(("ftrt", *path.relative_to(REPOSITORY / "ftrt").with_suffix("").parts)).removesuffix(
        ".__init__"
    )
    for path in (REPOSITORY / "ftrt").rglob("*.py")
    if "templates" not in path.parts and path.name != "__main__.py"
)
LOADED = """
import json, sys
print(json.dumps([m for m in {heavy!r} if m in sys.modules]), file=sys.stderr)
"""


def python(*arguments):
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        timeout=300,
    )


def loaded_after(code):
    """The heavy libraries that `code` imports; it must print nothing on stderr itself."""
    result = python("-c", f"{code}\n{LOADED.format(heavy=HEAVY)}")
    assert result.returncode == 0, result.stderr
    return result.stdout, json.loads(result.stderr)


def test_importing_ftrt_imports_nothing_heavy_and_prints_nothing():
    assert loaded_after("import ftrt; dir(ftrt); ftrt.hookimpl") == ("", [])


def test_importing_ftrt_initialises_no_cuda():
    code = "import torch, ftrt; assert not torch.cuda.is_initialized()"

    assert python("-c", code).returncode == 0


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["plugins", "list", "--json"]])
def test_light_commands_import_nothing_heavy(arguments):
    code = f"from ftrt.cli import run\nassert run({arguments!r}) == 0"

    stdout, loaded = loaded_after(code)

    assert stdout
    # typer reads the value of an option that is no flag with pydantic
    assert set(loaded) <= {"pydantic"}


@pytest.mark.parametrize("command", ["train", "eval", "predict", "merge", "doctor", "schema"])
def test_the_help_of_a_command_imports_no_torch(command):
    _, loaded = loaded_after(f"from ftrt.cli import run\nassert run([{command!r}, '--help']) == 0")

    assert {"torch", "transformers", "peft"} & set(loaded) == set()


def test_reading_a_recipe_imports_no_torch():
    _, loaded = loaded_after("import ftrt.recipe")

    assert loaded == ["pydantic"]


# One process imports each module after forgetting those of ftrt: a module that only works after
# another one has been imported fails, and the libraries below are imported once. Ops register with
# torch once a process, so they stay, and have a test of their own.
ALONE = """
import importlib, sys
failed = []
for name in {modules!r}:
    for loaded in [m for m in sys.modules if m == "ftrt" or m.startswith("ftrt.")]:
        if not loaded.startswith(("ftrt.ops", "ftrt._C")):
            del sys.modules[loaded]
    try:
        importlib.import_module(name)
    except Exception as error:
        failed.append(f"{{name}}: {{type(error).__name__}}: {{error}}")
sys.exit("\\n".join(failed) or 0)
"""


def test_each_module_can_be_imported_alone_without_a_warning():
    others = [name for name in MODULES if not name.startswith("ftrt.ops")]
    warm = "import torch, transformers, peft, pydantic, rich, pyarrow, matplotlib\n"
    errors = "import warnings; warnings.simplefilter('error')\n"

    result = python("-c", warm + errors + ALONE.format(modules=others))

    assert (result.returncode, result.stdout) == (0, ""), result.stderr


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("ftrt.ops")])
def test_each_op_module_can_be_imported_alone(module):
    code = f"import torch, warnings; warnings.simplefilter('error'); import {module}"

    result = python("-c", code)

    assert (result.returncode, result.stdout) == (0, ""), result.stderr
