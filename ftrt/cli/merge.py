"""`ftrt merge`."""

__all__ = ["app"]

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ftrt.cli.eval import BaseOption
from ftrt.cli.output import JsonFlag, console, emit

app = typer.Typer()


@app.command()
def merge(
    run: Annotated[
        Path, typer.Argument(help="The run folder, with an adapter.", show_default=False)
    ],
    output: Annotated[
        Path, typer.Argument(help="Where the merged model goes.", show_default=False)
    ],
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="Dtype of the merged weights.")
    ] = "float32",
    base: BaseOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Write a run's adapter into its base model: a plain transformers folder, no adapter, no ftrt
    needed.

    The adapter is added to the base's original float weights; the int8 rounding is not baked in. A
    method that cannot be merged is refused by name.

      ftrt merge runs/demo merged --dtype bfloat16
    """
    from ftrt.runtime import merge_run

    folder = merge_run(run, output, base=base, dtype=dtype)
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    emit({"output": str(folder), "dtype": dtype, "size_bytes": size}, as_json=as_json, render=_show)


def _show(result: Mapping[str, Any]) -> None:
    console().print(f"merged model in {result['output']}, {result['size_bytes'] / 2**20:,.0f} MiB")
