"""Which int8 layers can multiply int8 by int8: measured on real inputs, with a remedy or a
fall-back for those that cannot.

A ladder of three rungs for each layer: one scale per token; the few columns of x that are large in
every token left to float products; w8a16.

Source: outlier columns, Dettmers et al. 2022, https://arxiv.org/abs/2208.07339, section 3; chosen
once here, not searched for in every x.
"""

__all__ = ["MAX_SEQUENCES", "calibrate"]

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ftrt.errors import UsageError
from ftrt.ops import int8_linear, int8_linear_dx
from ftrt.quantization.choices import LayerChoice
from ftrt.quantization.int8_layers import apply_choices, int8_layers
from ftrt.quantization.int8_linear import Int8Linear
from ftrt.quantization.observation import Observer, cut, observe, sequences_in

MAX_SEQUENCES = 128
# A backward pass keeps every activation, and the error of a gradient shows in a few sequences.
GRADIENT_SEQUENCES = 4

# A column is an outlier if its largest value is this many times that of the median column. Columns
# of one distribution differ by less than 2; at 3 the error of the rest has grown as much.
OUTLIER_RATIO = 3.0
# Outlier columns cost a float product, so they must take away at least a fifth of the error ...
WORTHWHILE = 0.8
# ... and are not looked for where the error is below this share of the bound. It is low, because
# large columns make y large and the error relative to it small, whatever becomes of the others.
COMFORTABLE = 0.25

logger = logging.getLogger(__name__)


@dataclass
class _Error:
    """‖got - want‖ / ‖want‖ over many batches."""

    difference: float = 0.0
    size: float = 0.0

    def add(self, got: Tensor, want: Tensor) -> None:
        self.difference += (got - want).double().square().sum().item()
        self.size += want.double().square().sum().item()

    @property
    def value(self) -> float | None:
        # NaN stays NaN: it is above no bound and below none
        return (self.difference / self.size) ** 0.5 if self.size else None


@dataclass
class _Seen:
    """What calibration knows of one layer.

    `inputs` numbers the x it was given: layers with the same one share their outlier columns, and
    so one quantized x.
    """

    largest: Tensor | None = None
    inputs: int = -1
    plain: _Error = field(default_factory=_Error)
    remedied: _Error = field(default_factory=_Error)
    gradient: _Error = field(default_factory=_Error)
    columns: tuple[int, ...] = ()

    @property
    def is_finite(self) -> bool:
        return self.largest is None or bool(self.largest.isfinite().all())


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    max_error: float = 0.02,
    max_gradient_error: float = 0.045,
    max_outliers: int = 16,
    max_sequences: int = MAX_SEQUENCES,
) -> list[LayerChoice]:
    """Measure the w8a8 layers of `model` on real batches and choose for each how it computes.

    The model runs without gradients, in eval mode and with float activations, so every layer sees
    the inputs it would see in w8a16. If the model returns a loss, the gradient for x is measured
    too, on the first few sequences. Modes, flags and gradients are left as they were.

    Args:
        model: with layers that compute w8a8; those in w8a16 are left alone.
        batches: mappings (called as `model(**batch)`), sequences (`model(*batch)`) or tensors, of
            the kind the model trains on and on its device.
        max_error: relative Frobenius error of y in w8a8 against w8a16, above which a layer falls
            back to w8a16.
        max_gradient_error: the same for the gradient for x. It may be larger: it is noise of a
            step, not of the model, and at √(2 · 0.001) = 0.045 the cosine to the true one is 0.999.
        max_outliers: outlier columns a layer may have; 0 for none.
        max_sequences: rows of the batches that are used.

    Returns:
        A choice for each w8a8 layer, in the model's order; they are applied already.

    Raises:
        UsageError: no layer computes w8a8, there is no batch, a bound makes no sense, or NaN or
            infinity reaches every layer.
    """
    layers = {n: layer for n, layer in int8_layers(model).items() if layer.compute == "w8a8"}
    bounds = {"output": max_error, "gradient": max_gradient_error}
    _check(layers, bounds, max_outliers=max_outliers, max_sequences=max_sequences)
    kept = _first(batches, max_sequences)
    before = {name: layer.outlier_columns for name, layer in layers.items()}
    seen = {name: _Seen() for name in layers}
    try:
        for layer in layers.values():
            layer.set_compute("w8a16")
        _measure_plain(model, layers, kept, seen)
        _check_finite(seen)
        has_gradient = _measure_gradient(model, layers, cut(kept[0], GRADIENT_SEQUENCES), seen)
        _propose_outliers(seen, max_error, max_outliers)
        if any(facts.columns for facts in seen.values()):
            _measure_remedied(model, layers, kept, seen)
    except BaseException:
        for name, layer in layers.items():
            layer.set_compute("w8a8", before[name])
        raise
    choices = [_choose(name, facts, bounds) for name, facts in seen.items()]
    apply_choices(model, choices)
    sequences = sum(map(sequences_in, kept))
    _log(choices, sequences=sequences, max_error=max_error, has_gradient=has_gradient)
    return choices


