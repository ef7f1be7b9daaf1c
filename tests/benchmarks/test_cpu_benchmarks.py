"""The benchmarks of benchmarks/cpu run, keep their protocol, and refuse what is not right."""

import json
import math
import sys

import pytest


@pytest.fixture
def run(load, monkeypatch, tmp_path):
    """Runs a script in smoke mode; returns (exit code, rows of its JSON lines)."""

    def run(name, *arguments):
        file = tmp_path / f"{name}.jsonl"
        common = ["--smoke", "--threads", "1", "--json", str(file)]
        monkeypatch.setattr(sys, "argv", [name, *arguments, *common])
        code = load(name).main()
        return code, [json.loads(line) for line in file.read_text("utf-8").splitlines()]

    return run


def of_kind(rows, record):
    return [row for row in rows if row["record"] == record]


def test_ceilings_are_measured(run):
    code, rows = run("ceilings")

    assert code == 0
    rates = {row["kind"]: row["rate"] for row in of_kind(rows, "ceiling")}
    assert rates["read"] > 0 and rates["read_1"] > 0
    assert {row["what"] for row in of_kind(rows, "gemm")} >= {"bf16", "fp32", "_int_mm"}


def test_the_linears_table_has_ratios_errors_and_verdicts(run):
    code, rows = run("linears", "--without", "bitsandbytes,torchao")

    assert code == 0
    (machine,) = of_kind(rows, "machine")
    assert machine["threads"] == 1 and "int8_lora_linear" in machine["implementations"]
    table = {(row["rows"], row["name"]): row for row in of_kind(rows, "linear")}
    peer = table[24, "PEFT bf16"]
    assert peer["ratios"]["ftrt w8a8 total"]["median"] > 0
    assert peer["seconds"]["total"]["p10"] <= peer["seconds"]["total"]["p90"]
    assert peer["errors"]["y"] <= 5e-3 and peer["errors"]["da_cosine"] >= 0.999
    assert table[24, "ftrt w8a8"]["saved_bytes"] > 0
    assert {row["name"] for row in of_kind(rows, "floor")} >= {"_int_mm alone", "ftrt w8a8 GEMM"}
    assert of_kind(rows, "verdict")


def test_a_wrong_result_gets_no_speed(run, load, monkeypatch, capsys):
    ops = load("measuring.linear_variants").ops
    right = ops.int8_lora_linear
    monkeypatch.setattr(ops, "int8_lora_linear", lambda *a, **k: 1.05 * right(*a, **k))

    code, rows = run("linears", "--without", "bitsandbytes,torchao,dequantize")

    assert code == 1
    assert {row["name"] for row in of_kind(rows, "linear")} == {
        "ftrt lora_linear",
        "PEFT bf16",
        "PEFT default",
    }
    refused = of_kind(rows, "refused")
    assert any("y error" in fault for row in refused for fault in row["faults"])
    printed = capsys.readouterr().out
    assert "!!! REFUSED, no speed is given: tiny 48x64 M 24 ftrt w8a8: y error" in printed


def test_a_peer_that_cannot_run_is_named_with_the_reason(run, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)

    code, rows = run("linears", "--without", "bitsandbytes", "--rows", "8")

    assert code == 0
    assert [row["name"] for row in of_kind(rows, "away")] == ["torchao"]
    assert "!!! torchao takes no part: ModuleNotFoundError" in capsys.readouterr().out


def test_a_decoder_layer_is_gated_and_timed(run):
    code, rows = run("decoder_layer", "--no-compile")

    assert code == 0
    names = {row["name"] for row in of_kind(rows, "layer")}
    assert names >= {"ftrt w8a8", "ftrt w8a16", "ftrt bf16", "PEFT bf16", "PEFT default"}


def test_training_steps_are_timed_and_their_losses_compared(run):
    code, rows = run(
        "end_to_end", "smollm2", "--no-memory", "--only", "ftrt w8a8,ftrt bf16,PEFT default"
    )

    assert code == 0
    steps = {row["name"]: row for row in of_kind(rows, "step")}
    assert steps.keys() == {"PEFT bf16", "PEFT default", "ftrt w8a8", "ftrt bf16"}
    assert steps["PEFT bf16"]["ratios"]["ftrt w8a8"]["median"] > 0
    for row in of_kind(rows, "loss"):
        assert math.isclose(row["loss"], row["reference"], rel_tol=0.02)


def test_a_classifier_takes_training_steps_too(run):
    code, rows = run("end_to_end", "minilm", "--no-memory", "--only", "ftrt w8a8")

    assert code == 0
    assert {row["name"] for row in of_kind(rows, "step")} == {"PEFT bf16", "ftrt w8a8"}


def test_accuracy_covers_real_layers_and_whole_gradients(run):
    code, rows = run("accuracy")

    assert code == 0
    captured = of_kind(rows, "captured")
    assert {row["name"] for row in captured} == {"ftrt bf16", "ftrt w8a16", "ftrt w8a8"}
    assert len(captured) == 3 * 14
    assert all(row["all"] > 0.99 for row in of_kind(rows, "gradients"))


def test_loss_curves_are_compared_over_seeds(run, tiny_bert_dir, reviews, tmp_path):
    out = tmp_path / "curves"

    _, rows = run(
        "loss_curves", "--model", str(tiny_bert_dir), "--train", str(reviews), "--out", str(out)
    )

    assert {row["base"] for row in of_kind(rows, "run")} == {"float", "w8a8"}
    (compared,) = of_kind(rows, "loss_curves")
    assert abs(compared["difference"]) < 0.1
    assert (tmp_path / "curves.png").stat().st_size > 0
    assert json.loads((tmp_path / "curves.json").read_text())["runs"]["w8a8"]["0"]["curve"]
