"""What a method is told of the recipe around it."""

__all__ = ["Setting"]

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Setting:
    """What a recipe asks beside its method, known before weights are read.

    Attributes:
        quantization: dtype of the base's linear layers, "int8", or None for a float base.
        task_type: PEFT's task type of the head, or None without a head.
        training: the recipe's `training:` fields.
        compile: whether blocks run through torch.compile.
        losses: names of the loss terms, "task" for the student's own; empty for that alone.
        model: the base's `config.json`; None where it has not been read yet.
    """

    quantization: str | None = None
    task_type: str | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    compile: bool = False
    losses: tuple[str, ...] = ()
    model: Mapping[str, Any] | None = None
