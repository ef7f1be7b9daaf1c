"""compute: w8a8 from recipe to run folder and back: the choice of each layer is made once."""

import json
import logging

import pytest
import torch
from typer.testing import CliRunner

import ftrt
from ftrt.cli.doctor import app
from ftrt.errors import CheckpointError, ConfigError
from ftrt.quantization.int8_layers import int8_layers
from ftrt.recipe import parse
from ftrt.runtime import calibration as runtime_calibration

QUERY = "bert.encoder.layer.0.attention.self.query"


@pytest.fixture
def w8a8(recipe_tree):
    recipe_tree["quantization"] = {"dtype": "int8", "compute": "w8a8"}
    recipe_tree["training"].update(num_train_epochs=1)
    return recipe_tree


def info_of(folder):
    return json.loads((folder / "ftrt.json").read_text(encoding="utf-8"))


def computes(model):
    return {
        name: (layer.compute, layer.outlier_columns) for name, layer in int8_layers(model).items()
    }


@pytest.fixture
def choose(monkeypatch):
    """Makes calibration choose what a test wants, and counts how often it runs."""
    made = []

    def install(**wanted):
        original = ftrt.quantization.calibrate

        def calibrate(model, batches, **bounds):
            made.append([len(batch["input_ids"]) for batch in batches])
            for name, (compute, outliers) in wanted.items():
                int8_layers(model)[name].set_compute(compute, outliers)
            return original

        monkeypatch.setattr(runtime_calibration, "calibrate", calibrate)
        return made

    return install


def test_train_calibrates_on_its_rows_and_records_every_layer(w8a8, caplog):
    caplog.set_level(logging.INFO)
    result = ftrt.train(w8a8)
    assert "calibrated on 108 sequences: 13 of 13 int8 layers compute w8a8" in caplog.text
    layers = {layer["name"]: layer for layer in info_of(result.run_dir)["layers"]}
    assert len(layers) == 13
    query = layers[QUERY]
    assert (query["kind"], query["adapter"], query["compute"]) == ("int8", "fused", "w8a8")
    assert 0 < query["error"] < 0.02 and 0 < query["gradient_error"] < 0.02
    report = ftrt.ops.implementation_report()
    assert query["implementation"] == report["int8_lora_linear"]
    card = (result.run_dir / "README.md").read_text()
    assert (
        "- 13 layers in int8, 13 compute w8a8, 13 with the adapter in the same op; run by" in card
    )


def test_w8a8_trains_as_well_as_w8a16(w8a8, many_reviews, tmp_path):
    w8a8["data"] = {"train": str(many_reviews), "validation": None, "test": 40, "max_length": 16}
    w8a8["training"].update(num_train_epochs=3)
    losses = {}
    for compute in ("w8a16", "w8a8"):
        tree = {**w8a8, "quantization": {"compute": compute}, "output": str(tmp_path / compute)}
        losses[compute] = ftrt.train(tree).after["loss"]
    assert losses["w8a8"] == pytest.approx(losses["w8a16"], rel=0.1)


def test_the_bounds_of_the_recipe_reach_calibration(w8a8):
    w8a8["quantization"]["calibration"] = {"sequences": 10, "max_error": 1e-6}
    result = ftrt.train(w8a8)
    layers = info_of(result.run_dir)["layers"]
    assert {layer["compute"] for layer in layers} == {"w8a16"}
    assert all("> 1e-06" in layer["reason"] for layer in layers)


def test_a_loaded_run_computes_as_it_was_trained_and_calibrates_nothing(w8a8, choose):
    made = choose(**{QUERY: ("w8a8", (2, 5))}, **{QUERY.replace("query", "key"): ("w8a16", ())})
    result = ftrt.train(w8a8)
    assert len(made) == 1 and sum(made[0]) == 108 and max(made[0]) == 4
    run = ftrt.load_run(result.run_dir)
    assert len(made) == 1
    found = computes(run.model)
    assert found[QUERY] == ("w8a8", (2, 5))
    assert found[QUERY.replace("query", "key")] == ("w8a16", ())
    assert found[QUERY.replace("query", "value")] == ("w8a8", ())
    layers = {row.name: row for row in ftrt.layer_report(run.model)}
    assert {n: (r.compute, r.outliers) for n, r in layers.items()} == found


