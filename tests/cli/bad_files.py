"""Wrong data files, models, run folders."""

import json
import shutil
from pathlib import Path

from bad_inputs import case


def rows(count: int, label: str | None = None) -> str:
    """jsonl text of distinct reviews."""
    return "".join(
        json.dumps({"text": f"good film {'very ' * i}", "label": label or str(i % 2)}) + "\n"
        for i in range(count)
    )


@case("data file missing", 4, "reviews.jsonl: the data file must exist")
def _(place):
    place.tree["data"]["train"] = str(place.folder / "reviews.jsonl")


@case("data file of an unknown kind", 4, "xlsx")
def _(place):
    place.data("rows.xlsx", b"PK")


@case("truncated jsonl line", 4, r"rows\.jsonl:3: ")
def _(place):
    place.data("rows.jsonl", rows(2) + '{"text": "cut of')


@case("not UTF-8", 4, r"rows\.jsonl:2: .*UTF-8")
def _(place):
    place.data("rows.jsonl", rows(1).encode() + b'{"text": "caf\xe9", "label": "1"}\n')


@case("csv row with a missing field", 4, r"rows\.csv:3: ")
def _(place):
    place.data("rows.csv", "text,label\ngood,1\nbad\n")


@case("empty data file", 4, r"rows\.jsonl.*(empty|no rows)")
def _(place):
    place.data("rows.jsonl", "")


@case("column missing", 4, r"(label.*sentiment|sentiment.*label)")
def _(place):
    place.data("rows.jsonl", '{"text": "good", "sentiment": "1"}\n')


@case("null in a required column", 4, r"rows\.jsonl:2: ")
def _(place):
    place.data("rows.jsonl", rows(1) + '{"text": null, "label": "1"}\n')


@case("label never seen in training", 4, "test.jsonl:1: .*a label seen in training.*got 'maybe'")
def _(place):
    test = place.folder / "test.jsonl"
    test.write_text('{"text": "dull cast", "label": "maybe"}\n')
    place.tree["data"]["test"] = str(test)


@case("only one label", 4, "label")
def _(place):
    place.data("rows.jsonl", rows(40, label="1"))


@case("empty split", 4, "must keep at least one text; got 4 texts")
def _(place):
    place.data("rows.jsonl", rows(4))
    place.tree["data"].update(validation=2, test=2)


@case("asset misspelt", 4, "rotten-tomatos.*did you mean 'rotten-tomatoes'")
def _(place):
    place.tree["data"]["train"] = "asset:rotten-tomatos"


@case("model folder missing", 5, "model path must be a folder or asset:NAME")
def _(place):
    place.tree["model"]["path"] = str(place.folder / "no-model")


@case("a hub name as model", 5, "nothing is fetched from a hub")
def _(place):
    place.tree["model"]["path"] = "bert-base-uncased"


@case("model weights cut short", 5, "must be a whole safetensors file; it is cut short or corrupt")
def _(place):
    broken = Path(shutil.copytree(place.model, place.folder / "model"))
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    place.tree["model"]["path"] = str(broken)


@case("output folder not empty", 5, "output must be empty or new.*--overwrite")
def _(place):
    place.tree["output"] = str(place.copy_of_run())


@case("output is a file", 5, "output must be a folder; a file stands there")
def _(place):
    (place.folder / "file").write_text("x")
    place.tree["output"] = str(place.folder / "file")


@case("unwritable output", 5, "output must be writable")
def _(place):
    place.tree["output"] = "/proc/ftrt/run"


@case("not a run folder", 5, "must be a run folder with ftrt.json")
def _(place):
    return ["eval", str(place.folder)]


@case("adapter cut short", 5, r"adapter_model\.safetensors")
def _(place):
    broken = place.copy_of_run()
    weights = broken / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:300])
    return ["eval", str(broken)]


@case("adapter missing", 5, r"adapter_model\.safetensors")
def _(place):
    broken = place.copy_of_run()
    (broken / "adapter_model.safetensors").unlink()
    return ["eval", str(broken)]


@case("adapter_config.json corrupt", 5, r"adapter_config\.json")
def _(place):
    broken = place.copy_of_run()
    (broken / "adapter_config.json").write_text("{")
    return ["predict", str(broken), "--text", "good"]


@case("ftrt.json corrupt", 5, r"ftrt\.json: must be the JSON that ftrt wrote")
def _(place):
    broken = place.copy_of_run()
    (broken / "ftrt.json").write_text("{")
    return ["eval", str(broken)]


@case("ftrt.json of a newer ftrt", 5, "format version 99.*pip install -U ftrt")
def _(place):
    broken = place.copy_of_run()
    info = json.loads((broken / "ftrt.json").read_text())
    (broken / "ftrt.json").write_text(json.dumps({**info, "version": 99}))
    return ["eval", str(broken)]


@case("wrong base model", 5, "must be the model it was trained on.*--base")
def _(place):
    from safetensors.torch import load_file, save_file

    other = Path(shutil.copytree(place.model, place.folder / "other"))
    weights = load_file(other / "model.safetensors")
    weights["embeddings.word_embeddings.weight"] += 1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    return ["eval", str(place.run), "--base", str(other)]


@case("merging over an existing folder", 5, "output must be empty or new")
def _(place):
    return ["merge", str(place.run), str(place.copy_of_run())]


@case("a file as model", 5, "model path must be a folder or asset:NAME; a file stands there")
def _(place):
    (place.folder / "model.bin").write_text("x")
    place.tree["model"]["path"] = str(place.folder / "model.bin")


@case("doctor on a folder that is not there", 5, "nowhere: must be a run folder; it does not exist")
def _(place):
    return ["doctor", str(place.folder / "nowhere")]


@case("doctor on a file", 5, "recipe.yaml: must be a run folder; a file stands there")
def _(place):
    return ["doctor", place.recipe()]


def _with(place, **changed):
    broken = place.copy_of_run()
    info = json.loads((broken / "ftrt.json").read_text())
    (broken / "ftrt.json").write_text(json.dumps({**info, **changed}))
    return ["doctor", str(broken)]


@case("parts of ftrt.json gone", 5, r"ftrt\.json: must hold head\.state, base\.fingerprint, resul")
def _(place):
    return _with(place, head="x", base={"path": "y"}, results=None)


@case("a kind of run that is none", 5, "ftrt.json: kind must be adapter or model; got 'banana'")
def _(place):
    return _with(place, kind="banana")


@case("layers of a run corrupt", 5, r"ftrt\.json: must be the JSON that ftrt wrote; got no list")
def _(place):
    return _with(place, layers=[1])


@case("a layer without its compute", 5, r"ftrt\.json: each layer must say what it computes")
def _(place):
    return _with(place, layers=[{"name": "a", "kind": "int8"}])
