"""`ftrt predict`."""

__all__ = ["app"]

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ftrt.cli.eval import BaseOption
from ftrt.cli.output import JsonFlag, print_json
from ftrt.errors import UsageError

app = typer.Typer()


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="The run folder.", show_default=False)],
    text: Annotated[
        list[str] | None,
        typer.Option(help="A text to answer; may be repeated. Fills the head's first column."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="A jsonl, csv or parquet file with the run's columns.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write the answers to this jsonl file instead of stdout.", show_default=False
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows at a time.")] = 32,
    base: BaseOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Answer rows with a trained run: labels with probabilities, or generated text.

    One JSON object a line, in the order of the rows.

      ftrt predict runs/demo --text "a joy from start to finish"

      ftrt predict runs/sft --data questions.jsonl --out answers.jsonl
    """
    if bool(text) == (data is not None):
        raise UsageError("ftrt predict: give rows by --text or by --data, one of the two")
    if out is not None:
        _check_out(out)
    from ftrt.runtime import predict_run

    rows: Any = data if data is not None else list(text or [])
    answers = predict_run(run, rows, base=base, batch_size=batch_size)
    if out is not None:
        from ftrt.checkpoint import write_atomically

        write_atomically(out, "".join(f"{_line(answer)}\n" for answer in answers))
    if as_json:
        print_json({"rows": len(answers), "out": out, **({} if out else {"predictions": answers})})
    elif out is None:
        for answer in answers:
            _echo(_line(answer))


def _check_out(out: Path) -> None:
    """Refuse a place that cannot be written before the answers are made, not after."""
    if out.exists() and not out.is_file():
        raise UsageError(f"--out {out}: must be a file; something else stands there")
    if not os.access(out.resolve().parent, os.W_OK):
        raise UsageError(f"--out {out}: its folder must exist and be writable")


def _line(answer: Mapping[str, Any]) -> str:
    return json.dumps(answer, ensure_ascii=False)


def _echo(line: str) -> None:
    try:
        typer.echo(line)
    except UnicodeEncodeError:
        # a terminal that is not UTF-8 gets the same JSON in ASCII
        typer.echo(json.dumps(json.loads(line)))