def test_a_resumed_run_keeps_the_choice_of_the_first_start(w8a8, choose):
    made = choose(**{QUERY: ("w8a8", (2, 5))})
    first = ftrt.train(w8a8)
    choose(**{QUERY: ("w8a16", ())})
    w8a8["training"].update(num_train_epochs=2)
    second = ftrt.train(w8a8, resume=True)
    assert len(made) == 1 and second.steps == 2 * first.steps
    layers = {layer["name"]: layer for layer in info_of(second.run_dir)["layers"]}
    assert (layers[QUERY]["compute"], layers[QUERY]["outliers"]) == ("w8a8", [2, 5])


def test_overwriting_a_run_calibrates_anew(w8a8, choose):
    made = choose()
    ftrt.train(w8a8)
    ftrt.train(w8a8, overwrite=True)
    assert len(made) == 2


def test_a_damaged_record_is_an_error(w8a8):
    result = ftrt.train(w8a8)
    record = result.run_dir / "layers.json"
    for damage in ("[{", "{}", "[1]"):
        record.write_text(damage)
        with pytest.raises(CheckpointError, match="must be the JSON that ftrt wrote"):
            ftrt.train(w8a8, resume=True)
    info = info_of(result.run_dir)
    info["layers"][0]["name"] = "bert.no.such.layer"
    (result.run_dir / "ftrt.json").write_text(json.dumps(info))
    with pytest.raises(CheckpointError, match=r"ftrt\.json: bert\.no\.such\.layer must be an int8"):
        ftrt.load_run(result.run_dir)


def test_a_record_that_leaves_out_layers_is_an_error(w8a8):
    result = ftrt.train(w8a8)
    record = result.run_dir / "layers.json"
    layers = json.loads(record.read_text())
    for kept in (0, 5):
        record.write_text(json.dumps(layers[:kept]))
        with pytest.raises(CheckpointError) as caught:
            ftrt.train(w8a8, resume=True)
        assert (
            f"{record}: must say how every int8 layer computes; got {kept} of 13, without"
            in str(caught.value)
        )
    record.write_text(json.dumps([{**layers[0], "error": "much"}, *layers[1:]]))
    with pytest.raises(
        CheckpointError, match=r"layers\.json: each layer must have a name.*numbers"
    ):
        ftrt.train(w8a8, resume=True)


def test_a_record_that_is_gone_is_measured_anew_and_said(w8a8, caplog):
    first = ftrt.train(w8a8)
    (first.run_dir / "layers.json").unlink()
    w8a8["training"].update(num_train_epochs=2)
    caplog.set_level(logging.INFO)
    second = ftrt.train(w8a8, resume=True)
    assert second.steps == 2 * first.steps
    assert "layers.json is missing: the int8 layers are calibrated anew" in caplog.text
    assert (second.run_dir / "layers.json").is_file()


@pytest.mark.parametrize("layers", ["x", {"a": 1}, [1]])
def test_a_loaded_run_refuses_a_damaged_list_of_layers(w8a8, layers):
    result = ftrt.train(w8a8)
    (result.run_dir / "ftrt.json").write_text(
        json.dumps({**info_of(result.run_dir), "layers": layers})
    )
    with pytest.raises(CheckpointError, match=r"ftrt\.json: must be the JSON that ftrt wrote"):
        ftrt.load_run(result.run_dir)


def test_a_run_of_an_ftrt_that_recorded_no_layers_still_loads(recipe_tree):
    result = ftrt.train(recipe_tree)
    info = info_of(result.run_dir)
    del info["layers"]
    (result.run_dir / "ftrt.json").write_text(json.dumps(info))
    assert {c for c, _ in computes(ftrt.load_run(result.run_dir).model).values()} == {"w8a16"}


