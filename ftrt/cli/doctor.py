"""`ftrt doctor`: what works on this machine, and how to mend what does not."""

__all__ = ["app"]

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ftrt.cli.output import JsonFlag, console, emit, table
from ftrt.errors import PluginError

app = typer.Typer()


@app.command()
def doctor(
    run_dir: Annotated[
        Path | None, typer.Argument(help="Also show how each layer of this run computes.")
    ] = None,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="End with code 6 for a plugin fault, 1 for another problem."),
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Say what works on this machine, and how to mend what does not.

    Shows versions, which implementation of each op runs where, compiler, processor, GPU, memory and
    cache, and imports every installed plugin. Each problem comes with its fix. The exit code is 0
    whatever is found, unless --strict. With a run folder, also a table of its layers: which are
    int8, what they compute, with how many outlier columns and what error, and what ran them.
    """
    from ftrt.cli.diagnosis import diagnose
    from ftrt.cli.run_layers import summary_of

    run = {"run": summary_of(run_dir.expanduser())} if run_dir is not None else {}
    findings = diagnose()
    problems = [finding for finding in findings if finding.problem]
    emit(
        {"healthy": not problems, "findings": [finding.to_json() for finding in findings], **run},
        as_json=as_json,
        render=_show,
    )
    if strict and problems:
        is_plugin = any(finding.area == "plugins" for finding in problems)
        raise typer.Exit(PluginError.exit_code if is_plugin else 1)


def _show(answer: Mapping[str, Any]) -> None:
    findings = answer["findings"]
    table(
        ("", "", ""),
        [(finding["area"], finding["name"], finding["value"] or "PROBLEM") for finding in findings],
    )
    screen = console()
    for finding in findings:
        if finding["problem"]:
            screen.print("problem: ", style="bold red", end="")
            screen.print(f"{finding['name']}: {finding['problem']}")
            if finding["fix"]:
                screen.print(f"    fix: {finding['fix']}")
    if answer["healthy"]:
        screen.print("no problem found", style="green")
    if "run" in answer:
        from ftrt.cli.run_layers import show_layers

        show_layers(answer["run"])
