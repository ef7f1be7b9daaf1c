"""Wrong inputs a user can give, with the exit code and message each one ends with.

`FTRT_WRITE_DOCS=1 python -m pytest tests/cli/test_bad_inputs.py` writes docs/errors.md from what
really happens.
"""

import shutil
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from ftrt.cli import run

Tree = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """Where a case is made: a scratch folder, a good recipe, a finished run, a model folder."""

    folder: Path
    tree: Tree
    run: Path
    model: Path

    def recipe(self, text: str | None = None) -> str:
        """Write the recipe (or `text`) and return its path."""
        path = self.folder / "recipe.yaml"
        if text is None:
            with path.open("w", encoding="utf-8") as file:
                YAML(typ="safe", pure=True).dump(self.tree, file)
        else:
            path.write_text(text, encoding="utf-8")
        return str(path)

    def data(self, name: str, content: str | bytes) -> None:
        """Write a data file and make it the recipe's training data."""
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        self.tree["data"]["train"] = str(path)

    def copy_of_run(self) -> Path:
        """The finished run, copied so that it can be broken."""
        return Path(shutil.copytree(self.run, self.folder / "broken"))


@dataclass(frozen=True)
class Case:
    """One wrong input: how to make it, and what must come of it."""

    title: str
    make: Callable[[Place], list[str]]
    exit_code: int
    message: str


CASES: list[Case] = []


def case(title: str, exit_code: int, message: str) -> Callable[[Callable[[Place], Any]], None]:
    """Add a case; the function returns the arguments, or None for `train` with its changed
    recipe.
    """

    def add(make: Callable[[Place], Any]) -> None:
        def arguments(place: Place) -> list[str]:
            return make(place) or ["train", place.recipe()]

        CASES.append(Case(title, arguments, exit_code, message))

    return add


def run_case(one: Case, place: Place) -> tuple[int, str, str]:
    """(exit code, message on stderr, stdout) of one case."""
    out, err = StringIO(), StringIO()
    arguments = one.make(place)
    with redirect_stdout(out), redirect_stderr(err):
        code = run(arguments)
    return code, err.getvalue(), out.getvalue()


def last_message(stderr: str, place: Place) -> str:
    """The error message, with the scratch folder's name taken out."""
    # at the start of a line: a key such as max_error is followed by a colon too
    text = f"\n{stderr}".rpartition("\nerror: ")[2]
    for path, name in ((place.folder, "…"), (place.model, "model"), (place.run, "runs/demo")):
        text = text.replace(str(path), name)
    return " ".join(text.split())
