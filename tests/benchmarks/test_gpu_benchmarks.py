"""benchmarks/gpu runs without a GPU at toy sizes, keeps its protocol, and reports what it has."""

import json
import sys

import pytest
import torch


@pytest.fixture
def run(load, monkeypatch, tmp_path, capsys):
    """Runs stages with `--device cpu --quick`; returns (exit code, stage -> rows, what it said)."""

    def run(*stages):
        arguments = ["--device", "cpu", "--quick", "--out", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", ["run.py", "--stage", ",".join(stages), *arguments])
        code = load("gpu.run").main()
        return code, load("gpu.report").load(tmp_path), capsys.readouterr().out

    return run


def of_kind(rows, record):
    return [row for row in rows if row["record"] == record]


def test_every_stage_but_kernels_runs_on_a_cpu(run, load, monkeypatch, tmp_path):
    # pytest inside of pytest, its own test below
    correctness = load("gpu.correctness")
    monkeypatch.setattr(correctness, "run_tests", lambda stage: None)

    code, stages, said = run(*load("gpu.run").STAGES)

    assert code == 0
    assert list(stages) == list(load("gpu.report").ORDER)
    assert all(of_kind(rows, "end") and of_kind(rows, "machine") for rows in stages.values())
    assert {row["kind"] for row in of_kind(stages["ceilings"], "ceiling")} == {
        "copy",
        "bf16",
        "int8",
    }
    assert of_kind(stages["correctness"], "sanitizer")[0]["reason"] == "no CUDA device"
    (skipped,) = of_kind(stages["kernels"], "skipped")
    assert skipped["reason"] == "stage kernels needs a CUDA device; got cpu"
    layer = {row["name"]: row for row in of_kind(stages["layer"], "layer")}
    assert layer["PEFT bf16"]["ratios"]["ftrt w8a8"]["median"] > 0
    # nothing measured on a CPU counts as a measurement
    assert "met  " not in said and "missed  " not in said
    report = (tmp_path / "report.md").read_text()
    assert "Toy sizes" in report and "| not measured |" in report
    assert "int8 over bf16: " in report

    check_linears(stages["linears"])
    check_models(stages["end_to_end"])


def check_linears(rows):
    table = {row["name"]: row for row in of_kind(rows, "linear")}
    assert table.keys() >= {"ftrt w8a8", "ftrt w8a16", "PEFT bf16", "PEFT default"}
    assert table.keys() >= {"cuBLAS + addmm", "bf16 GEMMs alone", "dequantize + F.linear"}
    addmm = table["cuBLAS + addmm"]
    assert addmm["errors"]["y"] < 5e-3 and addmm["errors"]["da_cosine"] > 0.9999
    assert addmm["errors"]["db_cosine"] > 0.9999 and addmm["errors"]["dx"] < 5e-3
    assert addmm["ratios"]["ftrt w8a8 total"]["median"] > 0
    # h is computed again and x is the only activation kept
    assert addmm["saved_bytes"] == 24 * 64 * 2
    assert {row["name"] for row in of_kind(rows, "first_call")} >= table.keys()


def check_models(rows):
    steps = {(row["name"], row["checkpointing"]): row for row in of_kind(rows, "step")}
    assert steps["ftrt w8a8", True]["tokens_per_second"] > 0
    assert ("PEFT bf16 again", False) in steps
    compared = {(row["name"], row["checkpointing"]): row for row in of_kind(rows, "comparison")}
    assert compared["PEFT bf16", True]["speed"] == 1.0
    curves = {row["name"]: row for row in of_kind(rows, "loss_curves")}
    assert curves.keys() == {"ftrt w8a8", "ftrt w8a16"}
    assert len(curves["ftrt w8a8"]["seeds"]) == 2 and curves["ftrt w8a8"]["seed_deviation"] > 0


def test_a_broken_stage_is_recorded_and_does_not_stop_the_next(run, load, monkeypatch):
    def broken(stage):
        raise ZeroDivisionError("no such thing")

    monkeypatch.setattr(load("gpu.ceilings"), "measure", broken)

    code, stages, _ = run("ceilings", "kernels")

    assert code == 1
    (row,) = of_kind(stages["ceilings"], "broken")
    assert row["reason"] == "ZeroDivisionError: no such thing"
    assert of_kind(stages["kernels"], "end")


def test_a_case_whose_time_is_over_is_named(load, tmp_path, capsys):
    records = load("measuring.records").Records(tmp_path / "rows.jsonl")
    stage = load("gpu.stage").Stage(
        "linears", torch.device("cpu"), True, tmp_path, records, seconds=-1.0
    )

    assert not stage.has_time("8b 4096x4096")

    assert of_kind(records.rows, "unmeasured")[0]["where"] == "8b 4096x4096"
    assert "!!! not measured, the stage's -1 s are over: 8b 4096x4096" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stage", "kernel"], "got kernel"),
        (["--device", "cpu"], "--device cpu: needs --quick"),
    ],
)
def test_a_wrong_option_is_refused(load, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments])

    with pytest.raises(SystemExit):
        load("gpu.run").options_of()

    assert message in capsys.readouterr().err


