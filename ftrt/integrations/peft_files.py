"""Reading PEFT's adapter files; every fault is a `CheckpointError` that names the file."""

__all__ = ["check_base", "check_tensors", "read_config", "read_tensors"]

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ftrt.checkpoint import RUN_INFO, base_fingerprint, read_run_info
from ftrt.errors import CheckpointError, explain_os_error, suggest

# Enough of a fingerprint to tell two apart in a message.
SHOWN_DIGITS = 16


def read_config(folder: Path) -> PeftConfig:
    """The adapter's config.

    Raises:
        CheckpointError: the file is missing, is not JSON, names an unknown method, or PEFT refuses
            its values.
    """
    file = folder / CONFIG_NAME
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder}: must be an adapter folder with {CONFIG_NAME}; {_what_is(folder)}"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file}: must be JSON; {error}") from None
    except OSError as error:
        raise CheckpointError(f"{file}: must be readable; {explain_os_error(error)}") from None
    kind = tree.get("peft_type") if isinstance(tree, dict) else None
    known = [str(getattr(key, "value", key)) for key in PEFT_TYPE_TO_CONFIG_MAPPING]
    if kind not in known:
        hint = suggest(kind, known) if isinstance(kind, str) else ""
        raise CheckpointError(
            f"{file}: peft_type must be one that PEFT or ftrt has; got {kind!r}{hint}"
        )
    try:
        config: PeftConfig = PEFT_TYPE_TO_CONFIG_MAPPING[kind].from_pretrained(str(folder))
    except (TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{file}: must hold a valid {kind} config; {error}") from error
    return config


def _what_is(folder: Path) -> str:
    if not folder.is_dir():
        return "it is a file" if folder.exists() else "it does not exist"
    inside = sorted(entry.parent.name for entry in folder.glob(f"*/{CONFIG_NAME}"))
    return (
        f"it has none itself but holds the adapters {', '.join(inside)}"
        if inside
        else "it has none"
    )


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """The adapter's tensors by their saved name.

    Raises:
        CheckpointError: the file is missing, cut short or corrupt, or a value is not finite.
    """
    file = folder / SAFETENSORS_WEIGHTS_NAME
    if not file.is_file():
        pickled = (
            f"; {WEIGHTS_NAME} is a pickle, which ftrt does not read"
            if (folder / WEIGHTS_NAME).exists()
            else ""
        )
        raise CheckpointError(
            f"{file}: the adapter's weights must be there; the file is missing{pickled}"
        )
    try:
        tensors: dict[str, Tensor] = load_file(file)
    except SafetensorError as error:
        raise CheckpointError(
            f"{file}: must be a whole safetensors file; it is cut short or corrupt: {error}"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{file}: must be readable; {explain_os_error(error)}") from None
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"{file}: every value must be finite; {name} holds NaN or infinity"
            )
    return tensors


def check_base(model: nn.Module, folder: Path) -> None:
    """Refuse a base other than the one that `ftrt.json` beside the adapter says it was trained on.

    Raises:
        CheckpointError: the fingerprints differ; the message has both.
    """
    info = read_run_info(folder)
    expected = (info or {}).get("base", {}).get("fingerprint")
    if expected is None:
        return
    found = base_fingerprint(model)
    if found != expected:
        raise CheckpointError(
            f"{folder / RUN_INFO}: wrong base model: the adapter was trained on fingerprint"
            f" {expected[:SHOWN_DIGITS]}; this model's is {found[:SHOWN_DIGITS]}. Load the base"
            f" that {(info or {}).get('base', {}).get('path') or 'it was trained on'} names"
        )


def check_tensors(
    folder: Path,
    tensors: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    rest: Mapping[str, Tensor],
) -> None:
    """Refuse tensors that do not fit the model exactly.

    Args:
        folder: where they were read.
        tensors: what the file holds.
        expected: what the adapter on this model would save.
        rest: the model's other state; a file may hold some of it too (embeddings of a grown
            vocabulary).

    Raises:
        CheckpointError: a shape differs, a tensor is missing, or there is one the model has no
            place for.
    """
    file = folder / SAFETENSORS_WEIGHTS_NAME
    places = {**rest, **expected}
    for name, tensor in tensors.items():
        if name in places and places[name].shape != tensor.shape:
            raise CheckpointError(
                f"{file}: {name}: must have shape {tuple(places[name].shape)} on this base; got"
                f" {tuple(tensor.shape)}. The adapter belongs to another base, or its config was"
                " edited"
            )
    _refuse(
        file,
        [name for name in expected if name not in tensors],
        "lacks",
        "and the adapter is incomplete",
    )
    surplus = [name for name in tensors if name not in places]
    _refuse(
        file,
        surplus,
        "holds",
        "that this base has no place for; the adapter belongs to another base",
    )


def _refuse(file: Path, names: list[str], verb: str, consequence: str) -> None:
    if names:
        more = f" and {len(names) - 1} more tensors" if len(names) > 1 else ""
        raise CheckpointError(
            f"{file}: must hold exactly this adapter's tensors; it {verb} {names[0]}{more}"
            f" {consequence}"
        )
