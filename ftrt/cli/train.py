"""`ftrt train`."""

__all__ = ["app"]

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ftrt.cli.output import JsonFlag, console, emit, table
from ftrt.cli.progress import listener

app = typer.Typer()


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a value of the recipe: --set method.rank=8. May be repeated.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on from the newest checkpoint in the output folder."),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run that stands in the output folder.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Fine-tune a model as a recipe says, and write a run folder.

    The recipe names the model, the method, the head, the data and the output folder; `ftrt schema`
    describes every key, `ftrt plugins list` every name that can be used. The folder gets the
    adapter (PEFT's files) or the full model, ftrt.json, metrics.jsonl, loss.png and a model card.

    Ctrl-C finishes the step, saves a checkpoint and stops; the same command with --resume goes on.

      ftrt train recipes/demo.yaml

      ftrt train recipe.yaml --set method.rank=8 --set training.learning_rate=2e-4
    """
    from ftrt.runtime import train as run

    result = run(
        recipe, overrides or [], resume=resume, overwrite=overwrite, listener=listener()
    ).to_json()
    emit(result, as_json=as_json, render=_show)


def _show(result: Mapping[str, Any]) -> None:
    before, after = result["before"], result["after"]
    if after:
        rows = [
            (name, _number(before.get(name)), _number(after.get(name)))
            for name in sorted(set(before) | set(after))
        ]
        table(("held-out", "before", "after"), rows)
    folder = Path(result["run_dir"])
    out = console()
    out.print(
        f"{result['trainable_parameters']:,} of {result['all_parameters']:,} parameters trained,"
        f" {result['steps']} steps in {result['train_seconds']:.0f} s,"
        f" {result['tokens_per_second']:,.0f} tokens/s,"
        f" peak memory {result['peak_memory_bytes'] / 2**30:.2f} GiB"
    )
    files = sorted(
        file for file in folder.iterdir() if file.is_file() and not file.name.startswith(".")
    )
    out.print(f"saved in {folder}:")
    for file in files:
        out.print(f"  {file.name:<28}{file.stat().st_size / 1024:>10,.0f} KiB")
    out.print(
        f"next: ftrt eval {folder}   ftrt predict {folder} --text ...   ftrt merge {folder} OUT"
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
