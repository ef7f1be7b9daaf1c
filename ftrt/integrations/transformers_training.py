"""Building the `transformers.Trainer`: fields checked beforehand, ftrt's defaults below the
recipe's.
"""

__all__ = [
    "TrainOutcome",
    "build_trainer",
    "check_training",
    "evaluate",
    "evaluate_model",
    "run_trainer",
    "training_schema",
]

import dataclasses
import pickle
import tempfile
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments

from ftrt.api import Head
from ftrt.checkpoint import is_disk_full
from ftrt.errors import CheckpointError, ConfigError, suggest
from ftrt.integrations.transformers import first_line, quiet
from ftrt.integrations.transformers_callbacks import TIMING

# Fields that ftrt sets itself, with what to write instead.
RESERVED_FIELDS = {
    "output_dir": "set `output` at the top of the recipe",
    "seed": "set `seed` at the top of the recipe",
    "resume_from_checkpoint": "use `ftrt train --resume`",
    "remove_unused_columns": "ftrt's heads choose the columns",
    "label_names": "ftrt's heads name the labels",
}


READ_ERRORS = (
    OSError,
    RuntimeError,
    ValueError,
    KeyError,
    EOFError,
    SafetensorError,
    pickle.UnpicklingError,
)


def check_training(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Validate the recipe's `training:` against the fields of `transformers.TrainingArguments`.

    Raises:
        ConfigError: unknown or reserved field, or a value of the wrong type; all faults in one
            message.
    """
    hints = typing.get_type_hints(TrainingArguments)
    known = [field.name for field in dataclasses.fields(TrainingArguments) if field.init]
    faults, checked = [], {}
    for name, value in fields.items():
        if name in RESERVED_FIELDS:
            faults.append(f"training.{name}: is ftrt's to set; {RESERVED_FIELDS[name]}")
        elif name not in known:
            faults.append(f"recipe: unknown key 'training.{name}'{suggest(name, known)}")
        else:
            try:
                checked[name] = TypeAdapter(hints[name]).validate_python(value)
            except ValidationError as error:
                message = error.errors()[0]["msg"]
                faults.append(f"training.{name}: {message[0].lower()}{message[1:]}; got {value!r}")
    faults += _range_faults(checked)
    if faults:
        raise ConfigError("\n".join(faults))
    return checked


def _range_faults(fields: Mapping[str, Any]) -> list[str]:
    positive = (
        "per_device_train_batch_size",
        "per_device_eval_batch_size",
        "gradient_accumulation_steps",
        "num_train_epochs",
    )
    faults = [
        f"training.{n}: must be > 0; got {fields[n]}"
        for n in positive
        if n in fields and fields[n] <= 0
    ]
    if fields.get("learning_rate", 0.0) < 0:
        faults.append(f"training.learning_rate: must be >= 0; got {fields['learning_rate']}")
    return faults


def training_schema() -> dict[str, Any]:
    """JSON Schema of the `training:` section: one property for each field of
    `TrainingArguments`.
    """
    hints = typing.get_type_hints(TrainingArguments)
    properties: dict[str, Any] = {}
    for field in dataclasses.fields(TrainingArguments):
        if not field.init or field.name in RESERVED_FIELDS:
            continue
        try:
            schema = TypeAdapter(hints[field.name]).json_schema()
        # a few fields hold library objects that have no JSON form
        except Exception:
            schema = {}
        schema.pop("$defs", None)
        properties[field.name] = {} if "$ref" in str(schema) else schema
        if isinstance(field.default, (bool, int, float, str)):
            properties[field.name]["default"] = field.default
    return {"type": "object", "additionalProperties": False, "properties": properties}


def build_trainer(
    model: nn.Module,
    head: Head,
    tokenizer: PreTrainedTokenizerBase,
    *,
    fields: Mapping[str, Any],
    output: Path,
    seed: int,
    train: Any,
    validation: Any,
    callbacks: Sequence[Any],
    param_groups: list[dict[str, Any]] | None,
    early_stopping: tuple[int, float] | None,
) -> Trainer:
    """A plain `Trainer` over an attached model; ftrt's defaults stand below what the recipe
    says.
    """
    arguments = _arguments(head, fields, output, seed, has_validation=validation is not None)
    callbacks = list(callbacks)
    if early_stopping is not None:
        if not arguments.load_best_model_at_end:
            raise ConfigError(
                "early_stopping: needs a validation split and evaluations that select the best"
                " checkpoint; got"
                f" eval_strategy={arguments.eval_strategy}, load_best_model_at_end=False"
            )
        patience, min_delta = early_stopping
        callbacks.append(transformers.EarlyStoppingCallback(patience, min_delta))
    optimizer = None
    if param_groups is not None:
        optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(
            arguments,
            model,  # type: ignore[arg-type]
        )
        optimizer = optimizer_class(
            [_with_rate(group, arguments.learning_rate) for group in param_groups], **options
        )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=train,
        eval_dataset=validation,
        data_collator=lambda features: head.collate(features, tokenizer),
        compute_metrics=_metrics(head) if head.needs_logits else None,
        callbacks=callbacks,
        optimizers=(optimizer, None),
    )
    # ftrt's own callback reports progress, on a terminal and off it
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def _with_rate(group: Mapping[str, Any], learning_rate: float) -> dict[str, Any]:
    """The optimizer group with its `lr_ratio`, if it has one, as a learning rate."""
    found = dict(group)
    ratio = found.pop("lr_ratio", None)
    if ratio is not None:
        found["lr"] = ratio * learning_rate
    return found


def _metrics(head: Head) -> Any:
    def compute(prediction: Any) -> dict[str, float]:
        return head.metrics(prediction.predictions, prediction.label_ids)

    return compute


def _save_strategy(fields: Mapping[str, Any], *, has_validation: bool) -> str:
    evaluates = str(fields.get("eval_strategy", "epoch")) if has_validation else "no"
    # checkpoints follow the evaluations; without any there is one an epoch to resume from
    return "epoch" if evaluates == "no" else evaluates


def _arguments(
    head: Head, fields: Mapping[str, Any], output: Path, seed: int, *, has_validation: bool
) -> TrainingArguments:
    defaults: dict[str, Any] = {
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 10,
        # the Trainer would log the last finite loss in place of NaN
        "logging_nan_inf_filter": False,
        "save_total_limit": 2,
        "save_strategy": _save_strategy(fields, has_validation=has_validation),
        "eval_strategy": "epoch" if has_validation else "no",
        "load_best_model_at_end": has_validation and fields.get("eval_strategy") != "no",
        "metric_for_best_model": f"eval_{head.metric}",
        "greater_is_better": head.greater_is_better,
        "prediction_loss_only": not head.needs_logits,
        "train_sampling_strategy": "group_by_length",
        "dataloader_pin_memory": torch.cuda.is_available(),
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "include_num_input_tokens_seen": "non_padding",
        "output_dir": str(output),
        "seed": seed,
    }
    if "eval_steps" in fields and "save_steps" not in fields:
        defaults["save_steps"] = fields["eval_steps"]
    try:
        return TrainingArguments(**{**defaults, **fields})
    except (ValueError, ImportError, TypeError) as error:
        raise ConfigError(f"training: {first_line(error)}") from error


@dataclasses.dataclass(frozen=True)
class TrainOutcome:
    """How far a training got: non-padding tokens seen by this call."""

    tokens: int


class _Begun(transformers.TrainerCallback):
    """Whether a first step has begun, so that reading the checkpoint is behind us."""

    stepped = False

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: transformers.TrainerState,
        control: transformers.TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Remember it."""
        self.stepped = True


def run_trainer(trainer: Trainer, resume_from: Path | None) -> TrainOutcome:
    """Train to the end, or on from a checkpoint.

    Raises:
        CheckpointError: the checkpoint does not fit this run or cannot be read; the disk refuses a
            checkpoint.
    """
    seen = 0
    if resume_from is not None:
        state = transformers.TrainerState.load_from_json(str(resume_from / "trainer_state.json"))
        seen = int(state.num_input_tokens_seen)
    output = Path(str(trainer.args.output_dir))
    begun = _Begun()
    trainer.add_callback(begun)
    try:
        with quiet():
            trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    # torch and safetensors write through C++ and Rust and name a full disk each in their own way;
    # each reader of a checkpoint's files has its own errors too
    except READ_ERRORS as error:
        if is_disk_full(error, output):
            raise CheckpointError(
                f"{output}: no space is left for a checkpoint at step {trainer.state.global_step};"
                " earlier checkpoints are intact. Free some space and run the same command with"
                " --resume"
            ) from error
        if resume_from is None or begun.stepped:
            raise
        raise CheckpointError(
            f"{resume_from}: must be a whole checkpoint of this very recipe; {first_line(error)}."
            " Resume with the recipe it was made with, or start anew with --overwrite"
        ) from error
    return TrainOutcome(tokens=int(trainer.state.num_input_tokens_seen) - seen)


def evaluate(trainer: Trainer, split: Any, prefix: str) -> dict[str, float]:
    """Metrics of `split`, named without a prefix; timing figures are left out."""
    with quiet():
        metrics = trainer.evaluate(split, metric_key_prefix=prefix)
    own = {
        k.removeprefix(f"{prefix}_"): v for k, v in metrics.items() if k.startswith(f"{prefix}_")
    }
    return {key: float(value) for key, value in own.items() if not key.endswith(TIMING)}


def evaluate_model(
    model: nn.Module, head: Head, tokenizer: PreTrainedTokenizerBase, split: Any, *, batch_size: int
) -> dict[str, float]:
    """Metrics of a model that is not being trained."""
    with tempfile.TemporaryDirectory() as scratch:
        trainer = build_trainer(
            model,
            head,
            tokenizer,
            fields={"per_device_eval_batch_size": batch_size},
            output=Path(scratch),
            seed=0,
            train=None,
            validation=None,
            callbacks=(),
            param_groups=None,
            early_stopping=None,
        )
        return evaluate(trainer, split, "eval")
