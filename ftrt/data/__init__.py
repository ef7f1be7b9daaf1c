"""Data: files and assets to rows, rows to splits that share no text, splits to token ids.

    resolve -> read_rows -> where -> transforms -> map_columns -> split        (`load_splits`)
    head.fit(splits.train); encode_split(head, splits.train, tokenizer, ...)   (token ids)

Each public name is loaded when it is used, so that fetching an asset does not import torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

# public name -> module that defines it
_PUBLIC = {
    "EncodedSplit": "ftrt.data.encoding",
    "Splits": "ftrt.data.build",
    "converted_dir": "ftrt.data.assets",
    "encode_split": "ftrt.data.encoding",
    "fetch": "ftrt.data.assets",
    "find_asset": "ftrt.data.assets",
    "is_asset": "ftrt.data.assets",
    "load_rows": "ftrt.data.build",
    "load_splits": "ftrt.data.build",
    "read_prediction_rows": "ftrt.data.build",
    "resolve": "ftrt.data.assets",
}

__all__ = [
    "EncodedSplit",
    "Splits",
    "converted_dir",
    "encode_split",
    "fetch",
    "find_asset",
    "is_asset",
    "load_rows",
    "load_splits",
    "read_prediction_rows",
    "resolve",
]

if TYPE_CHECKING:
    from ftrt.data.assets import converted_dir, fetch, find_asset, is_asset, resolve
    from ftrt.data.build import Splits, load_rows, load_splits, read_prediction_rows
    from ftrt.data.encoding import EncodedSplit, encode_split


def __getattr__(name: str) -> Any:
    module = _PUBLIC.get(name)
    if module is None:
        raise AttributeError(f"module 'ftrt.data' has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)
