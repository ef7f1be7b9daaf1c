"""The safetensors files of a model folder, read one tensor, or some rows of one, at a time."""

__all__ = ["INDEX_FILE", "WEIGHTS_FILE", "Shards"]

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ftrt.errors import CheckpointError, explain_os_error

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# Pickles: they can run code when they are read, and can only be read whole.
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")

# safetensors' names of dtypes.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class _Place:
    """Where a tensor stands: file, dtype, shape, and the byte it starts at."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int


class Shards:
    """The tensors of a model folder by name; each is read from disk when it is asked for.

    Files are read, not mapped: the pages of a mapped file count as this process's memory for as
    long as any tensor of it lives.

    Raises:
        CheckpointError: no safetensors, an index that is corrupt or names a file or tensor that is
            not there, or a file that is cut short or corrupt.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[Path, BinaryIO] = {}
        self._places: dict[str, _Place] = {}
        for file in _weight_files(folder):
            self._open[file], places = _opened(file)
            self._places |= places
        self._check_index()

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __deepcopy__(self, memo: object) -> Self:
        # open files: copies of a model that is still to be read share them
        return self

    def names(self) -> list[str]:
        """Names of all tensors."""
        return list(self._places)

    def dtype(self, name: str) -> str:
        """safetensors' name of the dtype, say "BF16" or "I8"."""
        return self._places[name].dtype

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape."""
        return self._places[name].shape

    def file(self, name: str) -> Path:
        """The file that holds the tensor."""
        return self._places[name].file

    def read(self, name: str, scratch: Tensor | None = None) -> Tensor:
        """The tensor, in memory of its own, or as a view of `scratch`: (at least as many elements)
        of its dtype.

        Raises:
            CheckpointError: the file can no longer be read, or the dtype is one that ftrt does not
                read.
        """
        shape = self._places[name].shape
        return self._read(name, shape, 0, scratch)

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start..stop-1 of a tensor, in memory of their own; nothing else is read."""
        first, *rest = self._places[name].shape
        return self._read(name, (min(stop, first) - start, *rest), start)

    def _read(
        self, name: str, shape: tuple[int, ...], row: int, scratch: Tensor | None = None
    ) -> Tensor:
        place = self._places[name]
        dtype = DTYPES.get(place.dtype)
        if dtype is None:
            raise CheckpointError(
                f"{place.file}: tensor {name} must be of a dtype that ftrt reads; got {place.dtype}"
            )
        tensor = torch.empty(shape, dtype=dtype) if scratch is None else _view(scratch, shape)
        if tensor.numel() == 0:
            return tensor
        row_bytes = tensor.nbytes // (shape[0] if shape else 1)
        target = memoryview(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
        offset = place.start + row * row_bytes
        try:
            while target:
                count = os.preadv(self._open[place.file].fileno(), [target], offset)
                if count == 0:
                    raise CheckpointError(
                        f"{place.file}: tensor {name} must be whole; the file has been cut short"
                        " since it was opened"
                    )
                target, offset = target[count:], offset + count
        except OSError as error:
            raise CheckpointError(
                f"{place.file}: tensor {name} must be readable; {explain_os_error(error)}"
            ) from None
        return tensor

    def _check_index(self) -> None:
        index = self.folder / INDEX_FILE
        if (self.folder / WEIGHTS_FILE).is_file() or not index.is_file():
            return
        lacking = [name for name in _weight_map(index) if name not in self._places]
        if lacking:
            more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            raise CheckpointError(
                f"{index}: every tensor it lists must stand in its file; {lacking[0]}{more} does"
                " not. Fetch the model again"
            )


def _view(scratch: Tensor, shape: tuple[int, ...]) -> Tensor:
    return scratch[: math.prod(shape)].view(shape)


def _weight_files(folder: Path) -> list[Path]:
    # the same order of preference as transformers
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    index = folder / INDEX_FILE
    if index.is_file():
        return _listed_files(index)
    pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{folder}: weights must be in {WEIGHTS_FILE}, which is read tensor by tensor; got"
            f" {pickles[0]}, a pickle. Read the model with transformers once and save it with"
            " save_pretrained"
        )
    raise CheckpointError(
        f"{folder}: a model folder must hold {WEIGHTS_FILE} or {INDEX_FILE}; it holds neither"
    )


def _listed_files(index: Path) -> list[Path]:
    names = sorted(set(_weight_map(index).values()))
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise CheckpointError(
            f"{index}: must name files of its own folder; got {outside[0]!r}. Fetch the model again"
        )
    lacking = [name for name in names if not (index.parent / name).is_file()]
    if lacking:
        raise CheckpointError(
            f"{index}: every file it names must be there; {', '.join(lacking)} of {len(names)}"
            " is missing. Fetch the model again"
        )
    return [index.parent / name for name in names]


def _weight_map(index: Path) -> dict[str, str]:
    try:
        tree = json.loads(index.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{index}: must be JSON; {error}. Fetch the model again") from None
    except OSError as error:
        raise CheckpointError(f"{index}: must be readable; {explain_os_error(error)}") from None
    names = tree.get("weight_map") if isinstance(tree, dict) else None
    if not isinstance(names, dict) or not names or not _all_strings(names):
        raise CheckpointError(
            f"{index}: must hold weight_map, tensor name to file name; it does not. Fetch the"
            " model again"
        )
    return names


def _all_strings(names: dict[Any, Any]) -> bool:
    return all(isinstance(value, str) for value in names.values())


def _opened(file: Path) -> tuple[BinaryIO, dict[str, _Place]]:
    try:
        # safetensors' own check: the header is sound and the file is as long as it says
        with safe_open(file, framework="pt", backend="pread"):
            pass
        opened = file.open("rb")
    except SafetensorError as error:
        raise CheckpointError(
            f"{file}: must be a whole safetensors file; it is cut short or corrupt: {error}."
            " Fetch the model again"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{file}: must be readable; {explain_os_error(error)}") from None
    length = int.from_bytes(opened.read(8), "little")
    header: dict[str, Any] = json.loads(opened.read(length))
    header.pop("__metadata__", None)
    return opened, {
        name: _Place(
            file, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0]
        )
        for name, entry in header.items()
    }
