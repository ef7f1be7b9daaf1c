"""The run folder: what a run writes beside the weights, and how a base model is recognised again.

A run folder holds PEFT's adapter files or a full model, the tokenizer, `ftrt.json` (everything
needed to read it back and to know where it came from), `metrics.jsonl`, `loss.png`, a model card
and `checkpoints/`.
"""

__all__ = [
    "CHECKPOINTS",
    "METRICS",
    "RUN_INFO",
    "base_fingerprint",
    "is_disk_full",
    "last_checkpoint",
    "prepare_output",
    "read_run_info",
    "write_atomically",
    "write_run_info",
]

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ftrt.errors import CheckpointError, explain_os_error

RUN_INFO = "ftrt.json"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
RUN_INFO_VERSION = 1

# At most this many embedding rows are hashed: enough to tell models apart, little enough for a 128k
# vocabulary.
FINGERPRINT_ROWS = 4096

# A disk with less than this left counts as full: a failed write may have freed its own last blocks.
FULL_DISK_BYTES = 1 << 20

ARCHITECTURE_KEYS = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "vocab_size",
)


def base_fingerprint(model: nn.Module) -> str:
    """Identity of the base under any adapter: sha256 over its architecture and its input
    embeddings.

    Adapters freeze the embeddings and int8 leaves them in float, so the fingerprint is the same for
    the float and the int8 base, for any float dtype (values are compared as bfloat16), and with or
    without an adapter.
    """
    config = getattr(model, "config", None)
    facts = {key: getattr(config, key, None) for key in ARCHITECTURE_KEYS}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    weight = _embedding_weight(model)
    if weight is not None:
        rows = torch.linspace(0, weight.shape[0] - 1, min(weight.shape[0], FINGERPRINT_ROWS)).long()
        sample = weight.detach()[rows.to(weight.device)].to(torch.bfloat16).cpu().contiguous()
        digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _embedding_weight(model: nn.Module) -> torch.Tensor | None:
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    embeddings = getattr(embeddings, "base_layer", embeddings)
    weight: torch.Tensor | None = getattr(embeddings, "weight", None)
    if weight is None or weight.ndim != 2 or not weight.is_floating_point() or weight.is_meta:
        return None
    return weight


def prepare_output(path: Path, *, resume: bool, overwrite: bool) -> None:
    """Make `path` the run folder.

    Raises:
        CheckpointError: it holds a run already and neither `resume` nor `overwrite` says what to
            do; it is a file; it cannot be written.
    """
    if path.exists() and not path.is_dir():
        raise CheckpointError(f"{path}: output must be a folder; a file stands there")
    taken = path.is_dir() and any(path.iterdir())
    if taken and not resume and not overwrite:
        raise CheckpointError(
            f"{path}: output must be empty or new; it holds {_listing(path)}. Go on with --resume,"
            f" replace it with"
            " --overwrite, or choose another folder with --set output=FOLDER"
        )
    try:
        if taken and overwrite and not resume:
            _remove_run(path)
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise CheckpointError(
            f"{path}: output must be writable; {explain_os_error(error)}"
        ) from None


def _listing(path: Path) -> str:
    names = sorted(entry.name for entry in path.iterdir())
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _remove_run(path: Path) -> None:
    # Only a folder that a run wrote is ever deleted; a mistyped output must not cost somebody their
    # home folder.
    if not (path / RUN_INFO).exists() and not (path / CHECKPOINTS).is_dir():
        raise CheckpointError(
            f"{path}: --overwrite replaces run folders only; this one has neither {RUN_INFO} nor"
            f" {CHECKPOINTS}/ and"
            f" holds {_listing(path)}"
        )
    shutil.rmtree(path)


def last_checkpoint(path: Path) -> Path | None:
    """The newest complete checkpoint under the run folder `path`, or None."""
    found = []
    for folder in (path / CHECKPOINTS).glob("checkpoint-*"):
        step = folder.name.rpartition("-")[2]
        # trainer_state.json is written last, so a checkpoint cut short lacks it
        if step.isdigit() and (folder / "trainer_state.json").is_file():
            found.append((int(step), folder))
    return max(found)[1] if found else None


def write_run_info(path: Path, info: Mapping[str, Any]) -> None:
    """Write `ftrt.json` into the run folder `path`, whole or not at all."""
    body = json.dumps(
        {"version": RUN_INFO_VERSION, **info}, indent=2, ensure_ascii=False, sort_keys=True
    )
    write_atomically(path / RUN_INFO, body + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Write a text file by a temporary file, fsync and rename.

    Raises:
        CheckpointError: the file system refuses; an earlier file of that name is left as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(f"{path}: must be writable; {explain_os_error(error)}") from None


def read_run_info(path: Path) -> dict[str, Any] | None:
    """What `ftrt.json` in the folder `path` says, or None where there is none.

    Raises:
        CheckpointError: the file is not what ftrt wrote, or a newer ftrt wrote it.
    """
    file = path / RUN_INFO
    try:
        info = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file}: must be the JSON that ftrt wrote; {error}") from None
    except OSError as error:
        raise CheckpointError(f"{file}: must be readable; {explain_os_error(error)}") from None
    version = info.get("version") if isinstance(info, dict) else None
    if not isinstance(version, int):
        raise CheckpointError(f"{file}: must be the JSON that ftrt wrote; it has no version number")
    if version > RUN_INFO_VERSION:
        raise CheckpointError(
            f"{file}: format version {version}; this ftrt reads up to {RUN_INFO_VERSION}; pip"
            f" install -U ftrt"
        )
    return dict(info)


def is_disk_full(error: BaseException, folder: Path) -> bool:
    """Whether `error`, raised while writing below `folder`, is a full disk under whatever name."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    existing = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    return "No space left" in str(error) or shutil.disk_usage(existing).free < FULL_DISK_BYTES
