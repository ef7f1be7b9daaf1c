"""How the layers of a run compute, as `ftrt doctor RUN_DIR` shows it."""

__all__ = ["show_layers", "summary_of"]

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ftrt.cli.output import console, table
from ftrt.errors import CheckpointError


def summary_of(folder: Path) -> dict[str, Any]:
    """What the run's `ftrt.json` says of its layers: `path`, `summary` and `layers`.

    Raises:
        CheckpointError: not a finished run, or of an ftrt that recorded no layers.
    """
    from ftrt import checkpoint
    from ftrt.nn.layer_report import summarize

    info = checkpoint.read_run_info(folder)
    if info is None:
        raise CheckpointError(
            f"{folder}: must be a run folder with {checkpoint.RUN_INFO}; it has none"
        )
    layers = info.get("layers")
    if not isinstance(layers, list):
        raise CheckpointError(
            f"{folder / checkpoint.RUN_INFO}: must say how the layers compute; ftrt"
            f" {info.get('ftrt_version')} made the run and did not record it"
        )
    return {"path": str(folder), "summary": summarize(layers), "layers": layers}


def show_layers(run: Mapping[str, Any]) -> None:
    """A table with a line a layer, then the summary."""
    columns = ("layer", "weight", "compute", "outliers", "error", "adapter", "run by", "why")
    table(columns, map(_row, run["layers"]), title=f"layers of {run['path']}, as they were trained")
    console().print(run["summary"] or "no layer is int8 or carries an adapter")


def _row(layer: Mapping[str, Any]) -> Sequence[Any]:
    error = layer.get("error")
    return (
        layer["name"],
        layer["kind"],
        layer["compute"],
        len(layer["outliers"]) or "",
        "" if error is None else f"{error:.4f}",
        layer["adapter"],
        layer["implementation"],
        "; ".join(filter(None, (layer.get("reason"), layer.get("adapter_reason")))),
    )
