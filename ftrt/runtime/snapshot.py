"""Remembering a model well enough to put it back exactly as it was."""

__all__ = ["ModelSnapshot"]

import copy
from collections import OrderedDict
from typing import Any

import torch
from torch import nn

# The module attributes that hold structure: restoring these undoes replaced layers, added hooks and
# new parameters.
_CONTAINERS = (dict, OrderedDict, set, list)


class ModelSnapshot:
    """The structure of a model, and the values of what a method is about to train.

    Frozen tensors are kept by reference, so a snapshot of a model that only gets adapters costs no
    copy of its weights. `keep_values` copies those that will train.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = [(module, _shallow(module.__dict__)) for module in model.modules()]
        self._classes = [(module, module.__class__) for module in model.modules()]
        self._requires_grad = [(p, p.requires_grad) for p in model.parameters()]
        self._places = [(p, p.device, p.dtype) for p in model.parameters()]
        self._config = copy.deepcopy(getattr(model, "config", None))
        self._model = model
        self._values: list[tuple[torch.Tensor, torch.Tensor]] = []

    def keep_values(self) -> None:
        """Copy every original tensor that training can change: trainable parameters, and
        buffers.
        """
        self._values = [(p, p.detach().clone()) for p, _ in self._requires_grad if p.requires_grad]
        for module, state in self._modules:
            buffers = state.get("_buffers", {})
            self._values += [(b, b.detach().clone()) for b in buffers.values() if b is not None]
            del module

    def restore(self) -> None:
        """Put structure, hooks, flags, config and values back; the model object stays the same
        one.
        """
        for module, kind in self._classes:
            if module.__class__ is not kind:
                module.__class__ = kind
        for module, state in self._modules:
            module.__dict__.clear()
            module.__dict__.update(_shallow(state))
        # a trainer may have moved what was in the model and could not move what was out of it
        for parameter, device, dtype in self._places:
            if (parameter.device, parameter.dtype) != (device, dtype):
                parameter.data = parameter.data.to(device, dtype)
        with torch.no_grad():
            for tensor, value in self._values:
                tensor.copy_(value)
        for parameter, requires_grad in self._requires_grad:
            parameter.requires_grad_(requires_grad)
            parameter.grad = None
        if self._config is not None:
            vars(self._model.config).clear()
            vars(self._model.config).update(vars(copy.deepcopy(self._config)))


def _shallow(state: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value.copy() if isinstance(value, _CONTAINERS) else value
        for key, value in state.items()
    }
