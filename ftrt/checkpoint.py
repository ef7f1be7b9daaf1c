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
    "check_output",
    "is_disk_full",
    "is_run",
    "last_checkpoint",
    "read_run_info",
    "start_output",
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

from ftrt.errors import CheckpointError, UsageError, explain_os_error

RUN_INFO = "ftrt.json"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
# stands in a run folder from the start, so that an unfinished run is known as one
MARKER = ".ftrt-run"
RUN_INFO_VERSION = 1

# At most this many embedding rows are hashed: enough to tell models apart, little enough for a 128k
# vocabulary.
FINGERPRINT_ROWS = 4096

# A disk with less than this left counts as full: a failed write may have freed its own last blocks.
FULL_DISK_BYTES = 1 << 20

TRAIN_ADVICE = (
    "Go on with --resume, replace it with --overwrite, or choose another folder with"
    " --set output=FOLDER"
)

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
    the float and the int8 base, in float32 as in bfloat16 (values are compared as bfloat16), and
    with or without an adapter. float16 rounds differently: take it before casting to that.
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


def check_output(
    path: Path, *, resume: bool = False, overwrite: bool = False, advice: str = TRAIN_ADVICE
) -> None:
    """Check that `path` can become the run folder; nothing in it is touched.

    Raises:
        UsageError: both `resume` and `overwrite`.
        CheckpointError: it is taken and neither says what to do; there is nothing to resume, or
            nothing that may be overwritten; it is a file; it cannot be written.
    """
    if resume and overwrite:
        raise UsageError("--resume and --overwrite: one goes on, the other starts anew; give one")
    if path.exists() and not path.is_dir():
        raise CheckpointError(f"{path}: output must be a folder; a file stands there")
    if path.is_dir() and any(path.iterdir()):
        _check_taken(path, resume=resume, overwrite=overwrite, advice=advice)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise CheckpointError(
            f"{path}: output must be writable; {explain_os_error(error)}"
        ) from None


def _check_taken(path: Path, *, resume: bool, overwrite: bool, advice: str) -> None:
    if not resume and not overwrite:
        raise CheckpointError(
            f"{path}: output must be empty or new; it holds {_listing(path)}. {advice}"
        )
    if not is_run(path):
        # a mistyped output must not cost somebody their home folder
        flag = "--resume" if resume else "--overwrite"
        raise CheckpointError(
            f"{path}: {flag} takes run folders only; this one has neither {RUN_INFO} nor {MARKER}"
            f" and holds {_listing(path)}"
        )
    if resume and (path / RUN_INFO).exists() and last_checkpoint(path) is None:
        raise CheckpointError(
            f"{path}: holds a finished run and no checkpoint to resume from; replace it with"
            " --overwrite, or choose another folder"
        )


def is_run(path: Path) -> bool:
    """Whether ftrt wrote the folder: a finished run, or one that was started."""
    return (path / RUN_INFO).is_file() or (path / MARKER).is_file()


def start_output(path: Path, *, overwrite: bool) -> None:
    """Empty a run folder that is to be replaced, and mark the folder as a run's."""
    try:
        if overwrite and is_run(path):
            shutil.rmtree(path)
        path.mkdir(parents=True, exist_ok=True)
        (path / MARKER).touch()
    except OSError as error:
        raise CheckpointError(
            f"{path}: output must be writable; {explain_os_error(error)}"
        ) from None


def _listing(path: Path) -> str:
    names = sorted(entry.name for entry in path.iterdir())
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def last_checkpoint(path: Path) -> Path | None:
    """The newest complete checkpoint under the run folder `path`, or None."""
    found = []
    for folder in (path / CHECKPOINTS).glob("checkpoint-*"):
        step = folder.name.rpartition("-")[2]
        if step.isdigit() and _is_whole(folder):
            found.append((int(step), folder))
    return max(found)[1] if found else None


def _is_whole(folder: Path) -> bool:
    # trainer_state.json is written last, so a checkpoint cut short lacks it or part of it
    try:
        json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


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
