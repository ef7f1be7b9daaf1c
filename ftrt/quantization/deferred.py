"""Linear layers whose weight stays on disk until it is known what becomes of it.

A model is read with such layers, gets its head, and then `quantize_deferred` turns them into int8
one by one: at no time are two of their float weights in memory.
"""

__all__ = [
    "FloatSource",
    "Int8Source",
    "WeightSource",
    "chosen_layers",
    "defer",
    "deferred_source",
    "float_weight",
    "has_deferred",
    "materialize",
    "quantize_deferred",
    "quantize_rows",
]

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ftrt.errors import ConfigError
from ftrt.quantization.affine import choose_qparams, dequantize, quantize
from ftrt.quantization.choices import Compute
from ftrt.quantization.convert import _convertible, _replace, _skipped, check_compute
from ftrt.quantization.granularity import Granularity, parse_granularity
from ftrt.quantization.int8_layers import compute_all, int8_layers
from ftrt.quantization.int8_linear import Int8Linear
from ftrt.quantization.llm_int8 import read_layer
from ftrt.quantization.shards import Shards

# Weights quantized at a time. Their float32 intermediates take 256 KiB each: freed megabytes
# between which something small stays alive cannot be used for the next layer, and add up over a
# model.
BLOCK_WEIGHTS = 1 << 16

_SOURCE = "_ftrt_weight_source"


