"""How an int8 layer computes and what was measured when that was chosen, as data."""

__all__ = ["COMPUTES", "Compute", "LayerChoice"]

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, get_args

from ftrt.errors import ConfigError

# How a layer multiplies: dequantized weights with float x, or int8 with x quantized per token.
Compute = Literal["w8a16", "w8a8"]
COMPUTES: tuple[str, ...] = get_args(Compute)
_MEASURED = ("error_before", "error", "gradient_error")


@dataclass(frozen=True)
class LayerChoice:
    """How one int8 layer computes, and what was measured when that was chosen.

    Attributes:
        name: in the base model, without what PEFT puts around it.
        compute: "w8a8" or "w8a16".
        outliers: columns of x that w8a8 multiplies in float.
        error_before: ‖y(w8a8) - y(w8a16)‖ / ‖y(w8a16)‖ with one scale per token alone; None where
            it was not measured.
        error: the same with the outlier columns; what `compute` w8a8 has.
        gradient_error: the same of the gradient for x; None where it was not measured.
        reason: why this compute, in a few words.
    """

    name: str
    compute: Compute
    outliers: tuple[int, ...] = ()
    error_before: float | None = None
    error: float | None = None
    gradient_error: float | None = None
    reason: str = ""

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
            ConfigError: a value is not what `to_json` writes.
        """
        known = {key: values[key] for key in cls.__dataclass_fields__ if key in values}
        outliers = known.get("outliers", ())
        is_whole = (
            isinstance(known.get("name"), str)
            and known.get("compute") in COMPUTES
            and isinstance(outliers, (list, tuple))
            and all(isinstance(column, int) for column in outliers)
            and all(isinstance(known.get(key), int | float | None) for key in _MEASURED)
            and isinstance(known.get("reason", ""), str)
        )
        if not is_whole:
            raise ConfigError(
                f"{where}: each layer must have a name, a compute of {', '.join(COMPUTES)}, a list"
                f" of outliers and numbers for errors; got {dict(values)}"
            )
        return cls(**{**known, "outliers": tuple(outliers)})
