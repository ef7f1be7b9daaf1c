"""`train`: from a recipe to a run folder."""

__all__ = ["TrainResult", "train"]

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftrt import checkpoint
from ftrt.api import Head, count_trainable
from ftrt.data import EncodedSplit, Splits, encode_split, load_splits
from ftrt.data.rows import Row
from ftrt.errors import CheckpointError, ConfigError, InterruptedRun, explain_os_error
from ftrt.integrations import transformers as bridge
from ftrt.integrations import transformers_training as training
from ftrt.integrations.transformers_callbacks import (
    InterruptCallback,
    Listener,
    ListenerCallback,
    RecordCallback,
    peak_memory_bytes,
)
from ftrt.recipe import Recipe, load
from ftrt.registry import Registry
from ftrt.runtime.attachment import Parts, Run, attach_parts, build_parts, check_setting
from ftrt.runtime.base import read_base
from ftrt.runtime.calibration import LAYERS, Calibration, on_rows, read_layers, write_layers
from ftrt.runtime.report import run_info, write_card, write_loss_plot

if TYPE_CHECKING:
    from transformers import Trainer

logger = logging.getLogger(__name__)

Say = Callable[[str], None]


@dataclass(frozen=True)
class TrainResult:
    """What a training run ended with.

    Attributes:
        run_dir: the run folder.
        before: metrics of the held-out split before training; empty unless the recipe sets
            `baseline`.
        after: metrics of the held-out split (test, else validation) after training; empty without
            such a split.
        train_seconds: wall time of the optimizer steps, evaluations and checkpoints included.
        tokens_per_second: trained tokens, padding not counted, over that time.
    """

    run_dir: Path
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    train_seconds: float = 0.0
    tokens_per_second: float = 0.0
    steps: int = 0
    trainable_parameters: int = 0
    all_parameters: int = 0
    peak_memory_bytes: int = 0
    best_checkpoint: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The same as JSON values."""
        return {**asdict(self), "run_dir": str(self.run_dir)}


@dataclass(frozen=True)
class _Job:
    """Everything one training run needs, once recipe, data and model have been read."""

    recipe: Recipe
    output: Path
    splits: Splits
    tokenizer: Any
    run: Run
    head: Head
    train: EncodedSplit
    validation: EncodedSplit | None
    held_out: EncodedSplit | None


def train(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    overwrite: bool = False,
    listener: Listener | None = None,
) -> TrainResult:
    """Fine-tune as the recipe says and write the run folder.

    Args:
        recipe: a YAML file, a mapping, or a `Recipe` with model, method, head, data.train and
            output.
        overrides: `key=value` strings that win over the recipe.
        resume: go on from the newest complete checkpoint in the output folder.
        overwrite: replace a run folder that stands there.
        listener: told about progress.

    Raises:
        ConfigError, PluginError: before data or weights are read.
        DataError, CheckpointError: data, model or output folder cannot be used.
        InterruptedRun: a signal stopped it; a checkpoint has been saved.
    """
    registry = Registry()
    whole = registry.expand(load(recipe, overrides))
    _check_complete(whole)
    fields = training.check_training(whole.training)
    parts = build_parts(whole, registry)
    output = Path(str(whole.output)).expanduser()
    checkpoint.check_output(output, resume=resume, overwrite=overwrite)
    _refuse_inputs_below(output, whole, overwrite=overwrite)
    say = listener.message if listener is not None else logger.info
    kept = read_layers(output) if resume else None
    if kept is None and resume and checkpoint.last_checkpoint(output) is not None:
        _say_what_is_lost(whole, output, say)
    job = _prepare(parts, output, say, kept=kept)
    return _run(job, fields, listener, say, resume=resume, overwrite=overwrite)


def _say_what_is_lost(recipe: Recipe, output: Path, say: Say) -> None:
    # the same rows of the same base give the same choice; another machine may round otherwise
    if recipe.quantization is not None and recipe.quantization.compute == "w8a8":
        say(f"{output / LAYERS} is missing: the int8 layers are calibrated anew")


def _check_complete(recipe: Recipe) -> None:
    needed = {
        "model": (recipe.model, "model: {path: asset:all-MiniLM-L6-v2}"),
        "method": (recipe.method, "method: {name: lora}"),
        "head": (recipe.head, "head: {name: sequence_classification}"),
        "data.train": (recipe.data.train, "data: {train: train.jsonl}"),
        "output": (recipe.output, "output: ./out"),
    }
    missing = [
        f"recipe: {key}: must be given, say `{example}`"
        for key, (value, example) in needed.items()
        if not value
    ]
    if missing:
        raise ConfigError("\n".join(missing))


def _refuse_inputs_below(output: Path, recipe: Recipe, *, overwrite: bool) -> None:
    """An input inside the folder that `--overwrite` empties would be deleted with it."""
    data = recipe.data
    sources = [recipe.model.path if recipe.model else None, data.train, data.validation, data.test]
    sources += [term.teacher.options.get("path") for term in recipe.losses if term.teacher]
    for source in sources if overwrite else []:
        if isinstance(source, str) and Path(source).expanduser().resolve().is_relative_to(
            output.resolve()
        ):
            raise ConfigError(
                f"{source}: must not lie in the output folder {output}, which --overwrite empties;"
                " choose another output"
            )


def _prepare(parts: Parts, output: Path, say: Say, *, kept: Calibration | None) -> _Job:
    recipe, head = parts.recipe, parts.head
    if recipe.model is None or head is None:
        raise ConfigError("recipe: model and head must be given")
    transforms = [parts.registry.transform(section) for section in recipe.data.transforms]
    say(f"reading {recipe.data.train}")
    splits = load_splits(
        recipe.data,
        columns=head.columns,
        optional=head.optional_columns,
        transforms=transforms,
        answers=head.answer_columns,
    )
    head.fit(splits.train)
    say(f"reading {recipe.model.path}")
    bridge.set_seed(recipe.seed)
    tokenizer = bridge.load_tokenizer(recipe.model.path)
    if parts.method is not None:
        check_setting(recipe, head, parts.method, bridge.read_config(recipe.model.path))
    model = read_base(recipe.model, head, quantization=recipe.quantization)
    bridge.check_length(model, recipe.data.max_length)
    # before encoding: a model that was trained on these labels keeps its own order of them
    calibration = kept or on_rows(recipe, head, tokenizer, splits.train)
    run = attach_parts(model, parts, tokenizer=tokenizer, restorable=False, calibration=calibration)

    def encode(rows: Sequence[Row] | None) -> EncodedSplit | None:
        length = recipe.data.max_length
        return encode_split(head, rows, tokenizer, max_length=length) if rows else None

    say(f"encoding {len(splits.train)} training rows")
    train_split = encode_split(head, splits.train, tokenizer, max_length=recipe.data.max_length)
    validation = encode(splits.validation)
    held_out = encode(splits.test) or validation
    _report_truncation(train_split, recipe.data.max_length, say)
    return _Job(recipe, output, splits, tokenizer, run, head, train_split, validation, held_out)


def _report_truncation(split: EncodedSplit, max_length: int, say: Say) -> None:
    if split.truncated_rows:
        share = split.truncated_rows / len(split)
        say(
            f"max_length {max_length} cuts {split.truncated_tokens} tokens from"
            f" {split.truncated_rows} training rows ({share:.0%})"
        )


def _run(
    job: _Job,
    fields: dict[str, Any],
    listener: Listener | None,
    say: Say,
    *,
    resume: bool,
    overwrite: bool,
) -> TrainResult:
    interrupt = InterruptCallback()
    trainer = _trainer(job, fields, listener, interrupt)
    # everything that can be wrong with the inputs has been found by now
    checkpoint.start_output(job.output, overwrite=overwrite)
    write_layers(job.output, job.run.model)
    before: dict[str, float] = {}
    if job.recipe.baseline and job.held_out is not None:
        say(f"measuring {len(job.held_out)} held-out rows before training")
        before = training.evaluate(trainer, job.held_out, "before")
    resume_from = checkpoint.last_checkpoint(job.output) if resume else None
    if resume and resume_from is None:
        say("no checkpoint to resume from; starting at step 0")
    started = time.perf_counter()
    try:
        with interrupt:
            outcome = training.run_trainer(trainer, resume_from)
    finally:
        if listener is not None:
            listener.finished()
    seconds = time.perf_counter() - started
    _raise_if_interrupted(interrupt, trainer.state, job.output)
    after: dict[str, float] = {}
    if job.held_out is not None:
        say(f"measuring {len(job.held_out)} held-out rows")
        after = training.evaluate(trainer, job.held_out, "after")
    trainable, total = count_trainable(job.run.model)
    result = TrainResult(
        run_dir=job.output,
        before=before,
        after=after,
        train_seconds=seconds,
        tokens_per_second=outcome.tokens / max(seconds, 1e-9),
        steps=trainer.state.global_step,
        trainable_parameters=trainable,
        all_parameters=total,
        peak_memory_bytes=peak_memory_bytes(),
        best_checkpoint=trainer.state.best_model_checkpoint,
    )
    _save(job, result)
    return result


def _trainer(
    job: _Job, fields: dict[str, Any], listener: Listener | None, interrupt: InterruptCallback
) -> "Trainer":
    run, recipe, stopping = job.run, job.recipe, job.recipe.early_stopping
    record = RecordCallback(job.output / checkpoint.METRICS)
    callbacks = [*run.callbacks, record, interrupt]
    if listener is not None:
        callbacks.append(ListenerCallback(listener))
    return training.build_trainer(
        run.model,
        job.head,
        job.tokenizer,
        fields=fields,
        output=job.output / checkpoint.CHECKPOINTS,
        seed=recipe.seed,
        train=job.train,
        validation=job.validation,
        callbacks=callbacks,
        param_groups=run.param_groups,
        early_stopping=(stopping.patience, stopping.min_delta) if stopping else None,
    )


def _raise_if_interrupted(interrupt: InterruptCallback, state: Any, output: Path) -> None:
    if interrupt.signal_name is not None and state.global_step < state.max_steps:
        raise InterruptedRun(
            f"interrupted by {interrupt.signal_name} at step {state.global_step} of"
            f" {state.max_steps};"
            f" the checkpoint in {output / checkpoint.CHECKPOINTS} has everything:"
            " run the same command with --resume to go on"
        )


def _save(job: _Job, result: TrainResult) -> None:
    output = job.output
    try:
        bridge.save(job.run.model, job.tokenizer, output)
    except OSError as error:
        raise CheckpointError(
            f"{output}: saving the trained weights failed; {explain_os_error(error)}."
            f" The last"
            f" checkpoint in {output / checkpoint.CHECKPOINTS} is intact"
        ) from None
    encoded = {"train": job.train.summary()}
    if job.held_out is not None:
        encoded["held_out"] = job.held_out.summary()
    info = run_info(job.run, job.splits, result.to_json(), encoded=encoded)
    checkpoint.write_run_info(output, info)
    write_loss_plot(output)
    write_card(output, info)