def _check(
    layers: dict[str, Int8Linear],
    bounds: dict[str, float],
    *,
    max_outliers: int,
    max_sequences: int,
) -> None:
    if not layers:
        raise UsageError(
            "calibrate: some layer must compute w8a8; none does. Convert the model with"
            ' quantize_linears(model, compute="w8a8") first'
        )
    has_bounds = all(0 < bound <= 1 for bound in bounds.values())
    if not has_bounds or max_outliers < 0 or max_sequences < 1:
        raise UsageError(
            "calibrate: max_error and max_gradient_error must be above 0 and at most 1,"
            " max_outliers at least 0 and max_sequences at least 1; got"
            f" {bounds['output']}, {bounds['gradient']}, {max_outliers} and {max_sequences}"
        )


def _check_finite(seen: dict[str, _Seen]) -> None:
    """A layer may overflow and compute w8a16; where all do, nothing was measured."""
    reached = [name for name, facts in seen.items() if facts.largest is not None]
    if reached and not any(seen[name].is_finite for name in reached):
        raise UsageError(
            "calibrate: the inputs of the layers must be finite; got NaN or infinity in all"
            f" {len(reached)} of them, {reached[0]} the first. Check the batches and the model's"
            " weights"
        )


def _first(batches: Iterable[Any], sequences: int) -> list[Any]:
    """Batches of together at most `sequences` rows."""
    if isinstance(batches, Tensor | Mapping | str):
        raise UsageError(
            "calibrate: batches must be an iterable of batches; got a single"
            f" {type(batches).__name__}. Write [batch]"
        )
    kept: list[Any] = []
    for batch in batches:
        kept.append(cut(batch, sequences))
        sequences -= sequences_in(kept[-1])
        if sequences <= 0:
            break
    if not kept or not sum(map(sequences_in, kept)):
        raise UsageError("calibrate: batches must hold at least one sequence; got none")
    return kept


def _measure_plain(
    model: nn.Module, layers: dict[str, Int8Linear], batches: list[Any], seen: dict[str, _Seen]
) -> None:
    """The error of rung 1, the largest value of each column, and which layers share their x."""
    count = -1

    def look(name: str, x: Tensor, rows: Tensor, *, is_same: bool) -> None:
        nonlocal count
        count += not is_same
        facts, layer = seen[name], layers[name]
        facts.inputs = count if facts.inputs < 0 else facts.inputs
        largest = x.detach().reshape(-1, x.shape[-1]).abs().amax(0).float()
        facts.largest = largest if facts.largest is None else torch.maximum(facts.largest, largest)
        facts.plain.add(_product(layer, rows, "w8a8"), _product(layer, rows, "w8a16"))

    with Observer(layers, forward=look):
        observe(model, batches)


def _measure_gradient(
    model: nn.Module, layers: dict[str, Int8Linear], batch: Any, seen: dict[str, _Seen]
) -> bool:
    """The error of the gradient for x; whether there was a loss to have one."""

    def look(name: str, rows: Tensor) -> None:
        layer = layers[name]
        got, want = (
            int8_linear_dx(
                rows, layer.packed, layer.scale, in_features=layer.in_features, compute=compute
            )
            for compute in ("w8a8", "w8a16")
        )
        seen[name].gradient.add(got, want)

    with Observer(layers, backward=look) as observer:
        return observer.differentiate(model, batch)


