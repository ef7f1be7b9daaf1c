"""What each method was found to do when it was tried, as `tested.json` has it."""

__all__ = ["Tested", "tested"]

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any


@dataclass(frozen=True)
class Tested:
    """The findings on one method.

    Attributes:
        works: kinds of model ("decoder", "encoder", "encoder_decoder") it trains on.
        fails: kind of model -> why it does not train on it.
        without: capability -> why the method lacks it: "int8", "merge", "checkpointing",
            "identity", "resume".
    """

    works: frozenset[str] = frozenset()
    fails: Mapping[str, str] = field(default_factory=dict)
    without: Mapping[str, str] = field(default_factory=dict)

    def has(self, capability: str) -> bool:
        """Whether it was tried and found."""
        return bool(self.works) and capability not in self.without


@cache
def _read() -> dict[str, Any]:
    text = resources.files("ftrt_peft").joinpath("tested.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def tested(name: str) -> Tested:
    """The findings on a method; empty for one that this version of ftrt-peft has not tried."""
    found = _read()["methods"].get(name, {})
    return Tested(
        frozenset(found.get("works", ())), found.get("fails", {}), found.get("without", {})
    )
