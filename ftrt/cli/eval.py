"""`ftrt eval`."""

__all__ = ["app"]

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ftrt.cli.output import JsonFlag, emit, table

app = typer.Typer()

BaseOption = Annotated[
    str | None,
    typer.Option(help="Where the base model is, if it moved since training.", show_default=False),
]


@app.command("eval")
def evaluate(
    run: Annotated[Path, typer.Argument(help="The run folder.", show_default=False)],
    data: Annotated[
        str | None,
        typer.Option(help="Rows to measure: a file or asset:NAME.", show_default=False),
    ] = None,
    split: Annotated[
        Literal["train", "validation", "test"] | None,
        typer.Option(
            help="Which split of the run's own data; test, or validation without one.",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows at a time.")] = 32,
    base: BaseOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure a run on its held-out split, or on a file.

    The run folder says how the base is read, quantized and split, so the figure is the one training
    reported.

      ftrt eval runs/demo

      ftrt eval runs/demo --data more.jsonl --json
    """
    from ftrt.runtime import evaluate_run

    result = evaluate_run(run, data=data, split=split, batch_size=batch_size, base=base)
    emit(result, as_json=as_json, render=_show)


def _show(result: Mapping[str, Any]) -> None:
    table(
        ("metric", "value"),
        [(k, f"{v:.4f}" if isinstance(v, float) else v) for k, v in sorted(result.items())],
    )
