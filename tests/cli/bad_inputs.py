"""Wrong inputs a user can give, with the exit code and message each one ends with.

`FTRT_WRITE_DOCS=1 python -m pytest tests/cli/test_bad_inputs.py` writes docs/errors.md from what
really happens.
"""

import json
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from ftrt.cli import run

Tree = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """Where a case is made: a scratch folder, a good recipe, a finished run, a model folder."""

    folder: Path
    tree: Tree
    run: Path
    model: Path

    def recipe(self, text: str | None = None) -> str:
        """Write the recipe (or `text`) and return its path."""
        path = self.folder / "recipe.yaml"
        if text is None:
            with path.open("w", encoding="utf-8") as file:
                YAML(typ="safe", pure=True).dump(self.tree, file)
        else:
            path.write_text(text, encoding="utf-8")
        return str(path)

    def data(self, name: str, content: str | bytes) -> None:
        """Write a data file and make it the recipe's training data."""
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        self.tree["data"]["train"] = str(path)

    def copy_of_run(self) -> Path:
        """The finished run, copied so that it can be broken."""
        return Path(shutil.copytree(self.run, self.folder / "broken"))


@dataclass(frozen=True)
class Case:
    """One wrong input: how to make it, and what must come of it."""

    title: str
    make: Callable[[Place], list[str]]
    exit_code: int
    message: str


CASES: list[Case] = []


def case(title: str, exit_code: int, message: str) -> Callable[[Callable[[Place], Any]], None]:
    """Add a case; the function returns the arguments, or None for `train` with its changed
    recipe.
    """

    def add(make: Callable[[Place], Any]) -> None:
        def arguments(place: Place) -> list[str]:
            return make(place) or ["train", place.recipe()]

        CASES.append(Case(title, arguments, exit_code, message))

    return add


def rows(count: int, label: str | None = None) -> str:
    """jsonl text of distinct reviews."""
    return "".join(
        json.dumps({"text": f"good film {'very ' * i}", "label": label or str(i % 2)}) + "\n"
        for i in range(count)
    )


# ------------------------------------------------------------------------------------------------
# usage


@case("unknown command", 2, "No such command 'trian'.*did you mean.*train")
def _(place):
    return ["trian"]


@case("unknown option", 2, "No such option.*--overwite")
def _(place):
    return ["train", place.recipe(), "--overwite"]


@case("missing argument", 2, "Missing argument")
def _(place):
    return ["train"]


@case("predict without rows", 2, "give rows by --text or by --data")
def _(place):
    return ["predict", str(place.run)]


@case("a split the run does not have", 2, "no test split.*--split.*--data")
def _(place):
    broken = place.copy_of_run()
    info = json.loads((broken / "ftrt.json").read_text())
    info["recipe"]["data"].pop("test")
    (broken / "ftrt.json").write_text(json.dumps(info))
    return ["eval", str(broken)]


@case("merging a run without an adapter", 2, "holds a full model already")
def _(place):
    broken = place.copy_of_run()
    info = json.loads((broken / "ftrt.json").read_text())
    (broken / "ftrt.json").write_text(json.dumps({**info, "kind": "model"}))
    return ["merge", str(broken), str(place.folder / "merged")]


# -----------------------------------------------------------------------------------------------
# recipe


@case("recipe file missing", 3, "the recipe must be a file; it does not exist")
def _(place):
    return ["train", str(place.folder / "nowhere.yaml")]


@case("recipe is not YAML", 3, r"recipe\.yaml:\d+.*must be YAML")
def _(place):
    return ["train", place.recipe("model: {path: x\nmethod: [")]


@case("a key twice in the recipe", 3, "recipe.yaml.*duplicate key")
def _(place):
    return ["train", place.recipe("seed: 1\nseed: 2\n")]


@case("unknown top-level key", 3, "unknown key 'trianing'; did you mean 'training'")
def _(place):
    place.tree["trianing"] = {}


@case("unknown key in a section", 3, "unknown key 'data.max_lenght'; did you mean 'max_length'")
def _(place):
    place.tree["data"]["max_lenght"] = 4


@case("wrong type", 3, "data.max_length: .*integer.*got 'long'")
def _(place):
    place.tree["data"]["max_length"] = "long"


