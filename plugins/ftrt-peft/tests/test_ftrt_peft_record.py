"""What is recorded of the methods is what the kit finds, and METHODS.md shows it."""

import json
from pathlib import Path

import peft
import pytest
from ftrt_peft import record as findings
from ftrt_peft.catalog import FACTS, peft_configs
from ftrt_peft.survey import CAPABILITIES, RECORD, main, survey, table
from ftrt_peft.trial import KINDS

CARD = Path(__file__).parents[1] / "METHODS.md"


def record():
    return json.loads(RECORD.read_text(encoding="utf-8"))


def test_every_method_of_the_installed_peft_is_recorded():
    assert record()["peft"] == peft.__version__
    assert set(record()["methods"]) == set(peft_configs())
    for name, found in record()["methods"].items():
        refusal = FACTS[name].refusal if name in FACTS else ""
        assert found.get("refused", "") == refusal
        assert refusal or set(found["works"]) | set(found["fails"]) == set(KINDS)


def test_the_page_is_written_from_the_record():
    assert CARD.read_text(encoding="utf-8") == table(record())


# float-only, and no merge
@pytest.mark.parametrize("name", ["glora", "lily"])
def test_the_record_is_what_the_kit_finds(name):
    assert survey(name) == record()["methods"][name]


def test_a_survey_of_one_method_keeps_the_others(tmp_path, monkeypatch):
    copy = tmp_path / "tested.json"
    copy.write_text(json.dumps({"peft": "0", "methods": {"ia3": {"works": ["x"]}, "gone": {}}}))
    monkeypatch.setattr("ftrt_peft.survey.RECORD", copy)
    monkeypatch.setattr("ftrt_peft.survey.survey", lambda name: {"works": [name]})

    main(["vera", "--table", str(tmp_path / "M.md")])

    found = json.loads(copy.read_text())
    assert found == {
        "peft": peft.__version__,
        "methods": {"ia3": {"works": ["x"]}, "vera": {"works": ["vera"]}},
    }
    assert "`peft:vera`" in (tmp_path / "M.md").read_text()


def test_capabilities_are_read_where_the_methods_are_made():
    assert findings.tested("ia3").has("int8") and findings.tested("ia3").has("merge")
    assert not findings.tested("glora").has("int8")
    assert not findings.tested("no_such_method").has("merge")
    assert "int8" in CAPABILITIES
