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
        CheckpointError: not a finished run, or of an ftrt that recorded no layers, or a damaged
            record.
    """
    from ftrt import checkpoint
    from ftrt.nn.layer_report import LayerReport, summarize
    from ftrt.runtime.calibration import check_layers
    from ftrt.runtime.load import read_info

    info = read_info(folder)
    file = folder / checkpoint.RUN_INFO
    if info.get("layers") is None:
        raise CheckpointError(
            f"{file}: must say how the layers compute; ftrt {info.get('ftrt_version')} made the run"
            " and did not record it"
        )
    rows = check_layers(info["layers"], str(file))
    layers = [LayerReport.from_json(row, where=str(file)) for row in rows]
    return {
        "path": str(folder),
        "summary": summarize(layers),
        "layers": [layer.to_json() for layer in layers],
    }


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
