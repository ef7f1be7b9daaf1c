"""`ftrt schema`: what an editor needs to complete and check a recipe."""

__all__ = ["app", "recipe_schema"]

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ftrt.cli.output import JsonFlag, print_json
from ftrt.errors import FtrtError, UsageError, one_line

app = typer.Typer()

TASK_TERM = {
    "type": "object",
    "title": "task",
    "description": "The student's own loss.",
    "required": ["name"],
    "additionalProperties": False,
}


@app.command()
def schema(
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Write it to this file.", show_default=False),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Print the JSON Schema of a recipe, with the options of every installed plugin.

    Editors use it to complete and check recipes; in VS Code, put this line at the top of one:

      # yaml-language-server: $schema=recipe.schema.json

    A plugin that cannot be imported is left out and named in "$comment".

      ftrt schema --out recipe.schema.json
    """
    if out is not None and not out.parent.is_dir():
        raise UsageError(f"--out {out}: its folder must exist; got {out.parent}")
    found = recipe_schema()
    if out is not None:
        out.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        if as_json:
            print_json({"file": str(out)})
        else:
            typer.echo(f"wrote {out}")
    elif as_json:
        print_json(found)
    else:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))


def recipe_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of `ftrt.recipe.Recipe` with what is installed filled in."""
    from ftrt.integrations.transformers_training import training_schema
    from ftrt.recipe import Recipe

    tree: dict[str, Any] = Recipe.model_json_schema()
    definitions: dict[str, Any] = tree["$defs"]
    own = definitions["LossSection"]["properties"]
    weight = {"weight": own["weight"], "schedule": own["schedule"]}
    faults = [
        fault
        for kind in ("method", "head", "signal", "recipe", "transform")
        for fault in _define(kind, definitions, {})
    ]
    teacher = {
        "anyOf": [{"type": "string"}, {"$ref": "#/$defs/signal"}, {"type": "null"}],
        "description": "The teacher: a model or run folder, or a signal source.",
    }
    faults += _define("loss", definitions, {**weight, "teacher": teacher})
    task = {**TASK_TERM, "properties": {"name": {"const": "task"}, **weight}}
    definitions["loss"].setdefault("oneOf", []).insert(0, task)
    for unused in ("LossSection", "PluginSection"):
        definitions.pop(unused, None)

    sections = tree["properties"]
    for kind in ("method", "head", "recipe"):
        sections[kind]["anyOf"][0] = {"$ref": f"#/$defs/{kind}"}
    sections["losses"]["items"] = {"$ref": "#/$defs/loss"}
    data = definitions["DataSection"]["properties"]
    data["transforms"]["items"] = {"$ref": "#/$defs/transform"}
    sections["training"] = {**training_schema(), "description": sections["training"]["description"]}
    comment = {"$comment": "left out: " + " | ".join(faults)} if faults else {}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **comment, **tree}


def _define(kind: str, definitions: dict[str, Any], own: dict[str, Any]) -> list[str]:
    """Put `kind` into `definitions`, one alternative a plugin; return what had to be left out."""
    from ftrt.registry import Registry

    registry = Registry()
    alternatives, faults = [], []
    names: set[str] = set()
    for offer in registry.manager.manifest.offers:
        if offer.kind == kind:
            try:
                names.update(registry.manager.members(offer, kind))
            except FtrtError as error:
                faults.append(str(error))
    for name in sorted(names):
        try:
            found = registry.find(kind, name)
            alternatives.append(_alternative(kind, name, found, definitions, own))
        except FtrtError as error:
            faults.append(str(error))
        except Exception as error:
            # pydantic has several classes for a Config that has no JSON Schema (a callable field).
            faults.append(f"{kind} {name!r}: its Config has no JSON Schema; {one_line(error)}")
    definitions[kind] = {"oneOf": alternatives} if alternatives else {"not": {}}
    if kind == "loss" and not alternatives:
        definitions[kind] = {}
    return faults


def _alternative(
    kind: str, name: str, found: type[Any], definitions: dict[str, Any], own: dict[str, Any]
) -> dict[str, Any]:
    template = f"#/$defs/{kind}.{name}.{{model}}"
    options = found.Config.model_json_schema(ref_template=template)
    for key, inner in options.pop("$defs", {}).items():
        definitions[f"{kind}.{name}.{key}"] = inner
    summary = (found.__doc__ or "").strip().partition("\n\n")[0]
    return {
        "type": "object",
        "title": name,
        "description": " ".join(summary.split()),
        "properties": {"name": {"const": name}, **own, **options.get("properties", {})},
        "required": ["name", *options.get("required", [])],
        "additionalProperties": False,
    }
