"""`attach`: put a recipe's quantization, head, method and losses on a model that somebody else will
train.
"""

__all__ = ["Parts", "Run", "attach", "build_parts", "check_setting"]

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from torch import nn

from ftrt.api import (
    Head,
    LossTerm,
    Method,
    ModelMethod,
    Setting,
    SignalSource,
    count_trainable,
)
from ftrt.checkpoint import base_fingerprint
from ftrt.errors import ConfigError, UnsupportedError, UsageError
from ftrt.integrations import peft as peft_bridge
from ftrt.integrations.transformers import quiet
from ftrt.integrations.transformers_callbacks import MethodCallback
from ftrt.integrations.transformers_compile import (
    CompiledBlocks,
    check_compile,
    compile_blocks,
)
from ftrt.integrations.transformers_loss import LossRoad, choose_loss
from ftrt.losses import TASK, LossHandle, WeightedTerm, attach_losses
from ftrt.quantization.distributed import keep_out_of_ddp
from ftrt.recipe import LossSection, Recipe, load
from ftrt.registry import Registry
from ftrt.runtime.base import quantize_base
from ftrt.runtime.calibration import Calibration, choose_computes, on_batches
from ftrt.runtime.snapshot import ModelSnapshot

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, TrainerCallback

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """What a recipe names, built and validated, before any weight is read."""

    recipe: Recipe
    registry: Registry
    head: Head | None
    method: Method | None
    losses: tuple[tuple[LossSection, LossTerm | None, SignalSource | None], ...]

    @property
    def needs_hidden_states(self) -> bool:
        """Whether any loss term reads hidden states."""
        return any(term is not None and term.needs_hidden_states for _, term, _ in self.losses)


@dataclass
class Run:
    """A model with a recipe on it.

    Attributes:
        model: what to train; a `PeftModel` for adapter methods.
        callbacks: `transformers.TrainerCallback`s to hand to the Trainer (rank schedules, loss
            schedules).
        param_groups: optimizer groups if the method wants its own, else None.
        base_fingerprint: identity of the base, recorded with the adapter.
        quantized: names of the layers that were turned into int8.
        loss_road: how a causal language model computes its loss; None for another model.
        compiled: the blocks that run compiled; None without the recipe's `compile`.
    """

    model: Any
    recipe: Recipe
    head: Head | None
    method: Method | None
    registry: Registry
    base_fingerprint: str
    quantized: list[str]
    losses: LossHandle | None
    loss_road: LossRoad | None
    compiled: CompiledBlocks | None
    callbacks: "list[TrainerCallback]"
    param_groups: list[dict[str, Any]] | None
    _original: nn.Module = field(repr=False)
    _snapshot: ModelSnapshot | None = field(repr=False)

    def detach(self) -> nn.Module:
        """Put the model back exactly as `attach` found it and return it; what was trained is
        dropped.

        Raises:
            UsageError: attached with `restorable=False`, or detached already.
        """
        if self._snapshot is None:
            raise UsageError(
                "run.detach: the run must be restorable and still attached; it was attached with"
                " restorable=False"
                " or is detached already"
            )
        if self.losses is not None:
            self.losses.remove()
        if self.loss_road is not None:
            self.loss_road.remove()
        if self.compiled is not None:
            self.compiled.remove()
        self._snapshot.restore()
        self._snapshot = None
        self.model = self._original
        return self._original

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._snapshot is not None:
            self.detach()


def build_parts(recipe: Recipe, registry: Registry) -> Parts:
    """Build and validate every plugin a recipe names.

    Raises:
        PluginError: a plugin is missing or broken.
        ConfigError: an option is wrong, or the parts do not go together.
    """
    head = registry.head(recipe.head) if recipe.head else None
    method = registry.method(recipe.method) if recipe.method else None
    if method is not None:
        check_setting(recipe, head, method)
    _require_a_weight(recipe)
    if recipe.compile:
        check_compile(recipe.training)
    losses: list[tuple[LossSection, LossTerm | None, SignalSource | None]] = []
    teachers: dict[str, SignalSource] = {}
    for section in recipe.losses:
        if section.name == TASK:
            if section.options or section.teacher:
                raise ConfigError(
                    f"losses: the term {TASK!r} takes weight and schedule only; got"
                    f" {section.options}"
                )
            losses.append((section, None, None))
            continue
        term = registry.loss(section)
        if term.needs_signal and section.teacher is None:
            raise ConfigError(
                f"loss {term.name!r}: needs `teacher: PATH` (or teacher: {{name: ...}}); none is"
                f" given"
            )
        if section.teacher is not None and not term.needs_signal:
            raise ConfigError(f"loss {term.name!r}: reads no teacher; remove `teacher`")
        signal = None
        if section.teacher is not None:
            # terms with the same teacher share it, so that it is read and run once
            key = section.teacher.model_dump_json()
            if key not in teachers:
                teachers[key] = registry.signal(section.teacher)
            signal = teachers[key]
        losses.append((section, term, signal))
    return Parts(recipe, registry, head, method, tuple(losses))


