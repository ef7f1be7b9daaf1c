"""Turns the linear layers of a model into int8 and back, in place."""

__all__ = ["check_compute", "dequantize_linears", "quantize_linears"]

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import Tensor, nn

from ftrt.errors import ConfigError, UnsupportedError, suggest
from ftrt.quantization.affine import choose_qparams
from ftrt.quantization.choices import COMPUTES, Compute
from ftrt.quantization.granularity import Granularity, PerGroup, parse_granularity
from ftrt.quantization.int8_layers import share_inputs
from ftrt.quantization.int8_linear import Int8Linear
from ftrt.quantization.output_head import output_head_names

Layer = TypeVar("Layer", bound=nn.Module)


def quantize_linears(
    model: nn.Module,
    granularity: Granularity | str = "per_channel",
    skip: Sequence[str] = (),
    *,
    group_size: int | None = None,
    compute: Compute = "w8a16",
) -> list[str]:
    """Replace the `nn.Linear` layers of `model` by `Int8Linear`, one at a time.

    Left in float: the output head, layers named by `skip`, subclasses of `nn.Linear` (they compute
    something else), and layers that share their weight with another module, such as an embedding.

    Args:
        model: changed in place; unchanged if an error is raised.
        granularity: `PerChannel()`, `PerGroup(n)`, "per_channel", or "per_group" with group_size.
        skip: names, or last parts of names, of layers or of modules that hold them.
        group_size: input features per scale, for "per_group".
        compute: "w8a16", float products with dequantized weights, or "w8a8", int8 products with x
            quantized per token; follow that by `calibrate`.

    Returns:
        Full names of the converted layers, in the model's order.

    Raises:
        ConfigError: nothing is left to convert, a skip entry matches nothing, a weight is not
            finite, group_size does not divide in_features (the message names the layer), or
            compute is unknown, or is w8a8 with "per_group".
        UnsupportedError: a layer carries module hooks, which the new layer would lose.

    Source: Dettmers et al. 2022, https://arxiv.org/abs/2208.07339, section 2.1.
    """
    chosen = parse_granularity(granularity, group_size)
    check_compute(compute, chosen)
    names = _convertible(model, _skipped(model, skip))
    # Every scale first: an error in the last layer must not leave a model that is half converted.
    scales: dict[str, Tensor] = {}
    for name in names:
        layer = model.get_submodule(name)
        _check_no_hooks(layer, name)
        weight = layer.get_parameter("weight")
        scales[name] = choose_qparams(weight, chosen, where=f"quantization of {name}")

    _replace(
        model, nn.Linear, names, lambda layer, name: Int8Linear.from_scale(layer, scales.pop(name))
    )
    for name in names:
        layer = model.get_submodule(name)
        if isinstance(layer, Int8Linear):
            layer.set_compute(compute)
    share_inputs(model)
    return names


def check_compute(compute: str, granularity: Granularity) -> None:
    """Refuse a compute that does not exist, or that this granularity rules out.

    Raises:
        ConfigError: the message says what to change.
    """
    if compute not in COMPUTES:
        raise ConfigError(
            f"quantization.compute: must be one of {', '.join(COMPUTES)}; got {compute!r}"
            f"{suggest(compute, COMPUTES)}"
        )
    if compute == "w8a8" and isinstance(granularity, PerGroup):
        # dX sums over the output features, where the scales of a group vary: an int8 product
        # would need grad quantized anew for each group.
        raise ConfigError(
            "quantization.compute: w8a8 must have one scale per output feature; got per_group with"
            f" group_size {granularity.group_size}. Use granularity per_channel, or compute w8a16"
        )


def dequantize_linears(model: nn.Module) -> list[str]:
    """Replace every `Int8Linear` of `model` by the `nn.Linear` it computes, in place.

    Returns:
        Full names of the converted layers, in the model's order.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, Int8Linear)]
    _replace(model, Int8Linear, names, lambda layer, _: layer.to_linear())
    return names


def _convertible(model: nn.Module, skipped: set[str]) -> list[str]:
    heads = output_head_names(model)
    uses = Counter(
        id(parameter)
        for module in model.modules()
        for parameter in module._parameters.values()
        if parameter is not None
    )
    linears = {n: m for n, m in model.named_modules() if type(m) is nn.Linear}
    if "" in linears:
        raise ConfigError(
            "quantize_linears: must be given a model that holds layers; got a bare Linear"
        )
    shared = {name for name, layer in linears.items() if uses[id(layer.weight)] > 1}
    names = [name for name in linears if name not in heads | skipped | shared]
    if not names:
        raise ConfigError(
            f"quantization: {type(model).__name__} must have a linear layer to convert; of"
            f" {len(linears)} nn.Linear layers, {len(heads & linears.keys())} are the output head,"
            f" {len(shared)} share their weight and {len(skipped & linears.keys())} are skipped"
        )
    return names


def _skipped(model: nn.Module, skip: Sequence[str]) -> set[str]:
    """Full names of the modules that `skip` names, and of those inside them."""
    if isinstance(skip, str):
        raise ConfigError(f"quantization.skip: must be a list of names; got the string {skip!r}")
    known = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    skipped: set[str] = set()
    for entry in skip:
        matches = [name for name in known if name == entry or name.endswith(f".{entry}")]
        if not matches:
            linears = [n for n, m in model.named_modules() if type(m) is nn.Linear]
            parts = {name.rpartition(".")[2] for name in linears}
            candidates = linears if "." in entry else {part for part in parts if not part.isdigit()}
            raise ConfigError(
                f"quantization.skip: must name a layer of the model; got {entry!r}"
                f"{suggest(entry, candidates)}"
            )
        inside = tuple(f"{name}." for name in matches)
        skipped.update(name for name in known if name in matches or name.startswith(inside))
    return skipped


def _check_no_hooks(layer: nn.Module, name: str) -> None:
    hooks = (
        layer._forward_hooks,
        layer._forward_pre_hooks,
        layer._backward_hooks,
        layer._backward_pre_hooks,
    )
    if any(hooks):
        raise UnsupportedError(
            f"quantization of {name}: the layer must carry no module hooks; got"
            f" {sum(map(len, hooks))}. Quantize before whatever installs them, or skip the layer"
        )


def _replace(
    model: nn.Module,
    kind: type[Layer],
    names: Sequence[str],
    convert: Callable[[Layer, str], nn.Module],
) -> None:
    """Put convert(layer, name) wherever the named layer stands; one layer may have several places.

    A layer is let go before the next one is made, so that two forms of one weight exist at most.
    """
    found = {id(model.get_submodule(name)): name for name in names}
    places: dict[str, list[tuple[nn.Module, str]]] = {name: [] for name in names}
    for parent in model.modules():
        for attribute, child in parent._modules.items():
            if id(child) in found:
                places[found[id(child)]].append((parent, attribute))
    for name in names:
        layer = model.get_submodule(name)
        if isinstance(layer, kind):
            converted = convert(layer, name)
            for parent, attribute in places[name]:
                setattr(parent, attribute, converted)
