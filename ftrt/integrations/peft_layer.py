"""The layer that carries a plugin's adapters beside one frozen linear layer."""

__all__ = ["CONTAINER", "FtrtLayer"]

from collections.abc import Sequence
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from ftrt.api import LinearAdapter, LinearMethod
from ftrt.errors import PluginError, UnsupportedError, UsageError
from ftrt.integrations.peft_merging import KeepsBase
from ftrt.nn.layer_report import Adapter

# Also PEFT's "prefix" of the method: the part of a state-dict key that marks adapter state.
CONTAINER = "ftrt_adapters"


class FtrtLayer(KeepsBase, nn.Module, BaseTunerLayer):
    """Runs the active adapters beside a frozen base.

    Attributes:
        base_layer: the frozen layer, `nn.Linear` or `Int8Linear`; while merged, a float layer with
            the adapters in it.
        ftrt_adapters: adapter name -> `LinearAdapter`.
    """

    in_features: int
    out_features: int

    adapter_layer_names = (CONTAINER,)
    other_param_names = ()

    def __init__(self, base_layer: nn.Module, adapter_name: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features = cast(int, base_layer.in_features)
        self.out_features = cast(int, base_layer.out_features)
        self.ftrt_adapters = nn.ModuleDict()
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        self._disable_adapters = False
        self._methods: dict[str, LinearMethod] = {}
        # adapter name -> its parameters that the method itself keeps frozen
        self._frozen: dict[str, tuple[str, ...]] = {}

    def add_adapter(self, adapter_name: str, method: LinearMethod, *, where: str) -> None:
        """Build `method`'s adapter of this layer under `adapter_name`.

        Raises:
            UsageError: adapters are merged at the moment.
            PluginError: the method returned something else than a `LinearAdapter`.
        """
        if self.merged:
            raise UsageError(
                f"{where}: an adapter can be added while none is merged;"
                f" {', '.join(self.merged_adapters)} is. Call unmerge_adapter() first"
            )
        with torch.no_grad():
            adapter = method.adapter(self.base_layer)
        if not isinstance(adapter, LinearAdapter):
            raise PluginError(
                f"method {method.name!r}: adapter(linear) must return a LinearAdapter; got"
                f" {type(adapter).__name__}"
            )
        if any(module is self.base_layer for module in adapter.modules()):
            raise PluginError(
                f"method {method.name!r}: an adapter must not own its base, which would be saved"
                f" with it; {type(adapter).__name__} registers the layer it was built for"
            )
        self.ftrt_adapters[adapter_name] = adapter
        self._methods[adapter_name] = method
        self._frozen[adapter_name] = tuple(
            n for n, p in adapter.named_parameters() if not p.requires_grad
        )
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters)

    def forward(self, x: Tensor) -> Tensor:
        if self.disable_adapters and self.merged:
            self.unmerge()
        base, active = self.base_layer, self.active_adapters
        adapters = [self.ftrt_adapters[name] for name in active if name in self.ftrt_adapters]
        if self.disable_adapters or self.merged or not adapters:
            output: Tensor = base(x)
            return output
        for adapter in adapters[:-1]:
            base = _Adapted(base, adapter)
        output = adapters[-1](base, x)
        return output

    def forward_path(self) -> tuple[Adapter, str]:
        """How the active adapters run, for `ftrt.layer_report`."""
        return "plugin", ""

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Put a float layer with the adapters' weight in the base's place; `unmerge` undoes it.

        Raises:
            UnsupportedError: an adapter's method says it cannot be merged.
            PluginError: `delta_weight()` has another shape than the weight.
            CheckpointError: `safe_merge`, and the merged weight is not finite.
        """
        names = [n for n in check_adapters_to_merge(self, adapter_names) if n in self.ftrt_adapters]
        if not names:
            return
        for method in (self._methods[name] for name in names):
            if not method.mergeable:
                raise UnsupportedError(
                    f"merge: method {method.name!r} cannot be merged into the weights; keep it as"
                    " an adapter"
                )
        self.swap_in(self._delta_weight(names), names, safe=safe_merge)

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove the adapter of that name, if this layer has it."""
        super().delete_adapter(adapter_name)
        self._frozen.pop(adapter_name, None)
        self._methods.pop(adapter_name, None)

    def _delta_weight(self, names: Sequence[str]) -> Tensor:
        shape = (self.out_features, self.in_features)
        deltas = []
        for name in names:
            adapter = cast(LinearAdapter, self.ftrt_adapters[name])
            with torch.no_grad():
                delta = adapter.delta_weight()
            if tuple(delta.shape) != shape:
                raise PluginError(
                    f"{type(adapter).__name__}.delta_weight: must be (out_features, in_features) ="
                    f" {shape}; got {tuple(delta.shape)}"
                )
            deltas.append(delta.float())
        return torch.stack(deltas).sum(dim=0)

    def _freeze_non_trainable_peft_weights(
        self, adapter_names: str | Sequence[str] | None = None
    ) -> None:
        # PEFT switches gradients per adapter; the parameters a method froze itself stay frozen.
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        for name in self._frozen if names is None else names:
            if name in self.ftrt_adapters:
                parameters = dict(self.ftrt_adapters[name].named_parameters())
                for key in self._frozen.get(name, ()):
                    parameters[key].requires_grad_(False)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: Any = None) -> None:
        # PEFT's version also casts to the base's dtype, which rounds float32 adapters on a bfloat16
        # base.
        if adapter_name not in self.ftrt_adapters:
            return
        adapter = self.ftrt_adapters[adapter_name]
        if any(p.is_meta for p in adapter.parameters()):
            return
        base = self.get_base_layer()
        tensors = (*base.parameters(), *base.buffers())
        target = device if device is not None else tensors[0].device
        if torch.device(target).type != "meta":
            adapter.to(target)

    def __repr__(self) -> str:
        return f"ftrt.{super().__repr__()}"


class _Adapted(nn.Module):
    """A base with one adapter, for the next adapter to stand beside; owns neither."""

    def __init__(self, base: nn.Module, adapter: nn.Module) -> None:
        super().__init__()
        self._parts = (base, adapter)
        self.in_features, self.out_features = base.in_features, base.out_features

    def forward(self, x: Tensor) -> Tensor:
        base, adapter = self._parts
        output: Tensor = adapter(base, x)
        return output