def check_setting(
    recipe: Recipe, head: Head | None, method: Method, model: Mapping[str, Any] | None = None
) -> None:
    """Refuse a method that does not work with the rest of the recipe.

    Args:
        recipe: the whole recipe.
        head: as the recipe names it.
        method: as the recipe names it.
        model: the base's `config.json`, once it can be read.

    Raises:
        UnsupportedError: the message names the method, and what works.
    """
    quantization = recipe.quantization.dtype if recipe.quantization else None
    method.check_setting(
        Setting(
            quantization=quantization,
            task_type=head.task_type if head else None,
            training=recipe.training,
            compile=recipe.compile,
            losses=tuple(section.name for section in recipe.losses),
            model=model,
        )
    )
    # a full model in int8 could not be saved as the plain transformers model a run folder promises
    if quantization and isinstance(method, ModelMethod):
        raise UnsupportedError(
            f"method {method.name!r}: trains the base's own weights, which int8 cannot be; got"
            f" quantization: {quantization}. Remove `quantization`, or choose an adapter method"
            f" such as lora"
        )
    if quantization and not method.supports_quantized_base:
        raise UnsupportedError(
            f"method {method.name!r}: needs a float base; got quantization: {quantization}. Remove"
            f" `quantization`, or choose a method that supports it, such as lora"
        )
    if recipe.training.get("gradient_checkpointing") and not method.supports_gradient_checkpointing:
        raise UnsupportedError(
            f"method {method.name!r}: must run without gradient checkpointing; got"
            " training.gradient_checkpointing: true. Remove it, or choose a method that supports"
            " it, such as lora"
        )


def _require_a_weight(recipe: Recipe) -> None:
    # the student's own loss counts with weight 1 unless the recipe lists it
    weights = {TASK: 1.0, **{section.name: section.weight for section in recipe.losses}}
    if not any(weights.values()):
        raise ConfigError(
            f"losses: at least one weight must be > 0, or nothing trains; got {weights}"
        )


def attach(
    model: nn.Module,
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    restorable: bool = True,
    calibration: Iterable[Any] | None = None,
) -> Run:
    """Put a recipe on a model; train `run.model` with any trainer.

    Only `quantization`, `method`, `head` and `losses` apply. Nothing outside the model is changed.

    Args:
        model: a float model, usually a `PreTrainedModel`. It is changed in place.
        recipe: a YAML file, a mapping of the same shape, or a `Recipe`.
        tokenizer: for heads that need one (padding of decoder-only classifiers).
        restorable: keep what `run.detach()` needs. With an int8 base that includes the float
            weights; False frees them.
        calibration: batches to measure int8 layers that compute w8a8 on, as for `ftrt.calibrate`;
            without them no layer is measured, and a warning says so.

    Raises:
        ConfigError, PluginError, UnsupportedError: before the model is touched where that can be
            known, otherwise after putting it back.
    """
    registry = Registry()
    parts = build_parts(registry.expand(load(recipe)), registry)
    if parts.method is None:
        raise ConfigError("attach: the recipe must name a method; add `method: {name: lora}`")
    chosen = on_batches(parts.recipe.quantization, calibration) if calibration is not None else None
    return attach_parts(
        model, parts, tokenizer=tokenizer, restorable=restorable, calibration=chosen
    )


def attach_parts(
    model: nn.Module,
    parts: Parts,
    *,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    restorable: bool = True,
    calibration: Calibration | None = None,
) -> Run:
    """`attach` with the recipe's parts already built."""
    snapshot = ModelSnapshot(model)
    try:
        run = _attach(model, parts, tokenizer, calibration)
    except BaseException:
        snapshot.restore()
        raise
    if restorable:
        snapshot.keep_values()
        run._snapshot = snapshot
    return run


def _attach(
    model: nn.Module,
    parts: Parts,
    tokenizer: "PreTrainedTokenizerBase | None",
    calibration: Calibration | None,
) -> Run:
    recipe, head, method = parts.recipe, parts.head, parts.method
    original = model
    if head is not None:
        model = head.attach(model, tokenizer)  # type: ignore[arg-type]
    fingerprint = base_fingerprint(model)
    new_modules = head.new_modules(model) if head is not None else []
    quantized = quantize_base(model, recipe.quantization, new_modules)
    choose_computes(model, recipe.quantization, calibration)
    if isinstance(method, ModelMethod):
        method.prepare(model, new_modules)
    elif method is not None:
        with quiet():
            model = peft_bridge.wrap(
                model, method, new_modules=new_modules, task_type=head.task_type if head else None
            )
    keep_out_of_ddp(model)
    loss_road = choose_loss(model, recipe, head, [term for _, term, _ in parts.losses])
    losses = _attach_losses(model, parts, loss_road)
    callbacks: list[TrainerCallback] = (
        [MethodCallback(method, losses)] if method is not None else []
    )
    run = Run(
        model=model,
        recipe=recipe,
        head=head,
        method=method,
        registry=parts.registry,
        base_fingerprint=fingerprint,
        quantized=quantized,
        losses=losses,
        loss_road=loss_road,
        compiled=compile_blocks(model) if recipe.compile else None,
        callbacks=callbacks,
        param_groups=method.param_groups(model) if method is not None else None,
        _original=original,
        _snapshot=None,
    )
    parts.registry.manager.call("after_attach", run=run)
    trainable, total = count_trainable(model)
    logger.info(
        "attached: %d of %d parameters train, %d layers in int8", trainable, total, len(quantized)
    )
    return run


def _attach_losses(model: nn.Module, parts: Parts, road: LossRoad | None) -> LossHandle | None:
    for signal in {id(signal): signal for _, _, signal in parts.losses}.values():
        if signal is not None:
            signal.bind(parts.head, model)
    terms = [
        WeightedTerm(section.name, term, section.weight, section.schedule, signal)
        for section, term, signal in parts.losses
    ]
    # without terms too: a classifier's own loss is rescaled under gradient accumulation
    uses_count = True if road is not None and road.in_training else None
    return attach_losses(model, terms, head=parts.head, uses_count=uses_count)
