"""docs/recipes.md: every key, type and default, and whatever else it lists, is what there is."""

import inspect
import json
import re
import types
import typing

import doc_pages
import pytest
from annotated_types import Ge, Gt, Le
from doc_pages import code_names
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from ruamel.yaml import YAML

import ftrt
from ftrt import recipe as recipes
from ftrt.data.catalog import ASSETS
from ftrt.data.formats import SUFFIXES
from ftrt.integrations import transformers_training as training
from ftrt.registry import Registry, merge

PAGE = doc_pages.read("docs/recipes.md")
SECTIONS = {
    recipes.Recipe: "Top level",
    recipes.ModelSection: "`model`",
    recipes.QuantizationSection: "`quantization`",
    recipes.CalibrationSection: "`quantization.calibration`",
    recipes.PluginSection: "Plugin sections",
    recipes.LossSection: "`losses`",
    recipes.ScheduleSection: "`losses[].schedule`",
    recipes.DataSection: "`data`",
    recipes.EarlyStoppingSection: "`early_stopping`",
}
WORDS = {str: "string", int: "integer", float: "number", bool: "true or false", typing.Any: "any"}


def sections_of(model):
    """Every section class reachable from a model, itself first."""
    found = [model]
    for field in model.model_fields.values():
        for part in walk(field.annotation):
            if isinstance(part, type) and issubclass(part, BaseModel) and part not in found:
                found += [other for other in sections_of(part) if other not in found]
    return found


def walk(annotation):
    yield annotation
    for part in typing.get_args(annotation):
        yield from walk(part)


def words(annotation):
    """A type as the page writes it."""
    arguments = [part for part in typing.get_args(annotation) if part is not type(None)]
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        return joined([f"`{value}`" for value in arguments])
    if origin in (typing.Union, types.UnionType):
        return joined([words(part) for part in arguments])
    if origin is list:
        return f"list of {words(arguments[0])}s"
    if origin is dict:
        inner = joined([f"{words(part)}s" for part in parts_of(arguments[1])])
        return "mapping" if arguments[1] is typing.Any else f"mapping of strings to {inner}"
    if annotation in WORDS:
        return WORDS[annotation]
    return {recipes.PluginSection: "plugin section", recipes.LossSection: "loss section"}.get(
        annotation, "section"
    )


def parts_of(annotation):
    return typing.get_args(annotation) or (annotation,)


def joined(names):
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def bounds(field):
    """The limits of a field, `>= 1`."""
    signs = {Gt: ">", Ge: ">=", Le: "<="}
    values = [
        f"{sign} {getattr(limit, kind.__name__.lower())}"
        for limit in field.metadata
        for kind, sign in signs.items()
        if isinstance(limit, kind)
    ]
    return f" {', '.join(values)}" if values else ""


def default_of(field):
    if field.default is PydanticUndefined:
        return "required"
    if isinstance(field.default, BaseModel):
        return "all defaults"
    value = field.default
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def test_every_section_of_the_recipe_has_a_table():
    assert set(sections_of(recipes.Recipe)) == set(SECTIONS)


@pytest.mark.parametrize("section", SECTIONS, ids=lambda model: model.__name__)
def test_every_key_stands_with_its_type_and_default(section):
    expected = [
        [f"`{name}`", words(field.annotation) + bounds(field), default_of(field)]
        for name, field in section.model_fields.items()
    ]
    table = PAGE.table(SECTIONS[section])

    assert [row[:3] for row in table.rows] == expected
    assert all(table.column("meaning"))


@pytest.mark.parametrize("block", PAGE.blocks_of("yaml"), ids=str)
def test_the_yaml_is_a_valid_recipe(block, validate):
    validate(YAML(typ="safe", pure=True).load(block.text))


def test_the_examples_run(run_page):
    run_page(PAGE)


def test_data_suffixes_are_those_of_the_reader():
    listed = [
        name for cell in PAGE.table("Data files").column("suffix") for name in code_names(cell)
    ]

    assert listed == list(SUFFIXES)


def test_answer_columns_are_those_of_the_heads():
    (line,) = re.findall(r"The head's answer columns \((.*?)\)", PAGE.text)
    heads = [Registry().find("head", name) for name in ("sequence_classification", "causal_lm")]

    assert set(code_names(line)) == {name for head in heads for name in head.answer_columns}


