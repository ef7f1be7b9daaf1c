"""Every fault a plugin can have ends with a message that says where it is and how to mend it."""

import os
import re
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import doc_pages
import plugin_fault_cases as cases
import pytest
from ruamel.yaml import YAML

import ftrt
from ftrt.cli import run

PAGE = Path(doc_pages.REPOSITORY, "docs", "plugins.md")
SECTION = "What goes wrong, and what a user sees"
HEADER = ["what is wrong", "exit code", "message"]


def placed(tree, path, value):
    """`tree` with the value at a dotted path."""
    *parents, last = path.split(".")
    node = tree
    for part in parents:
        node = node.setdefault(part, {})
    node[last] = value


def written(tree, file):
    """The recipe as a file."""
    with file.open("w", encoding="utf-8") as stream:
        YAML(typ="safe", pure=True).dump(tree, stream)
    return str(file)


def install(one, plugin_folder):
    """Put the broken plugin, and the second one, on the path."""
    modules = {"ftrt_shiny": one.source} if one.source is not None else {}
    plugin_folder.add("ftrt-shiny", dict(one.offers), modules)
    if one.more:
        plugin_folder.add(one.more[0], dict(one.more[1]))


def shown(one, plugin_folder, recipe_tree, folder):
    """(exit code, message) of the command that meets the fault, with made-up paths taken out."""
    install(one, plugin_folder)
    tree = {**recipe_tree, "quantization": None}
    tree["training"] = {**tree["training"], "max_steps": 1}
    for path, value in one.recipe:
        placed(tree, path, value)
    out, err = StringIO(), StringIO()
    arguments = cases.arguments(one, lambda: ["train", written(tree, folder / "recipe.yaml")])
    with redirect_stdout(out), redirect_stderr(err):
        code = run(arguments)
    assert "error: " in err.getvalue(), err.getvalue() + out.getvalue()
    text = " ".join(err.getvalue()[err.getvalue().rindex("error: ") + 7 :].split())
    names = {
        plugin_folder.path: "SITE",
        Path(tree["data"]["train"]).parent: "…",
        folder: "…",
        Path(ftrt.__file__).parents[1]: "SITE",
    }
    for path, name in names.items():
        text = text.replace(str(path), name)
    return code, text


@pytest.mark.parametrize("one", cases.FAULTS, ids=lambda fault: fault.title)
def test_a_faulty_plugin_ends_as_documented(one, plugin_folder, recipe_tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    code, message = shown(one, plugin_folder, recipe_tree, tmp_path)

    assert code == one.exit_code, message
    assert "this is a bug" not in message
    if os.environ.get("FTRT_WRITE_DOCS"):
        _write_row(one, code, message)
    row = [
        row for row in doc_pages.read("docs/plugins.md").table(SECTION).rows if row[0] == one.title
    ]
    assert row == [[one.title, str(code), message]]


@pytest.mark.parametrize("one", cases.FAULTS, ids=lambda fault: fault.title)
def test_a_faulty_plugin_breaks_nobody_else(one, plugin_folder, capsys):
    install(one, plugin_folder)

    assert run(["plugins", "list"]) == 0
    assert run(["plugins", "info", "lora"]) == 0


def test_the_page_lists_every_fault():
    table = doc_pages.read("docs/plugins.md").table(SECTION)

    assert table.header == HEADER
    assert table.column("what is wrong") == [one.title for one in cases.FAULTS]


def _write_row(one, code, message):
    """Put the row into the page, with the header before the first one."""
    text = PAGE.read_text(encoding="utf-8")
    rows = doc_pages.read("docs/plugins.md")
    tables = [table for table in rows.tables if table.section == SECTION]
    old = {row[0]: row for row in tables[0].rows} if tables else {}
    old[one.title] = [one.title, str(code), message]
    lines = ["| " + " | ".join(HEADER) + " |", "|---|---|---|"]
    for case in cases.FAULTS:
        if case.title in old:
            lines.append(
                "| " + " | ".join(cell.replace("|", "\\|") for cell in old[case.title]) + " |"
            )
    body = "\n".join(lines)
    pattern = re.compile(
        r"(SITE` is where plugins are installed\.\n\n)(?:FAULTS|(?:\|.*\n)*\|.*)\n"
    )
    assert pattern.search(text)
    PAGE.write_text(pattern.sub(lambda match: f"{match[1]}{body}\n", text), encoding="utf-8")