def _propose_outliers(seen: dict[str, _Seen], max_error: float, max_outliers: int) -> None:
    """Give the layers of one x the columns that stand out in it, where one of them needs it."""
    groups: dict[int, list[_Seen]] = {}
    for facts in seen.values():
        groups.setdefault(facts.inputs, []).append(facts)
    for members in groups.values():
        largest, errors = members[0].largest, [facts.plain.value for facts in members]
        if largest is None or all(e is None or e <= COMFORTABLE * max_error for e in errors):
            continue
        found = largest.topk(min(max_outliers, largest.numel() - 1))
        columns = found.indices[found.values > OUTLIER_RATIO * largest.median()]
        for facts in members:
            facts.columns = tuple(sorted(columns.tolist()))


def _measure_remedied(
    model: nn.Module, layers: dict[str, Int8Linear], batches: list[Any], seen: dict[str, _Seen]
) -> None:
    """The error of rung 2, for the layers that have columns; layers of one x keep them together."""

    def look(name: str, x: Tensor, rows: Tensor, *, is_same: bool) -> None:
        facts, layer = seen[name], layers[name]
        got = _product(layer, rows, "w8a8", facts.columns)
        facts.remedied.add(got, _product(layer, rows, "w8a16"))

    remedied = {name: layer for name, layer in layers.items() if seen[name].columns}
    with Observer(remedied, forward=look):
        observe(model, batches)
    worst: dict[int, float] = {}
    for facts in seen.values():
        before, after = facts.plain.value, facts.remedied.value
        if facts.columns and before and after is not None:
            ratio = after / before
            worst[facts.inputs] = min(worst.get(facts.inputs, ratio), ratio)
    for facts in seen.values():
        if facts.columns and not worst.get(facts.inputs, 1.0) <= WORTHWHILE:
            facts.columns = ()


def _product(
    layer: Int8Linear, rows: Tensor, compute: str, columns: tuple[int, ...] = ()
) -> Tensor:
    outliers = torch.tensor(columns, device=rows.device) if columns else None
    return int8_linear(rows, layer.packed, layer.scale, compute=compute, outliers=outliers)


def _choose(name: str, facts: _Seen, bounds: dict[str, float]) -> LayerChoice:
    before, gradient = facts.plain.value, facts.gradient.value
    error = facts.remedied.value if facts.columns else before
    if before is None or error is None:
        return LayerChoice(name, "w8a16", reason="no input other than zero reached it")
    if not facts.is_finite:
        return LayerChoice(name, "w8a16", reason="an input that is not finite reached it")
    too_large = [
        f"{what} error {value:.4f} > {bounds[what]:g}"
        for what, value in (("output", error), ("gradient", gradient))
        # `not <=` also catches NaN
        if value is not None and not value <= bounds[what]
    ]
    if too_large:
        reason = " and ".join(too_large)
        if facts.columns:
            reason += f", with {len(facts.columns)} outlier columns"
        return LayerChoice(name, "w8a16", (), before, error, gradient, reason)
    reason = f"{len(facts.columns)} outlier columns in float" if facts.columns else "within bound"
    return LayerChoice(name, "w8a8", facts.columns, before, error, gradient, reason)


def _log(
    choices: list[LayerChoice], *, sequences: int, max_error: float, has_gradient: bool
) -> None:
    fallen = [choice for choice in choices if choice.compute == "w8a16"]
    remedied = sum(bool(choice.outliers) for choice in choices)
    errors = [c.error for c in choices if c.compute == "w8a8" and c.error is not None]
    logger.info(
        "calibrated on %d sequences: %d of %d int8 layers compute w8a8 (%d with outlier columns,"
        " largest error %.4f of %g allowed), %d fall back to w8a16%s",
        sequences,
        len(choices) - len(fallen),
        len(choices),
        remedied,
        max(errors, default=0.0),
        max_error,
        len(fallen),
        "" if has_gradient else "; gradients were not measured, the model returned no loss",
    )
    for choice in fallen:
        logger.info("%s computes w8a16: %s", choice.name, choice.reason)