def test_the_counts_of_a_test_run_are_read(load):
    correctness = load("gpu.correctness")
    output = "....\n3 failed, 41 passed, 2 skipped in 3.21s\n"

    found = correctness._COUNT.findall(correctness.last_line(output))

    assert found == [("3", "failed"), ("41", "passed"), ("2", "skipped")]


@pytest.mark.parametrize(
    ("output", "count"),
    [
        ("========= ERROR SUMMARY: 0 errors\n", "0"),
        ("========= RACECHECK SUMMARY: 12 hazards displayed (3 errors, 9 warnings)\n", "12"),
    ],
)
def test_the_summary_of_the_sanitizer_is_read(load, output, count):
    assert load("gpu.correctness")._SANITIZED.findall(output) == [count]


def test_the_sanitized_script_covers_every_result(load, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sanitized.py", "--device", "cpu"])

    assert load("gpu.sanitized").main() == 0

    assert "largest relative error" in capsys.readouterr().out


def test_a_wrong_result_fails_the_sanitized_script(load, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sanitized.py", "--device", "cpu"])
    script = load("gpu.sanitized")
    right = script.ops.int8_lora_linear
    calls = iter(range(10**6))
    # every second call is the device's
    monkeypatch.setattr(
        script.ops,
        "int8_lora_linear",
        lambda *a, **k: right(*a, **k) * (1.1 if next(calls) % 2 else 1.0),
    )

    assert script.main() == 1

    assert "wrong: (32, 64, 64, 16) torch.bfloat16 w8a8" in capsys.readouterr().out


def test_text_of_a_random_language_can_be_learnt(load):
    text = load("gpu.loss_curves").random_text(seed=2, count=200_000)

    pairs = torch.zeros(256, 256)
    pairs.index_put_((text[:-1], text[1:]), torch.ones(len(text) - 1), accumulate=True)
    rows = pairs[pairs.sum(1) > 500]
    likeliest = (rows.max(1).values / rows.sum(1)).mean()
    # a uniform language would have its likeliest successor about once in a hundred
    assert len(rows) > 20 and likeliest > 0.1


def test_rows_are_written_before_the_stage_ends(load, tmp_path):
    file = tmp_path / "layer.jsonl"
    records = load("measuring.records").Records(file)
    records.write("machine", gpu="a GPU")
    text = file.read_text() + '{"record": "half a li'
    file.write_text(text)

    stages = load("gpu.report").load(tmp_path)

    assert [row["record"] for row in stages["layer"]] == ["machine"]
    assert "- layer: cut off before its end" in load("gpu.report").markdown(stages)
    assert json.loads(text.splitlines()[0])["gpu"] == "a GPU"