@dataclass(frozen=True)
class FloatSource:
    """A float weight in a file.

    Attributes:
        shards: the files.
        name: the tensor's name there.
        dtype: what the model computes in; the weight is cast to it as it is read.
    """

    shards: Shards
    name: str
    dtype: torch.dtype

    def read(self) -> Tensor:
        """The weight, (out_features, in_features)."""
        return self.shards.read(self.name).to(self.dtype)

    def read_rows(self, start: int, stop: int) -> Tensor:
        """Rows start..stop-1 of it."""
        return self.shards.read_rows(self.name, start, stop).to(self.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """(out_features, in_features); nothing is read."""
        return self.shards.shape(self.name)


@dataclass(frozen=True)
class Int8Source:
    """A weight that the checkpoint holds in int8 already.

    Attributes:
        shards: the files.
        layer: the layer's name there.
        dtype: what the model computes in.
    """

    shards: Shards
    layer: str
    dtype: torch.dtype

    def read(self) -> Tensor:
        """The dequantized weight, (out_features, in_features)."""
        return dequantize(*self.read_int8(), self.dtype)

    def read_int8(self, scratch: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(qweight, scale); qweight is written into `scratch` (weights) int8, if that is given."""
        return read_layer(self.shards, self.layer, scratch)

    @property
    def shape(self) -> tuple[int, ...]:
        """(out_features, in_features); nothing is read."""
        return self.shards.shape(f"{self.layer}.weight")


WeightSource = FloatSource | Int8Source


def defer(layer: nn.Module, source: WeightSource) -> None:
    """Leave the layer's weight, which is on the meta device, in `source` for the time being."""
    setattr(layer, _SOURCE, source)


def deferred_source(layer: nn.Module) -> WeightSource | None:
    """Where the layer's weight still is, or None for a layer that has it."""
    return layer.__dict__.get(_SOURCE)


def has_deferred(model: nn.Module) -> bool:
    """Whether any weight of the model is still to be read."""
    return next(_deferred(model), None) is not None


def materialize(model: nn.Module) -> None:
    """Read every weight that is still to be read, in place: float ones as they are, int8 ones into
    `Int8Linear`.
    """
    stored = [n for n, m in _deferred(model) if isinstance(deferred_source(m), Int8Source)]
    scratch = _scratch(model, stored)
    _replace(model, nn.Module, stored, lambda layer, _: _converted(layer, None, "", scratch))
    for _, layer in list(_deferred(model)):
        _read_weight(layer)
    compute_all(model, "w8a16")


def quantize_deferred(
    model: nn.Module,
    granularity: Granularity | str = "per_channel",
    skip: Sequence[str] = (),
    *,
    new_modules: Sequence[str] = (),
    group_size: int | None = None,
    compute: Compute = "w8a16",
) -> list[str]:
    """`quantize_linears` for a model with deferred weights, with int8 layers, or with both.

    The result is the same, bit for bit, as that of reading the whole model and quantizing it.

    Args:
        model: changed in place, also when an error is raised.
        granularity: as for `quantize_linears`.
        skip: names, or last parts of names, of layers to leave in float.
        new_modules: names of modules that train; in float too.
        group_size: input features per scale, for "per_group".
        compute: as for `quantize_linears`.

    Returns:
        Full names of all int8 layers, in the model's order.

    Raises:
        ConfigError: as `quantize_linears`; or the checkpoint has a layer in int8 that `skip` names,
            or in another granularity.
    """
    chosen = parse_granularity(granularity, group_size)
    check_compute(compute, chosen)
    names = chosen_layers(model, chosen, skip, new_modules)
    scratch = _scratch(model, names)

    def convert(layer: nn.Module, name: str) -> nn.Module:
        return _converted(layer, chosen, f"quantization of {name}", scratch)

    _replace(model, nn.Module, names, convert)
    for _, layer in list(_deferred(model)):
        _read_weight(layer)
    compute_all(model, compute)
    return list(int8_layers(model))


def chosen_layers(
    model: nn.Module, granularity: Granularity, skip: Sequence[str], new_modules: Sequence[str]
) -> list[str]:
    """Names of the layers that `quantize_deferred` turns into int8, in the model's order; those
    that are int8 already are not among them.

    Raises:
        ConfigError: as `quantize_deferred`.
    """
    skipped = _skipped(model, [*skip, *new_modules])
    new = _skipped(model, new_modules)
    stored = {n for n, m in _deferred(model) if isinstance(deferred_source(m), Int8Source)}
    ready = list(int8_layers(model))
    _check_stored(model, stored, ready, granularity, skipped - new, new)
    selected = _selected(model, skipped, may_be_empty=bool(stored or ready)) | (stored - new)
    return [name for name, _ in model.named_modules() if name in selected]


def float_weight(layer: nn.Module) -> Tensor:
    """The layer's weight, (out_features, in_features) float, read if it is still on disk."""
    source = deferred_source(layer)
    return layer.get_parameter("weight").detach() if source is None else source.read()


def quantize_rows(
    source: FloatSource | Tensor,
    granularity: Granularity,
    *,
    where: str = "quantize_rows",
    scratch: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(qweight, scale) as `choose_qparams` and `quantize` give them, a block of rows at a time.

    Args:
        source: (out_features, in_features), any float dtype, in memory or in a file.
        granularity: which weights share a scale.
        where: how an error names the layer.
        scratch: (at least out_features · in_features) int8, to hold qweight; a new tensor without.

    Returns:
        (out_features, in_features) int8 and (out_features, groups) float32.

    Raises:
        ConfigError: as `choose_qparams`.
    """
    if len(source.shape) != 2:
        raise ConfigError(
            f"{where}: weight must be (out_features, in_features); got {tuple(source.shape)}"
        )
    out_features, in_features = source.shape
    if scratch is None:
        scratch = torch.empty(out_features * in_features, dtype=torch.int8)
    qweight = scratch[: out_features * in_features].view(out_features, in_features)
    scale = torch.empty(out_features, granularity.groups(in_features))
    step = max(1, BLOCK_WEIGHTS // max(1, in_features))
    for start in range(0, out_features, step):
        stop = min(start + step, out_features)
        rows = source[start:stop] if isinstance(source, Tensor) else source.read_rows(start, stop)
        try:
            scale[start:stop] = choose_qparams(rows, granularity, where=where)
        except ConfigError:
            # the message is to have the figures of the whole weight
            whole = source if isinstance(source, Tensor) else source.read()
            choose_qparams(whole, granularity, where=where)
            raise
        qweight[start:stop] = quantize(rows, scale[start:stop])
    return qweight, scale


def _converted(
    layer: Any, granularity: Granularity | None, where: str, scratch: Tensor
) -> nn.Module:
    source = deferred_source(layer)
    if isinstance(source, Int8Source):
        (qweight, scale), dtype = source.read_int8(scratch), source.dtype
    elif granularity is None:
        raise ConfigError(f"{where}: a float weight needs a granularity to be quantized; got None")
    else:
        weight = layer.weight.detach() if source is None else source
        qweight, scale = quantize_rows(weight, granularity, where=where, scratch=scratch)
        dtype = weight.dtype
    bias = None if layer.bias is None else layer.bias.detach()
    return Int8Linear.from_quantized(qweight, scale, bias, dtype=dtype).train(layer.training)


def _scratch(model: nn.Module, names: Sequence[str]) -> Tensor:
    """Room for the row-major int8 weight of any of these layers. One for all: freed and made anew
    for each layer, it would leave holes in the heap that later ones do not fit.
    """
    layers = (model.get_submodule(name) for name in names)
    sources = (deferred_source(layer) or layer.get_parameter("weight") for layer in layers)
    return torch.empty(max((math.prod(s.shape) for s in sources), default=0), dtype=torch.int8)


def _deferred(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((n, m) for n, m in model.named_modules() if deferred_source(m) is not None)


def _read_weight(layer: nn.Module) -> None:
    source = deferred_source(layer)
    if source is not None:
        layer.weight = nn.Parameter(source.read(), requires_grad=True)
        delattr(layer, _SOURCE)


def _selected(model: nn.Module, skipped: set[str], *, may_be_empty: bool) -> set[str]:
    try:
        return set(_convertible(model, skipped))
    except ConfigError:
        if may_be_empty:
            return set()
        raise


def _check_stored(
    model: nn.Module,
    stored: set[str],
    ready: Sequence[str],
    granularity: Granularity,
    skipped: set[str],
    new: set[str],
) -> None:
    held = sorted((stored | set(ready)) & skipped)
    if held:
        raise ConfigError(
            f"quantization.skip: must name layers that the model has in float; {held[0]} is int8"
            " already, and its float weight is gone. Start from the float model"
        )
    trained = sorted(set(ready) & new)
    if trained:
        raise ConfigError(
            f"quantization: a module that trains must be float; {trained[0]} is int8 already."
            " Start from the float model"
        )
    for name in (*sorted(stored), *ready):
        layer: Any = model.get_submodule(name)
        groups = layer.scale.shape[1] if isinstance(layer, Int8Linear) else 1
        features = layer.in_features if isinstance(layer, Int8Linear) else _in_features(layer)
        if granularity.groups(features) != groups:
            raise ConfigError(
                f"quantization: the model's int8 layers keep their granularity; {name} has"
                f" {groups} scales a row, and {granularity} asks for"
                f" {granularity.groups(features)}. Write `granularity: per_channel`, or start from"
                " the float model"
            )


def _in_features(layer: nn.Module) -> int:
    source = deferred_source(layer)
    return source.shape[1] if source is not None else int(layer.in_features)  # type: ignore[arg-type]
