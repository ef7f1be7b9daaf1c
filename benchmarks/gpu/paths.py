"""Who multiplies int8 by int8, forced, so that the own kernel and the library are both measured."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from unittest import mock

import torch

from ftrt.ops.cuda import choice

PATHS = {"own": choice.Product.OWN, "library": choice.Product.LIBRARY}


def forced(path: str, device: torch.device) -> Callable[[], AbstractContextManager[None]]:
    """A context in which w8a8 on `device` multiplies by `path`, a key of `PATHS`.

    It stands in the table by architecture, so the library's conditions on sizes still hold.
    """

    @contextlib.contextmanager
    def context() -> Iterator[None]:
        arch = torch.cuda.get_device_capability(device)
        with mock.patch.dict(choice._PRODUCTS, {arch: PATHS[path]}):
            yield

    return context
