"""How the int8 layers of a run compute: measured once, kept with the run, put back with it."""

__all__ = [
    "LAYERS",
    "Calibration",
    "check_layers",
    "choose_computes",
    "on_batches",
    "on_rows",
    "read_layers",
    "restore_layers",
    "write_layers",
]

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ftrt import checkpoint
from ftrt.api import Head
from ftrt.data import encode_split
from ftrt.data.rows import Row
from ftrt.errors import CheckpointError, ConfigError
from ftrt.nn.layer_report import layer_report
from ftrt.quantization.calibration import calibrate
from ftrt.quantization.choices import LayerChoice
from ftrt.quantization.int8_layers import apply_choices, int8_layers
from ftrt.recipe import QuantizationSection, Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# In the run folder from the first step on: a run that is resumed computes as it did before.
LAYERS = "layers.json"
# Sequences that run together; small, because one batch of them is also run backward.
BATCH = 4

logger = logging.getLogger(__name__)

# Decides how the w8a8 layers of a quantized base compute, before it gets an adapter.
Calibration = Callable[[nn.Module], None]


def choose_computes(
    model: nn.Module, section: QuantizationSection | None, calibration: Calibration | None
) -> None:
    """Let `calibration` decide; without one, w8a8 layers stay as they are and a warning says so."""
    if section is None or section.compute != "w8a8":
        return
    if calibration is not None:
        calibration(model)
        return
    logger.warning(
        "quantization.compute is w8a8 and nothing was calibrated: every int8 layer quantizes its"
        " input per token, whatever the error. Give attach `calibration=` some batches, or call"
        " ftrt.calibrate(model, batches)"
    )


def on_batches(section: QuantizationSection | None, batches: Iterable[Any]) -> Calibration:
    """Calibrate on these batches, within the recipe's bounds."""

    def run(model: nn.Module) -> None:
        if section is not None:
            bounds = section.calibration
            calibrate(
                model,
                batches,
                max_error=bounds.max_error,
                max_gradient_error=bounds.max_gradient_error,
                max_outliers=bounds.max_outliers,
                max_sequences=bounds.sequences,
            )

    return run


def on_rows(
    recipe: Recipe, head: Head, tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Row]
) -> Calibration:
    """Calibrate on rows spread over the training split, encoded as training encodes them."""
    section = recipe.quantization

    def batches() -> Iterable[Any]:
        count = section.calibration.sequences if section is not None else 0
        # a file may be sorted by label, so the first rows alone would not do
        chosen = rows[:: max(1, len(rows) // count)][:count]
        encoded = encode_split(head, chosen, tokenizer, max_length=recipe.data.max_length)
        for start in range(0, len(encoded), BATCH):
            places = range(start, min(start + BATCH, len(encoded)))
            yield head.collate([encoded[place] for place in places], tokenizer)

    return on_batches(section, batches())


def restore_layers(model: nn.Module, layers: Any, where: str) -> None:
    """Let the int8 layers of `model` compute as recorded.

    Args:
        model: the quantized base, with or without adapters.
        layers: what `layer_report` says as JSON; None where an older ftrt recorded nothing.
        where: the file they were read from.

    Raises:
        CheckpointError: they are no such list, or not of this model, or leave out a layer.
    """
    if layers is None:
        return
    recorded = [layer for layer in check_layers(layers, where) if layer.get("kind") == "int8"]
    try:
        choices = [LayerChoice.from_json(layer, where=where) for layer in recorded]
        apply_choices(model, choices, where=where)
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    lacking = sorted(set(int8_layers(model)) - {choice.name for choice in choices})
    if lacking:
        raise CheckpointError(
            f"{where}: must say how every int8 layer computes; got {len(choices)} of"
            f" {len(choices) + len(lacking)}, without {lacking[0]}. The file is damaged, or the"
            " recipe's quantization has changed"
        )


def check_layers(layers: Any, where: str) -> list[dict[str, Any]]:
    """`layers` as it is, if it is a list of JSON objects.

    Raises:
        CheckpointError: it is not.
    """
    if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
        raise CheckpointError(f"{where}: must be the JSON that ftrt wrote; got no list of layers")
    return layers


def write_layers(folder: Path, model: nn.Module) -> None:
    """Keep how the layers compute in the run folder, for `read_layers`."""
    layers = [layer.to_json() for layer in layer_report(model)]
    checkpoint.write_atomically(folder / LAYERS, json.dumps(layers, indent=2) + "\n")


def read_layers(folder: Path) -> Calibration | None:
    """Puts back what `write_layers` kept in the run folder; None where it kept nothing.

    Raises:
        CheckpointError: the file is damaged.
    """
    file = folder / LAYERS
    try:
        layers = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: must be the JSON that ftrt wrote; {error}") from None
    check_layers(layers, str(file))
    return lambda model: restore_layers(model, layers, str(file))