@case("unknown option of a method", 3, "method 'lora': unknown key 'rnak'; did you mean 'rank'")
def _(place):
    place.tree["method"] = {"name": "lora", "rnak": 4}


@case("option of a method out of range", 3, "method 'lora': rank: .*got 0")
def _(place):
    place.tree["method"] = {"name": "lora", "rank": 0}


@case(
    "unknown training field", 3, "unknown key 'training.learnig_rate'; did you mean 'learning_rate'"
)
def _(place):
    place.tree["training"]["learnig_rate"] = 1e-3


@case("training field of the wrong type", 3, "training.learning_rate: .*number.*got 'fast'")
def _(place):
    place.tree["training"]["learning_rate"] = "fast"


@case("training field that ftrt sets", 3, "training.output_dir: is ftrt's to set; set `output`")
def _(place):
    place.tree["training"]["output_dir"] = "x"


@case("malformed --set", 3, "--set method.rank: must read key=value")
def _(place):
    return ["train", place.recipe(), "--set", "method.rank"]


@case("a layer name that matches nothing", 3, "qeury.*did you mean.*query")
def _(place):
    place.tree["method"]["targets"] = ["qeury"]


@case("full fine-tuning on an int8 base", 3, "method 'full': trains the base's own weights")
def _(place):
    place.tree["method"] = {"name": "full"}


@case("distillation without a teacher", 3, "loss 'logit_kl': needs `teacher: PATH`")
def _(place):
    place.tree["losses"] = [{"name": "logit_kl"}]


@case("max_length beyond the model's positions", 3, "at most the 64 positions of bert; got 100")
def _(place):
    place.tree["data"]["max_length"] = 100


@case("sections missing", 3, "recipe: model: must be given")
def _(place):
    place.tree.pop("model")


# -------------------------------------------------------------------------------------------------
# data


@case("data file missing", 4, "reviews.jsonl.*does not exist")
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


@case("label never seen in training", 4, r"label 'maybe'")
def _(place):
    test = place.folder / "test.jsonl"
    test.write_text('{"text": "dull cast", "label": "maybe"}\n')
    place.tree["data"]["test"] = str(test)


@case("only one label", 4, "label")
def _(place):
    place.data("rows.jsonl", rows(40, label="1"))


@case("empty split", 4, "split")
def _(place):
    place.data("rows.jsonl", rows(4))
    place.tree["data"].update(validation=2, test=2)


@case("asset misspelt", 4, "rotten-tomatos.*did you mean 'rotten-tomatoes'")
def _(place):
    place.tree["data"]["train"] = "asset:rotten-tomatos"


# ------------------------------------------------------------------------------- models and run
# folders


@case("model folder missing", 5, "model path must be a folder or asset:NAME")
def _(place):
    place.tree["model"]["path"] = str(place.folder / "no-model")


@case("a hub name as model", 5, "nothing is fetched from a hub")
def _(place):
    place.tree["model"]["path"] = "bert-base-uncased"


@case("model weights cut short", 5, "must be a model that AutoModelForSequenceClassification reads")
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


# ----------------------------------------------------------------------------------------------
# plugins


@case("method misspelt", 6, "method 'laro'.*did you mean 'lora'")
def _(place):
    place.tree["method"] = {"name": "laro"}


@case(
    "a loss where a method belongs",
    6,
    "method 'logit_kl': no installed plugin offers it; a loss has that name",
)
def _(place):
    place.tree["method"] = {"name": "logit_kl"}


@case("unknown plugin in `plugins info`", 6, "laro")
def _(place):
    return ["plugins", "info", "laro"]


def run_case(one: Case, place: Place) -> tuple[int, str, str]:
    """(exit code, message on stderr, stdout) of one case."""
    out, err = StringIO(), StringIO()
    arguments = one.make(place)
    with redirect_stdout(out), redirect_stderr(err):
        code = run(arguments)
    return code, err.getvalue(), out.getvalue()


def last_message(stderr: str, place: Place) -> str:
    """The error message, with the scratch folder's name taken out."""
    text = stderr[stderr.rindex("error: ") + len("error: ") :] if "error: " in stderr else stderr
    for path, name in ((place.folder, "…"), (place.model, "model"), (place.run, "runs/demo")):
        text = text.replace(str(path), name)
    return " ".join(text.split())
