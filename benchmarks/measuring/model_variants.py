"""The ways to fine-tune a model that are compared: ftrt through its public functions, its peers.

Each gets a fresh float model with the same weights, the same adapter initialisation (one seed) and
the same targets, rank 16, alpha 32.

    ftrt w8a8, w8a16, bf16     `ftrt.attach`; w8a8 calibrated on a batch if one is given
    ftrt w8a8 stock loss       the same without the chunked cross-entropy
    ftrt fuse                  `ftrt.fuse` on the PEFT bf16 model
    PEFT bf16                  adapters in bfloat16
    PEFT default               float32 adapters under autocast, as the Trainer's bf16=True runs it
    bitsandbytes, torchao      int8 bases with bfloat16 adapters of PEFT
    ... compiled               ftrt by the recipe's `compile`, peers by torch.compile of the model
"""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ftrt.errors import FtrtError
from measuring.linear_variants import autocast

RANK, ALPHA = 16, 32
COMPILED = " compiled"

OWN = ("ftrt w8a8", "ftrt w8a16", "ftrt bf16", "ftrt fuse", "ftrt w8a8 stock loss")
PEERS = ("PEFT bf16", "PEFT default", "bitsandbytes int8 + PEFT", "torchao int8 + PEFT")
COMPILABLE = ("ftrt w8a8", "ftrt w8a16", "ftrt bf16", "PEFT bf16", "PEFT default")
EVERY = (*OWN, *PEERS, *(name + COMPILED for name in COMPILABLE))
# what building or running a peer may raise where it does not work on this machine
FAILURES = (
    ImportError,
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    FtrtError,
    torch._dynamo.exc.TorchDynamoException,
)


@dataclass
class ModelVariant:
    """A model ready to train.

    Attributes:
        name: as printed.
        model: what to call.
        module: the same before compilation.
        context: what forward runs in.
        notes: what a reader should know of it (fall-backs of the calibration).
    """

    name: str
    model: Callable[..., Any]
    module: nn.Module
    context: Callable[[], AbstractContextManager[Any]] = nullcontext
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What trains."""
        return [p for p in self.module.parameters() if p.requires_grad]

    def factors(self) -> dict[str, nn.Parameter]:
        """The LoRA factors by name."""
        return {n: p for n, p in self.module.named_parameters() if ".lora_" in n}


def build(
    name: str,
    make: Callable[[], nn.Module],
    targets: list[str],
    calibration: list[Any] | None = None,
    *,
    seed: int = 0,
) -> ModelVariant:
    """The variant called `name` on a fresh model.

    Args:
        name: one of `EVERY`.
        make: a fresh bfloat16 model.
        targets: linear layers to adapt.
        calibration: batches for `ftrt w8a8`; None leaves every layer as it is.
        seed: of the adapters' initialisation.

    Raises:
        ImportError: the peer is not installed.
    """
    base, is_compiled = name.removesuffix(COMPILED), name.endswith(COMPILED)
    if base.startswith("ftrt"):
        variant = _own(base, make(), targets, calibration, is_compiled=is_compiled, seed=seed)
    else:
        variant = _peer(base, make(), targets, seed)
        if is_compiled:
            variant.model = torch.compile(variant.module, dynamic=False)
    variant.name = name
    return variant


def _own(
    name: str,
    model: nn.Module,
    targets: list[str],
    calibration: list[Any] | None,
    *,
    is_compiled: bool,
    seed: int,
) -> ModelVariant:
    import ftrt
    from ftrt.nn import Int8Linear

    torch.manual_seed(seed)
    if name == "ftrt fuse":
        return ModelVariant(name, fused := ftrt.fuse(_peft(model, targets)), fused)
    method = {"name": "lora", "rank": RANK, "alpha": ALPHA, "targets": targets}
    recipe: dict[str, Any] = {"method": method}
    compute = name.split()[1]
    if compute != "bf16":
        recipe["quantization"] = {"dtype": "int8", "compute": compute}
    if name.endswith("stock loss"):
        recipe["chunked_loss"] = False
    if is_compiled:
        recipe["compile"] = True
    is_measured = compute == "w8a8" and calibration is not None
    run = ftrt.attach(
        model, recipe, restorable=False, calibration=calibration if is_measured else None
    )
    variant = ModelVariant(name, run.model, run.model)
    layers = [m for m in run.model.modules() if isinstance(m, Int8Linear)]
    if layers:
        variant.notes = {
            "int8_layers": len(layers),
            "w8a16": sum(layer.compute == "w8a16" for layer in layers),
            "with_outliers": sum(bool(layer.outlier_columns) for layer in layers),
            "calibrated": is_measured,
        }
    return variant


def _peer(name: str, model: nn.Module, targets: list[str], seed: int) -> ModelVariant:
    if name == "bitsandbytes int8 + PEFT":
        _bitsandbytes(model, targets)
    elif name == "torchao int8 + PEFT":
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        quantize_(
            model,
            Int8WeightOnlyConfig(),
            filter_fn=lambda module, path: (
                isinstance(module, nn.Linear) and path.rpartition(".")[2] in targets
            ),
        )
    is_default = name == "PEFT default"
    torch.manual_seed(seed)
    adapted = _peft(model, targets, float32=is_default)
    device = next(adapted.parameters()).device
    context = autocast(device) if is_default else nullcontext
    return ModelVariant(name, adapted, adapted, context)


def _peft(model: nn.Module, targets: list[str], *, float32: bool = False) -> nn.Module:
    import peft

    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(model, config, autocast_adapter_dtype=float32)


def _bitsandbytes(model: nn.Module, targets: list[str]) -> None:
    """Exchange the targets for bitsandbytes' layers, as transformers does to load in 8 bit."""
    import bitsandbytes

    for path, linear in list(model.named_modules()):
        if not isinstance(linear, nn.Linear) or path.rpartition(".")[2] not in targets:
            continue
        layer = bitsandbytes.nn.Linear8bitLt(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            has_fp16_weights=False,
            threshold=6.0,
            device="meta",
        )
        # it quantizes when a float weight leaves the host
        weight = bitsandbytes.nn.Int8Params(
            linear.weight.data.cpu(), requires_grad=False, has_fp16_weights=False
        )
        layer.weight, layer.bias = weight.to(linear.weight.device), linear.bias
        model.set_submodule(path, layer.requires_grad_(False))
    model.is_loaded_in_8bit = True


def set_factors(variant: ModelVariant, seed: int = 7) -> None:
    """Give the B factors values other than zero, the same in every variant."""
    for name, factor in variant.factors().items():
        if "lora_B" in name:
            generator = torch.Generator().manual_seed(seed + len(name) + factor.numel())
            with torch.no_grad():
                factor.copy_(0.02 * torch.randn(factor.shape, generator=generator))
