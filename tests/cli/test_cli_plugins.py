"""`ftrt plugins` with made-up distributions, in processes of their own."""

import json
from textwrap import dedent

import pytest


def answer(result, code=0):
    assert result.returncode == code, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_list_reads_metadata_marks_duplicates_and_shows_malformed(plugin_folder):
    bomb = "raise SystemExit('imported')"
    plugin_folder.add(
        "zz-one", {"method.zz_a": "zz_one.m", "head.zz_h": "zz_one"}, {"zz_one": bomb}
    )
    plugin_folder.add("zz-two", {"method.zz_a": "zz_two"}, {"zz_two": bomb})
    plugin_folder.add("zz-bad", {"method:zz": "zz_bad"})

    found = answer(plugin_folder.ftrt("plugins", "list", "--json"))
    mine = [row for row in found["plugins"] if row["distribution"].startswith("zz-")]

    assert [(r["kind"], r["name"], r["distribution"], r["duplicate"]) for r in mine] == [
        ("head", "zz_h", "zz-one", False),
        ("method", "zz_a", "zz-one", True),
        ("method", "zz_a", "zz-two", True),
    ]
    assert mine[1]["module"] == "zz_one.m"
    assert [text[:12] for text in found["malformed"]] == ["zz-bad 1.0: "]


def test_list_shows_a_table(plugin_folder):
    plugin_folder.add("zz-one", {"method.zz_a": "zz_one"})
    plugin_folder.add("zz-two", {"method.zz_a": "zz_two", "zz": "zz_two"})

    out = plugin_folder.ftrt("plugins", "list", "--kind", "method", COLUMNS="150").stdout

    assert out.count("zz_a") == out.count("DUPLICATE") == 2
    assert "malformed: zz-two 1.0: entry point 'zz' must read KIND.NAME" in out


def test_info_shows_source_options_and_facts(plugin_folder):
    plugin_folder.add("zz-one", {"method.shiny": "zz_one"}, {"zz_one": plugin_folder.METHOD})

    found = answer(plugin_folder.ftrt("plugins", "info", "shiny", "--json"))

    assert found["source"] == "Shine 2020"
    assert found["summary"] == "Shines."
    assert found["facts"] == {"supports_quantized_base": True, "mergeable": True}
    assert found["options"] == [
        {"name": "rank", "type": "int", "required": False, "default": 8, "help": "How many."},
        {"name": "targets", "type": "list[str]", "required": False, "default": ["q"], "help": ""},
    ]
    text = plugin_folder.ftrt("plugins", "info", "shiny", COLUMNS="150").stdout
    assert "method shiny: Shines." in text
    assert "How many." in text


def test_info_asks_for_the_kind_when_a_name_has_two(plugin_folder):
    plugin_folder.add("zz-one", {"method.zz_a": "zz_one", "head.zz_a": "zz_one"})

    result = plugin_folder.ftrt("plugins", "info", "zz_a")

    assert result.returncode == 2
    assert "'zz_a': one plugin must have that name, or --kind must say which" in result.stderr
    assert "a head and a method; add --kind head" in result.stderr


def test_info_of_an_unknown_name_suggests(plugin_folder):
    plugin_folder.add("zz-one", {"method.zz_shiny": "zz_one"})

    result = plugin_folder.ftrt("plugins", "info", "zz_shinny", "--json")

    error = answer(result, 6)["error"]
    assert (error["type"], error["exit_code"]) == ("PluginError", 6)
    assert "did you mean 'zz_shiny'?" in error["message"]


@pytest.mark.parametrize(
    ("source", "check", "says"),
    [
        ("raise SystemExit(1)", "import and hooks", "it raised SystemExit: 1"),
        ("ftrt_hookspec = 1", "registers something", "none of its hooks returns a class"),
        ("x = 1", "import and hooks", "add the line ftrt_hookspec = 1"),
    ],
)
def test_check_of_a_broken_module_fails_with_6(plugin_folder, source, check, says):
    plugin_folder.module("zz_mod", source)

    found = answer(plugin_folder.ftrt("plugins", "check", "zz_mod", "--json"), 6)

    assert found["passed"] is False
    (failed,) = [result for result in found["results"] if not result["ok"]]
    assert failed["check"] == check
    assert says in failed["message"]


def test_check_finds_contract_faults_and_metadata_that_disagrees(plugin_folder):
    source = dedent(plugin_folder.METHOD).replace('source = "Shine 2020"', "")
    plugin_folder.add("zz-one", {"method.glossy": "zz_one"}, {"zz_one": source})

    found = answer(plugin_folder.ftrt("plugins", "check", "zz_one", "--json"), 6)

    failed = {(r["subject"], r["check"]): r["message"] for r in found["results"] if not r["ok"]}
    assert failed == {
        ("method glossy", "promised in metadata"): "register_methods() does not return it",
        ("method shiny", "offered in metadata"): (
            'no recipe can name it; add the entry point "method.shiny" = "zz_one" to its'
            " pyproject.toml and reinstall it"
        ),
        ("method shiny", "contract"): "Shiny must set source to a string; got none",
    }


def test_check_runs_the_conformance_kit(plugin_folder):
    plugin_folder.module("zz_mod", plugin_folder.METHOD)

    result = plugin_folder.ftrt("plugins", "check", "zz_mod", "--set", "shiny.targets=[up]")

    assert result.returncode == 6
    assert "ok   method shiny: contract" in result.stdout
    assert "FAIL method shiny: conformance: " in result.stdout
    assert "optimizer got an empty parameter list" in result.stdout


def test_check_of_a_path_says_how_to_name_a_module(plugin_folder):
    result = plugin_folder.ftrt("plugins", "check", "pkg/mod.py")

    assert result.returncode == 2
    assert "pkg/mod.py: must be a module name, package.module; write pkg.mod" in result.stderr


def test_check_of_a_module_that_is_not_there(plugin_folder):
    found = answer(plugin_folder.ftrt("plugins", "check", "zz_absent", "--json"), 6)

    assert "No module named 'zz_absent'" in found["results"][0]["message"]


def test_check_tries_the_options_it_is_given(plugin_folder):
    plugin_folder.module("zz_mod", plugin_folder.METHOD)

    result = plugin_folder.ftrt("plugins", "check", "zz_mod", "--set", "shiny.rnak=2")

    assert result.returncode == 6
    assert "rnak" in result.stdout


def test_check_skips_a_head_without_rows_and_says_so(plugin_folder):
    source = """
        from ftrt import Head, PluginConfig, hookimpl

        ftrt_hookspec = 1

        class Tall(Head):
            name = "tall"
            Config = PluginConfig
            auto_class = task_type = "SEQ_CLS"
            columns = {"text": "a text"}
            encode = collate = predict = None

        @hookimpl
        def register_heads():
            return [Tall]
    """
    plugin_folder.module("zz_mod", source)

    result = plugin_folder.ftrt("plugins", "check", "zz_mod")

    assert result.returncode == 0
    assert "skip head tall: conformance: not tried: a head needs rows" in result.stdout
