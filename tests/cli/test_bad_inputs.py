"""Every wrong input ends with its exit code and a message that says where, what and how to mend
it.
"""

import copy
import json
import os
import re
import sys
from pathlib import Path

import pytest

import ftrt

# the suite runs in importlib mode, which puts no test folder on the path
sys.path.insert(0, str(Path(__file__).parent))
import bad_inputs

for topic in ("bad_recipes", "bad_files"):
    __import__(topic)

DOCS = Path(__file__).parents[2] / "docs" / "errors.md"
HEADER = """# What goes wrong, and what ftrt says

Exit codes: 0 done, 1 a bug in ftrt, 2 usage, 3 recipe, 4 data, 5 model or run folder, 6 plugin, 130
interrupted. No traceback is shown without `--debug`. With `--json` the same stands in an object
`{"error": {...}}` on stdout. This table is written by the test suite from what really happens; `…`
is the user's folder. Faults inside plugins are in [plugins.md](plugins.md).

| input | exit code | message |
|---|---|---|
"""


@pytest.fixture(scope="module")
def finished_run(tiny_bert_dir, reviews, tmp_path_factory):
    tree = {
        "model": {"path": str(tiny_bert_dir)},
        "method": {"name": "lora", "rank": 2},
        "head": {"name": "sequence_classification"},
        "data": {"train": str(reviews), "validation": "10%", "test": 20, "max_length": 16},
        "training": {"max_steps": 1, "use_cpu": True, "eval_strategy": "no", "save_strategy": "no"},
        "output": str(tmp_path_factory.mktemp("finished") / "run"),
    }
    return ftrt.train(tree).run_dir


@pytest.fixture
def place(tmp_path, recipe_tree, finished_run, tiny_bert_dir):
    return bad_inputs.Place(tmp_path, copy.deepcopy(recipe_tree), finished_run, tiny_bert_dir)


@pytest.mark.parametrize("one", bad_inputs.CASES, ids=lambda case: case.title)
def test_bad_input(one, place):
    code, stderr, _ = bad_inputs.run_case(one, place)
    message = bad_inputs.last_message(stderr, place)
    assert (code, bool(re.search(one.message, message))) == (one.exit_code, True), stderr
    assert "Traceback" not in stderr
    assert "this is a bug" not in stderr
    if os.environ.get("FTRT_WRITE_DOCS"):
        if one is bad_inputs.CASES[0]:
            DOCS.write_text(HEADER, encoding="utf-8")
        cell = message.replace("|", "\\|")
        with DOCS.open("a", encoding="utf-8") as file:
            file.write(f"| {one.title} | {one.exit_code} | {cell} |\n")


def test_the_documentation_lists_every_case():
    rows = re.findall(r"^\| (.+?) \| (\d+) \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == [(one.title, str(one.exit_code)) for one in bad_inputs.CASES]


def test_there_are_enough_cases_to_call_it_a_table():
    assert len(bad_inputs.CASES) >= 30


def test_nothing_is_written_for_a_run_that_cannot_start(place):
    place.tree["data"]["max_lenght"] = 4
    bad_inputs.run(["train", place.recipe()])
    assert not Path(place.tree["output"]).exists()


def test_json_errors_are_one_object_on_stdout(place, capsys):
    place.tree["trianing"] = {}
    assert bad_inputs.run(["train", place.recipe(), "--json"], as_json=True) == 3
    error = json.loads(capsys.readouterr().out.splitlines()[-1])["error"]
    assert (
        error["type"] == "ConfigError"
        and error["exit_code"] == 3
        and "trianing" in error["message"]
    )