def bert(tiny_bert_dir):
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(tiny_bert_dir, num_labels=2).eval()


def batch():
    ids = torch.randint(5, 28, (6, 9), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "labels": torch.tensor([0, 1, 0, 1, 1, 0])}


def warnings_of(caplog):
    return [
        record
        for record in caplog.records
        if record.levelno >= logging.WARNING and record.name.startswith("ftrt")
    ]


LORA_W8A8 = {"quantization": {"compute": "w8a8"}, "method": {"name": "lora", "rank": 4}}


def test_attach_without_batches_warns_once_and_says_what_to_do(tiny_bert_dir, caplog):
    run = ftrt.attach(bert(tiny_bert_dir), LORA_W8A8)
    (record,) = warnings_of(caplog)
    assert "nothing was calibrated" in record.message
    assert "ftrt.calibrate(model, batches)" in record.message
    assert {c for c, _ in computes(run.model).values()} == {"w8a8"}
    choices = ftrt.calibrate(run.model, [batch()])
    assert len(choices) == len(run.quantized) == 13


def test_attach_calibrates_on_the_batches_it_is_given(tiny_bert_dir, caplog):
    model = bert(tiny_bert_dir)
    expected = model(**batch()).logits
    with ftrt.attach(model, LORA_W8A8, calibration=[batch()]) as run:
        assert not warnings_of(caplog)
        assert all(row.error is not None for row in ftrt.layer_report(run.model))
        got = run.model(**batch()).logits
        assert 0 < (got - expected).norm() / expected.norm() < 0.05
    assert torch.equal(model(**batch()).logits, expected)


def test_w8a16_neither_calibrates_nor_warns(tiny_bert_dir, caplog, choose):
    made = choose()
    ftrt.attach(bert(tiny_bert_dir), {**LORA_W8A8, "quantization": {}}, calibration=[batch()])
    assert not made and not warnings_of(caplog)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"compute": "w8a8", "granularity": "per_group", "group_size": 4},
            "compute: w8a8 must have granularity: per_channel, one scale per output feature; got"
            " per_group",
        ),
        ({"compute": "w4a4"}, "'w8a16' or 'w8a8'"),
        ({"calibration": {"sequences": 129}}, "sequences: must be <= 128; got 129"),
        ({"calibration": {"sequences": 0}}, "sequences: must be >= 1; got 0"),
        ({"calibration": {"max_error": 0.0}}, "max_error: must be > 0; got 0.0"),
        ({"calibration": {"max_outliers": -1}}, "max_outliers: must be >= 0; got -1"),
        ({"calibration": {"max_outlier": 3}}, "max_outliers"),
    ],
)
def test_a_quantization_section_that_makes_no_sense_is_refused(section, message):
    with pytest.raises(ConfigError) as caught:
        parse({"quantization": section})
    assert message in str(caught.value)


def doctor(*arguments):
    result = CliRunner().invoke(app, list(map(str, arguments)))
    return result.output if result.exception is None else str(result.exception)


def test_doctor_shows_the_layers_of_a_run(w8a8, tmp_path):
    result = ftrt.train(w8a8)
    run = json.loads(doctor(result.run_dir, "--json").splitlines()[-1])["run"]
    assert run["layers"] == info_of(result.run_dir)["layers"]
    assert run["summary"].startswith("13 layers in int8, 13 compute w8a8")
    shown = doctor(result.run_dir)
    assert "w8a8" in shown and run["summary"] in shown and "0.00" in shown
    # in a pipe a layer is a line, whatever the width of a terminal
    (line,) = [line for line in shown.splitlines() if line.strip().startswith(QUERY)]
    assert "within bound" in line
    assert "must be a run folder with ftrt.json; it has none" in doctor(tmp_path)
    info = info_of(result.run_dir)
    del info["layers"]
    (result.run_dir / "ftrt.json").write_text(json.dumps(info))
    assert "must say how the layers compute; ftrt 0.1.0 made the run" in doctor(result.run_dir)
