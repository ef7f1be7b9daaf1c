"""`ftrt plugins`: what is installed, what one is, whether one works, and how to start one."""

__all__ = ["app"]

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ftrt.cli import show_help_without_command
from ftrt.cli.output import JsonFlag, console, emit, table
from ftrt.errors import PluginError, UsageError, suggest
from ftrt.hookspecs import KINDS
from ftrt.manifest import Manifest, Offer, discover

app = typer.Typer()

MARKS = {True: ("ok  ", "green"), False: ("FAIL", "bold red"), None: ("skip", "yellow")}

KindOption = Annotated[
    str | None,
    typer.Option("--kind", metavar="KIND", help=f"One of {', '.join(KINDS)}."),
]


@app.callback(invoke_without_command=True)
def plugins(ctx: typer.Context) -> None:
    """List, explain, check and create plugins.

    A plugin is any installed distribution with entry points in the group `ftrt`. Listing reads
    metadata only; a plugin is imported when a recipe, or `info`, names it.
    """
    show_help_without_command(ctx)


@app.command("list")
def list_plugins(kind: KindOption = None, as_json: JsonFlag = False) -> None:
    """Show every installed plugin, without importing any.

    Names that two distributions offer are marked; using one is an error that says which to
    uninstall. Entry points that cannot be read are shown below the table.
    """
    _require_kind(kind)
    manifest = discover()
    clashing = manifest.duplicates()
    rows = [
        {
            "kind": offer.kind,
            "name": offer.name,
            "distribution": offer.distribution,
            "version": offer.version,
            "module": offer.module,
            "duplicate": (offer.kind, offer.name) in clashing,
        }
        for offer in manifest.offers
        if kind in (None, offer.kind)
    ]
    emit(
        {"plugins": rows, "malformed": list(manifest.malformed)},
        as_json=as_json,
        render=_show_list,
    )


@app.command()
def info(
    name: Annotated[str, typer.Argument(help="What a recipe calls it.", show_default=False)],
    kind: KindOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Explain one plugin: its source and the options a recipe may give. Imports it.

    The name of a family, say 'peft:*', lists its members.
    """
    from ftrt.cli.inspection import describe_family, describe_plugin

    _require_kind(kind)
    offer = _choose(discover(), name, kind)
    if offer.is_family and offer.name == name:
        emit(describe_family(offer.kind, name), as_json=as_json, render=_show_family)
    else:
        emit(describe_plugin(offer.kind, name), as_json=as_json, render=_show_info)


@app.command()
def check(
    module: Annotated[
        str,
        typer.Argument(
            help="A module on the path, in this folder or in ./src; it need not be installed.",
            show_default=False,
        ),
    ],
    rows: Annotated[
        Path | None,
        typer.Option(help="Rows to try heads with: a data file.", show_default=False),
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME.KEY=VALUE",
            help="An option to try the class NAME with: --set shiny.rank=4. May be repeated.",
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Check a plugin module: hook version, hooks, contracts, and ftrt's conformance kit.

    Each method, head and loss the module registers is tried on toy models by `ftrt.testing`. Exit
    code 6 if anything fails.

      ftrt plugins check ftrt_example.example --set example.rank=4
    """
    from ftrt.cli.conformance import CheckOptions, check_module
    from ftrt.recipe import override

    results = check_module(module, CheckOptions(override({}, options or []), rows))
    passed = all(result["ok"] is not False for result in results)
    answer = {"module": module, "passed": passed, "results": results}
    emit(answer, as_json=as_json, render=_show_check)
    if not passed:
        raise typer.Exit(PluginError.exit_code)


@app.command()
def new(
    name: Annotated[
        str,
        typer.Argument(
            help="What recipes will call it: lower case, digits, _.", show_default=False
        ),
    ],
    kind: Annotated[
        str, typer.Option("--kind", metavar="KIND", help="One of method, head, loss.")
    ] = "method",
    folder: Annotated[
        Path, typer.Option("--dir", help="Where to put the new folder ftrt-NAME.")
    ] = Path(),
    as_json: JsonFlag = False,
) -> None:
    """Write a complete, tested distribution to start a plugin from.

    It has a working method, head or loss term, its test with the conformance kit, a README with the
    method card and an example recipe. Next: `pip install -e ftrt-NAME`, then `pytest ftrt-NAME`.
    """
    from ftrt.cli.skeleton import write

    files = write(name, kind, folder, discover())
    answer = {"folder": str(files[0].parent), "files": [str(file) for file in files]}
    emit(answer, as_json=as_json, render=_show_new)


def _require_kind(kind: str | None) -> None:
    if kind is not None and kind not in KINDS:
        raise UsageError(
            f"--kind: must be one of {', '.join(KINDS)}; got {kind!r}{suggest(kind, KINDS)}"
        )


def _choose(manifest: Manifest, name: str, kind: str | None) -> Offer:
    if kind is not None:
        return manifest.find(kind, name)
    kinds = sorted({offer.kind for offer in manifest.offers if offer.covers(name)})
    if len(kinds) > 1:
        raise UsageError(
            f"{name!r}: one plugin must have that name, or --kind must say which; got"
            f" {' and '.join(f'a {found}' for found in kinds)}; add --kind {kinds[0]}"
        )
    if not kinds:
        known = {offer.name for offer in manifest.offers}
        raise PluginError(
            f"{name!r}: an installed plugin must offer it; none does{suggest(name, known)}"
            " (`ftrt plugins list` shows what is installed)"
        )
    return manifest.find(kinds[0], name)


def _show_list(answer: Mapping[str, Any]) -> None:
    screen = console()
    if answer["plugins"]:
        table(
            ("kind", "name", "distribution", "version", "module", ""),
            [
                (*list(row.values())[:5], "DUPLICATE" if row["duplicate"] else "")
                for row in answer["plugins"]
            ],
        )
    else:
        screen.print("No plugin is installed. Those of ftrt: pip install ftrt-lowrank ftrt-heads")
    for text in answer["malformed"]:
        screen.print(f"malformed: {text}")


def _show_info(answer: Mapping[str, Any]) -> None:
    screen = console()
    screen.print(f"{answer['kind']} {answer['name']}: {answer['summary']}")
    for key in ("source", "distribution", "version", "module", "file", *answer["facts"]):
        value = answer["facts"].get(key, answer.get(key))
        if value not in (None, ""):
            screen.print(f"  {key}: {value}")
    if answer["options"]:
        table(
            ("option", "type", "default", ""),
            [
                (o["name"], o["type"], "required" if o["required"] else o["default"], o["help"])
                for o in answer["options"]
            ],
        )
    else:
        screen.print("  no options")


def _show_family(answer: Mapping[str, Any]) -> None:
    console().print(f"{answer['kind']} {answer['name']}: {answer['distribution']} offers")
    table(("name", "what it is"), [tuple(member.values()) for member in answer["members"]])


def _show_check(answer: Mapping[str, Any]) -> None:
    screen = console()
    for result in answer["results"]:
        mark, style = MARKS[result["ok"]]
        screen.print(mark, style=style, end=" ")
        screen.print(f"{result['subject']}: {result['check']}", end="")
        screen.print(f": {result['message']}" if result["message"] else "")


def _show_new(answer: Mapping[str, Any]) -> None:
    screen = console()
    for file in answer["files"]:
        screen.print(f"wrote {file}")
    folder = answer["folder"]
    screen.print(f"next: pip install -e {folder}   then   pytest {folder}")
