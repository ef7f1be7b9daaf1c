"""Wrong command lines, recipes and plugin names."""

import json

from bad_inputs import case


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


@case(
    "a split the run does not have",
    2,
    "no test split.*--split.*--data",
)
def _(place):
    broken = place.copy_of_run()
    info = json.loads((broken / "ftrt.json").read_text())
    info["recipe"]["data"].pop("test")
    (broken / "ftrt.json").write_text(json.dumps(info))
    return ["eval", str(broken), "--split", "test"]


@case("merging a run without an adapter", 2, "holds a full model already")
def _(place):
    broken = place.copy_of_run()
    info = json.loads((broken / "ftrt.json").read_text())
    (broken / "ftrt.json").write_text(json.dumps({**info, "kind": "model"}))
    return ["merge", str(broken), str(place.folder / "merged")]


@case("merging into a dtype that is none", 2, "'--dtype': 'int4' is not one of .*'int8'")
def _(place):
    return ["merge", str(place.run), str(place.folder / "merged"), "--dtype", "int4"]


@case("a bound of int8 for a float merge", 2, "must come with --dtype int8.*got bfloat16")
def _(place):
    out = str(place.folder / "merged")
    return ["merge", str(place.run), out, "--dtype", "bfloat16", "--min-retained", "0.9"]


@case("a bound that is no share", 2, r"--min-retained must be within 0\.\.1; got 2\.0")
def _(place):
    out = str(place.folder / "merged")
    return ["merge", str(place.run), out, "--dtype", "int8", "--min-retained", "2"]


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


@case("unknown compute", 3, "quantization.compute: must be 'w8a16' or 'w8a8'; got 'w4a8'")
def _(place):
    place.tree["quantization"]["compute"] = "w4a8"


@case("w8a8 with a scale per group", 3, "w8a8 must have granularity: per_channel.*got per_group")
def _(place):
    place.tree["quantization"] = {
        "compute": "w8a8",
        "granularity": "per_group",
        "group_size": 4,
    }


@case("a calibration bound out of range", 3, "calibration.max_error: must be <= 1; got 1000")
def _(place):
    place.tree["quantization"] = {"compute": "w8a8", "calibration": {"max_error": 1000}}


@case("sections missing", 3, "recipe: model: must be given")
def _(place):
    place.tree.pop("model")


@case("method misspelt", 6, "method 'laro': .*none does; known: .*lora")
def _(place):
    place.tree["method"] = {"name": "laro"}


@case(
    "a loss where a method belongs",
    6,
    "method 'logit_kl': .*; a loss has that name",
)
def _(place):
    place.tree["method"] = {"name": "logit_kl"}


@case("unknown plugin in `plugins info`", 6, "laro")
def _(place):
    return ["plugins", "info", "laro"]
