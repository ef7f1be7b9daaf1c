"""`ftrt merge`."""

__all__ = ["app"]

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ftrt.cli.eval import BaseOption
from ftrt.cli.output import JsonFlag, console, emit, table

app = typer.Typer()

# Layers that `ftrt merge` prints one by one, those that keep least; --json has all.
SHOWN_LAYERS = 5


@app.command()
def merge(
    run: Annotated[
        Path, typer.Argument(help="The run folder, with an adapter.", show_default=False)
    ],
    output: Annotated[
        Path, typer.Argument(help="Where the merged model goes.", show_default=False)
    ],
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16", "int8"],
        typer.Option(help="Dtype of the merged weights."),
    ] = "float32",
    min_retained: Annotated[
        float | None,
        typer.Option(
            help="int8: refuse if less than this share (0..1) of the gain survives.",
            show_default="0.9",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="int8: write the model however little survives.")
    ] = False,
    evaluate: Annotated[
        bool,
        typer.Option("--eval/--no-eval", help="int8: measure the gain on the run's held-out rows."),
    ] = True,
    base: BaseOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Write a run's adapter into its base model: a plain transformers folder, no adapter, no ftrt
    needed.

    The adapter is added to the base's original float weights; the int8 rounding is not baked in. A
    method that cannot be merged is refused by name.

    With --dtype int8 the merged weights are rounded to int8, which loses a part of a small adapter.
    How much is measured, and below --min-retained nothing is written: the share of what the adapter
    gained on held-out rows, or, where there are none, of its weights. The folder is an LLM.int8
    checkpoint, which bitsandbytes reads too, and a run folder: `ftrt eval OUTPUT` measures it.

      ftrt merge runs/demo merged --dtype bfloat16

      ftrt merge runs/demo merged-int8 --dtype int8 --min-retained 0.95
    """
    from ftrt.runtime import merge_run

    result = merge_run(
        run,
        output,
        base=base,
        dtype=dtype,
        min_retained=min_retained,
        force=force,
        evaluate=evaluate,
    )
    size = sum(file.stat().st_size for file in result.folder.iterdir() if file.is_file())
    report = result.to_json() if dtype == "int8" else {"dtype": dtype}
    emit(
        {"output": str(result.folder), "size_bytes": size, **report},
        as_json=as_json,
        render=_show,
    )


def _show(result: Mapping[str, Any]) -> None:
    out = console()
    if result["dtype"] == "int8":
        layers = sorted(result["layers"], key=lambda layer: float(layer["retained"]))
        rows = [*layers[:SHOWN_LAYERS], {"name": "all adapted layers", **result["delta"]}]
        table(
            ("layer (those that keep least)", "retained", "projection", "residual"),
            [
                (r["name"], *(f"{r[k]:.3f}" for k in ("retained", "projection", "residual")))
                for r in rows
            ],
        )
        if result["gain"] is not None:
            out.print(_gain_line(result["gain"]))
    out.print(f"merged model in {result['output']}, {result['size_bytes'] / 2**20:,.0f} MiB")


def _gain_line(gain: Mapping[str, Any]) -> str:
    kept = "the adapter gains nothing" if gain["share"] is None else f"{gain['share']:.1%} kept"
    return (
        f"{gain['metric']} on {gain['rows']} {gain['split']} rows: {gain['base']:.4f} without the"
        f" adapter, {gain['adapter']:.4f} with it, {gain['merged']:.4f} merged: {kept}"
    )
