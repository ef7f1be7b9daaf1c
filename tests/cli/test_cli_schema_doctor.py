"""`ftrt schema` and `ftrt doctor`, with a broken plugin installed too."""

import json

import pytest

from ftrt.cli.diagnosis import diagnose
from ftrt.config import cpu_isa
from ftrt.errors import ConfigError
from ftrt.ops import implementation_report


@pytest.fixture
def site(plugin_folder):
    plugin_folder.add("zz-one", {"method.shiny": "zz_one"}, {"zz_one": plugin_folder.METHOD})
    plugin_folder.add("zz-bomb", {"head.zz_bomb": "zz_bomb"}, {"zz_bomb": "raise SystemExit(1)"})
    plugin_folder.add("zz-bad", {"zz": "zz_bad"})
    return plugin_folder


def test_schema_has_plugin_options_and_names_what_is_left_out(site):
    result = site.ftrt("schema", "--json")
    assert result.returncode == 0, result.stderr
    schema = json.loads(result.stdout)

    definitions = schema["$defs"]
    shiny = next(o for o in definitions["method"]["oneOf"] if o["title"] == "shiny")
    assert shiny["properties"]["name"] == {"const": "shiny"}
    assert shiny["properties"]["rank"]["minimum"] == 1
    assert (shiny["required"], shiny["additionalProperties"]) == (["name"], False)
    assert schema["properties"]["method"]["anyOf"][0] == {"$ref": "#/$defs/method"}
    assert schema["properties"]["losses"]["items"] == {"$ref": "#/$defs/loss"}
    assert "task" in [option["title"] for option in definitions["loss"]["oneOf"]]
    assert "learning_rate" in schema["properties"]["training"]["properties"]
    assert "plugin zz-bomb 1.0 (zz_bomb): its import must succeed" in schema["$comment"]


def test_every_reference_of_the_schema_is_defined(site):
    text = site.ftrt("schema").stdout
    schema = json.loads(text)

    def references(node):
        if isinstance(node, dict):
            if isinstance(node.get("$ref"), str):
                yield node["$ref"]
            for value in node.values():
                yield from references(value)
        elif isinstance(node, list):
            for value in node:
                yield from references(value)

    missing = {r for r in references(schema) if r.removeprefix("#/$defs/") not in schema["$defs"]}
    assert missing == set()


def test_schema_writes_a_file(site, tmp_path):
    path = tmp_path / "recipe.schema.json"

    result = site.ftrt("schema", "--out", str(path))

    assert (result.returncode, result.stdout) == (0, f"wrote {path}\n")
    assert json.loads(path.read_text())["title"] == "Recipe"


def test_doctor_reports_faults_without_dying(site):
    result = site.ftrt("doctor", "--json")

    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["healthy"] is False
    by_name = {finding["name"]: finding for finding in found["findings"]}
    assert by_name["method shiny"]["value"] == "zz-one 1.0 (zz_one)"
    assert by_name["head zz_bomb"]["problem"].endswith("pip uninstall zz-bomb")
    assert "entry point 'zz' must read KIND.NAME" in by_name["entry point"]["problem"]
    assert {"ftrt", "python", "torch", "cuda", "int8_linear", "memory", "cache"} <= set(by_name)


def test_doctor_strict_ends_with_6_for_a_plugin_fault(site):
    result = site.ftrt("doctor", "--strict")

    assert result.returncode == 6
    assert "problem: head zz_bomb: plugin zz-bomb 1.0 (zz_bomb)" in result.stdout


def test_doctor_says_how_to_mend_the_environment(monkeypatch, tmp_path):
    blocker = tmp_path / "file"
    blocker.touch()
    monkeypatch.setenv("FTRT_CACHE_DIR", str(blocker / "cache"))
    monkeypatch.setenv("FTRT_CPU_ISA", "avx3")

    found = {finding.name: finding for finding in diagnose()}

    assert found["cache"].problem == f"{blocker} must be a folder you may write to"
    assert found["cache"].fix == "set FTRT_CACHE_DIR to another folder"
    problem = found["FTRT_CPU_ISA"].problem
    assert "must be one of portable, avx2, avx512, avx512_vnni, avx512_bf16, amx; got" in problem
    assert "'avx3'" in problem


@pytest.mark.parametrize("isa", ["avx3", "amx"])
def test_a_wrong_instruction_set_is_told_once_and_is_no_plugins_fault(site, isa, monkeypatch):
    if isa == "amx" and "amx" in implementation_report()["usable_isas"]:
        pytest.skip("this CPU has AMX")
    monkeypatch.setenv("FTRT_CPU_ISA", isa)

    result = site.ftrt("doctor", "--json")

    findings = json.loads(result.stdout.splitlines()[-1])["findings"]
    (told,) = [finding for finding in findings if "FTRT_CPU_ISA" in finding["problem"]]
    assert (told["area"], told["name"]) == ("ops", "FTRT_CPU_ISA")
    assert told["fix"] == "unset FTRT_CPU_ISA" and told["problem"].startswith("FTRT_CPU_ISA: must")
    by_name = {finding["name"]: finding for finding in findings}
    assert by_name["method full"]["value"] == "not read, for FTRT_CPU_ISA"


def test_a_wrong_choice_for_cuda_is_told_by_its_own_name(site, monkeypatch):
    monkeypatch.setenv("FTRT_CUDA", "maybe")

    result = site.ftrt("doctor", "--json")

    findings = json.loads(result.stdout.splitlines()[-1])["findings"]
    told = [f for f in findings if f["name"] == "FTRT_CUDA" and f["problem"]]
    assert [f["fix"] for f in told] == ["unset FTRT_CUDA"]
    assert not [f for f in findings if "FTRT_CPU_ISA" in f["fix"]]


def test_an_empty_instruction_set_is_none(monkeypatch):
    monkeypatch.setenv("FTRT_CPU_ISA", "")
    assert cpu_isa() is None
    monkeypatch.setenv("FTRT_CPU_ISA", "AVX2")
    with pytest.raises(ConfigError, match=r"amx; got 'AVX2'; did you mean 'avx2'\?$"):
        cpu_isa()
    monkeypatch.setenv("FTRT_CPU_ISA", "sse")
    with pytest.raises(ConfigError, match=r"must be one of portable, .*, amx; got 'sse'$"):
        cpu_isa()


def test_doctor_says_that_the_extension_is_missing(monkeypatch):
    from ftrt.ops import extension

    monkeypatch.setattr(extension, "EXTENSION", extension.Extension(None, "not built", "build it"))

    found = {finding.name: finding for finding in diagnose()}

    assert (found["extension"].problem, found["extension"].fix) == ("not built", "build it")
    assert found["int8_linear"].value == "reference on CPU tensors"