def test_assets_are_those_of_the_catalog():
    expected = [
        [f"`asset:{asset.name}`", asset.kind, f"{asset.package} {asset.version}"]
        for asset in ASSETS.values()
    ]

    assert PAGE.table("Assets").rows == expected


def test_reserved_training_fields_are_those_refused():
    listed = [cell.strip("`") for cell in PAGE.table("Training fields", 1).column("field")]

    assert listed == list(training.RESERVED_FIELDS)


@pytest.mark.parametrize("has_validation", [True, False])
def test_training_defaults_are_those_that_differ_from_the_trainers(has_validation, tmp_path):
    import torch
    from transformers import TrainingArguments

    head = Registry().head(recipes.PluginSection(name="sequence_classification"))
    rows = [{"input_ids": [1], "labels": 0}]
    trainer = training.build_trainer(
        torch.nn.Linear(2, 2),
        head,
        None,
        fields={"eval_steps": 7},
        output=tmp_path,
        seed=0,
        train=rows,
        validation=rows if has_validation else None,
        callbacks=(),
        param_groups=None,
        early_stopping=None,
    )
    theirs = TrainingArguments(output_dir=str(tmp_path)).to_dict()
    ours = trainer.args.to_dict()
    listed = {cell.strip("`") for cell in PAGE.table("Training fields", 0).column("field")}
    # transformers sets do_eval from eval_strategy
    own = {*training.RESERVED_FIELDS, "eval_steps", "do_eval"}
    changed = {name for name in ours if ours[name] != theirs.get(name)} - own

    assert changed - listed == set()


def test_the_run_folder_and_its_information_are_listed(desk):
    result = ftrt.train(
        {
            "model": {"path": "model"},
            "method": {"name": "lora", "rank": 2},
            "head": {"name": "sequence_classification"},
            "data": {"train": "reviews.jsonl", "max_length": 16},
            "training": {"max_steps": 1},
            "output": "run",
        }
    )
    listed = [
        name for cell in PAGE.table("The run folder").column("file") for name in code_names(cell)
    ]
    there = {path.name + "/" * path.is_dir() for path in result.run_dir.iterdir()}
    keys = [cell.strip("`") for cell in PAGE.table("The run folder", 1).column("key")]
    info = json.loads((result.run_dir / "ftrt.json").read_text(encoding="utf-8"))

    assert there - {"chat_template.jinja"} == set(listed)
    assert set(keys) == set(info)


@pytest.mark.parametrize("name", ["train", "load_run", "load_model"])
def test_functions_stand_with_their_signatures(name):
    signature = inspect.signature(getattr(ftrt, name))
    parameters = [
        p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()
    ]
    bare = signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty)

    assert f"`ftrt.{name}{bare}`".replace("'", '"') in PAGE.text


@pytest.mark.parametrize("name", ["TrainResult", "LoadedRun"])
def test_results_stand_with_all_their_fields(name):
    text = PAGE.section_text("From Python")
    item = re.search(rf"`ftrt\.{name}`:(.*?)\n- ", text, re.S)[1]

    assert set(getattr(ftrt, name).__dataclass_fields__) <= set(code_names(item))


def test_environment_variables_are_those_that_are_read():
    root = doc_pages.REPOSITORY
    files = [*root.glob("ftrt/**/*.py"), root / "setup.py"]
    source = "\n".join(file.read_text(encoding="utf-8") for file in files)
    read = set(re.findall(r'environ(?:\.get\(|\[)"(FTRT_\w+)"', source))
    listed = [cell.strip("`") for cell in PAGE.table("Environment variables").column("variable")]

    assert sorted(listed) == sorted(read)


def test_laying_a_recipe_over_another_is_what_the_page_says():
    below = {"method": {"name": "lora", "rank": 4}, "losses": [1, 2], "training": {"a": 1, "b": 2}}
    above = {"method": {"name": "full"}, "losses": [3], "training": {"b": 3}}

    assert merge(below, above) == {
        "method": {"name": "full"},
        "losses": [3],
        "training": {"a": 1, "b": 3},
    }
