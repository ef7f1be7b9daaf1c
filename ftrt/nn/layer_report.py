"""Which implementation computes which layer of a model."""

__all__ = ["LayerReport", "layer_report", "summarize"]

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, Self, runtime_checkable

from torch import nn

from ftrt.errors import CheckpointError
from ftrt.ops import implementation_report
from ftrt.quantization.int8_layers import bare_model, base_name
from ftrt.quantization.int8_linear import Int8Linear

Adapter = Literal["none", "fused", "plugin", "peft"]


@runtime_checkable
class ReportsForward(Protocol):
    """A layer around a base layer that says how it computes."""

    base_layer: nn.Module

    def forward_path(self) -> tuple[Adapter, str]:
        """What runs the adapter, and why it is not the fused op; empty if it is."""


@dataclass(frozen=True)
class LayerReport:
    """One layer that is int8 or carries an adapter.

    Attributes:
        name: in the base model, without what PEFT puts around it.
        kind: of the base's weight.
        adapter: "fused" (with the base in one op), "plugin" (a plugin's forward, which may reach
            the fused op), "peft" (PEFT's own forward), or "none".
        compute: "w8a8", "w8a16", or "float" for a float base.
        outliers: columns of x that w8a8 multiplies in float.
        implementation: the instruction set, "cuda" or "reference", of the op that computes the
            layer on its device; "torch" where torch's own linear does.
        error: relative error of w8a8 against w8a16 that calibration measured, or None.
        reason: why this `compute`, where calibration chose it.
        adapter_reason: why the adapter is not in the fused op; empty where it is, or is a plugin's.
    """

    name: str
    kind: Literal["int8", "float"]
    adapter: Adapter
    compute: str
    outliers: tuple[int, ...]
    implementation: str
    error_before: float | None = None
    error: float | None = None
    gradient_error: float | None = None
    reason: str = ""
    adapter_reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """Its fields as JSON values."""
        return {**asdict(self), "outliers": list(self.outliers)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], *, where: str = "layers") -> Self:
        """What `to_json` wrote; keys it does not know are passed over.

        Args:
            values: the JSON object.
            where: how an error names what it was read from.

        Raises:
            CheckpointError: a value is not what `to_json` writes.
        """
        known = {key: values[key] for key in cls.__dataclass_fields__ if key in values}
        texts = ("name", "kind", "adapter", "compute", "implementation")
        reasons = ("reason", "adapter_reason")
        errors = ("error_before", "error", "gradient_error")
        outliers = known.get("outliers")
        is_whole = (
            all(isinstance(known.get(key), str) for key in texts)
            and all(isinstance(known.get(key, ""), str) for key in reasons)
            and all(isinstance(known.get(key), int | float | None) for key in errors)
            and isinstance(outliers, list)
        )
        if not is_whole or not isinstance(outliers, list):
            raise CheckpointError(
                f"{where}: each layer must say what it computes, as ftrt writes it; got"
                f" {dict(values)}"
            )
        return cls(**{**known, "outliers": tuple(outliers)})


def layer_report(model: nn.Module) -> list[LayerReport]:
    """The layers of `model` that are int8 or carry an adapter, in its order; computes nothing."""
    found: list[LayerReport] = []
    inner: set[int] = set()
    for name, module in bare_model(model).named_modules():
        base = getattr(module, "base_layer", None)
        if isinstance(base, nn.Module) and hasattr(base, "weight"):
            inner.add(id(base))
            found.append(_describe(base_name(name), base, *_path_of(module)))
        elif isinstance(module, Int8Linear) and id(module) not in inner:
            found.append(_describe(base_name(name), module, "none", ""))
    return found


def summarize(layers: Iterable[LayerReport | Mapping[str, Any]]) -> str:
    """A layer report in one line, for people; empty without layers."""
    rows = [layer.to_json() if isinstance(layer, LayerReport) else layer for layer in layers]
    int8 = Counter(row["compute"] for row in rows if row["kind"] == "int8")
    parts = [f"{int8.total()} layers in int8"] if int8 else []
    parts += [f"{count} compute {compute}" for compute, count in sorted(int8.items())]
    if columns := sum(bool(row["outliers"]) for row in rows):
        parts.append(f"{columns} with outlier columns")
    if fused := sum(row["adapter"] == "fused" for row in rows):
        parts.append(f"{fused} with the adapter in the same op")
    if peft := sum(row["adapter"] == "peft" for row in rows):
        parts.append(f"{peft} through PEFT's own forward")
    runs = sorted({row["implementation"] for row in rows})
    return ", ".join(parts) + f"; run by {', '.join(runs)}" if parts else ""


def _path_of(module: nn.Module) -> tuple[Adapter, str]:
    if isinstance(module, ReportsForward):
        return module.forward_path()
    return "peft", f"it is PEFT's {type(module).__name__}"


def _describe(name: str, base: nn.Module, adapter: Adapter, reason: str) -> LayerReport:
    implementations = implementation_report(_device_type(base))
    if not isinstance(base, Int8Linear):
        runs = implementations["lora_linear"] if adapter == "fused" else "torch"
        return LayerReport(name, "float", adapter, "float", (), runs, adapter_reason=reason)
    op = "int8_lora_linear" if adapter == "fused" else "int8_linear"
    choice = base.choice
    return LayerReport(
        name=name,
        kind="int8",
        adapter=adapter,
        compute=base.compute,
        outliers=base.outlier_columns,
        implementation=implementations[op],
        error_before=choice.error_before if choice else None,
        error=choice.error if choice else None,
        gradient_error=choice.gradient_error if choice else None,
        reason=choice.reason if choice else "",
        adapter_reason=reason,
    )


def _device_type(layer: nn.Module) -> str:
    weight = getattr(layer, "weight", None)
    return "meta" if weight is None else weight.device.type
