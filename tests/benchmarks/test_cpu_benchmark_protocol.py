"""The protocol's parts: rounds, ratios within a round, accuracy gates, verdicts."""

import math

import pytest


def test_every_variant_runs_once_a_round_and_the_order_rotates(load):
    order = []

    def call(name):
        return lambda index: order.append(name) or {"forward": 1.0, "backward": 2.0}

    rounds = load("measuring.interleave").interleave(
        {"a": call("a"), "b": call("b")}, seconds=0, least=3
    )

    # two warm-up passes, then three rounds
    assert order == ["a", "b", "a", "b", "a", "b", "b", "a", "a", "b"]
    assert list(rounds.times["a"]) == [0, 1, 2]
    assert rounds.seconds("a", "total").median == 3.0


def test_a_ratio_is_taken_within_a_round(load):
    interleave = load("measuring.interleave")
    # the machine slows down tenfold in the last two of four rounds
    rounds = interleave.Rounds(
        {
            "peer": {0: {"f": 2.0}, 1: {"f": 2.0}, 2: {"f": 20.0}, 3: {"f": 20.0}},
            "own": {0: {"f": 1.0}, 1: {"f": 1.0}, 2: {"f": 10.0}},
        }
    )

    ratio = rounds.ratio("peer", "own", "f")

    assert (ratio.p10, ratio.median, ratio.p90, ratio.count) == (2.0, 2.0, 2.0, 3)


def test_a_slow_variant_runs_in_every_third_round(load):
    calls = {
        "fast": lambda index: {"forward": 1.0},
        "slow": lambda index: {"forward": 9.0},
    }

    rounds = load("measuring.interleave").interleave(calls, seconds=0, least=7)

    assert list(rounds.times["slow"]) == [0, 3, 6]
    assert rounds.ratio("slow", "fast", "forward").count == 3


@pytest.mark.parametrize(
    ("kind", "measured", "fault"),
    [
        ("w8a8", {"y": 0.02, "dx": 0.01}, "y error 2.00e-02 > 1.5e-02 (w8a8)"),
        ("w8a16", {"y": 0.009, "y_dequantized": 0.005}, "y_dequantized error 5.00e-03"),
        ("bf16", {"y": math.nan}, "y error nan"),
        ("bf16", {"y": 1e-3, "da_cosine": 0.99}, "da_cosine 0.99000 < 0.999"),
        ("bf16", {"y": 1e-3, "db_cosine": math.nan}, "db_cosine nan"),
        ("w8a8", {}, "no error was measured (w8a8)"),
    ],
)
def test_a_gate_names_each_fault(load, kind, measured, fault):
    assert load("measuring.gates").failures(kind, measured)[0].startswith(fault)


def test_a_right_row_passes_its_gate(load):
    measured = {"y": 0.012, "dx": 0.013, "da_cosine": 0.9999, "db_cosine": 0.9999}

    assert load("measuring.gates").failures("w8a8", measured) == []


def test_a_refusal_is_repeated_at_the_end_and_fails_the_script(load, capsys, tmp_path):
    records = load("measuring.records").Records(tmp_path / "rows.jsonl")

    assert not records.gate("M 7 ftrt w8a8", "bf16", {"y": 1.0})
    assert records.finish() == 1

    assert capsys.readouterr().out.count("M 7 ftrt w8a8") == 2
    assert '"record": "refused"' in (tmp_path / "rows.jsonl").read_text()


def test_a_refused_peer_has_no_speed_and_does_not_fail_the_script(load):
    records = load("measuring.records").Records(None)

    assert not records.gate("M 7 a peer", "bf16", {"y": 1.0})
    assert records.finish() == 0


def test_a_verdict_without_a_value_is_not_a_pass(load, capsys):
    module = load("measuring.records")
    records = module.Records(None)

    module.verdict(records, "faster", None, 2.0)
    module.verdict(records, "faster", math.nan, 2.0)
    module.verdict(records, "faster", 1.9, 2.0)
    module.verdict(records, "faster", 2.0, 2.0)

    outcomes = [row["outcome"] for row in records.rows]
    assert outcomes == ["NOT MEASURED", "NOT MEASURED", "FAIL", "PASS"]


def test_forcing_sets_every_library_to_the_class(load):
    environment = load("forced_isa").environment("avx2")

    assert environment["FTRT_CPU_ISA"] == "avx2"
    assert environment["ONEDNN_MAX_CPU_ISA"] == "AVX2"
    assert environment["ATEN_CPU_CAPABILITY"] == "avx2"
    assert environment["MKL_ENABLE_INSTRUCTIONS"] == "AVX2"
