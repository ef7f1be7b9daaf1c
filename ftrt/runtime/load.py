"""Reading runs back: `load_run`, evaluation, prediction."""

__all__ = [
    "LoadedRun",
    "evaluate_run",
    "held_out",
    "load_model",
    "load_run",
    "measure",
    "predict_run",
    "read_info",
]

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftrt import checkpoint
from ftrt.api import Head
from ftrt.data import EncodedSplit, encode_split, load_splits, read_prediction_rows
from ftrt.errors import CheckpointError, UsageError
from ftrt.integrations import peft as peft_bridge
from ftrt.integrations import transformers as bridge
from ftrt.integrations import transformers_training as training
from ftrt.integrations.transformers_loss import choose_loss
from ftrt.quantization.convert import dequantize_linears
from ftrt.recipe import DataSection, QuantizationSection, Recipe, parse
from ftrt.registry import Registry
from ftrt.runtime.base import check_dtype, quantize_base, read_base
from ftrt.runtime.calibration import restore_layers

# What `ftrt.json` must say for a run to be read back, measured and merged.
NEEDED = (
    "recipe.method",
    "head.state",
    "base.fingerprint",
    "kind",
    "results.steps",
    "data.fingerprint",
    "plugins",
)
KINDS = ("adapter", "model")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedRun:
    """A run folder read back: the model in eval mode, its tokenizer, its head, and what `ftrt.json`
    says.
    """

    model: Any
    tokenizer: Any
    head: Head
    recipe: Recipe
    info: dict[str, Any]
    path: Path


def load_run(
    path: str | Path,
    *,
    base: str | None = None,
    dtype: str | None = None,
    quantized: bool | None = None,
) -> LoadedRun:
    """Read a run folder back.

    Args:
        path: the run folder.
        base: where the base model is, if not where the recipe had it.
        dtype: dtype of the float weights; the recipe's by default.
        quantized: True puts the linear layers in int8, False reads them in float; as the run had
            them by default.

    Raises:
        CheckpointError: not a run folder, files missing or corrupt, or the base is not the one it
            was trained on.
        ConfigError: not a dtype of weights.
        UsageError: a base is given for a run that holds a full model.
        UnsupportedError: the run is int8 and the CPU kernels do not take the dtype.
    """
    if dtype is not None:
        bridge.float_dtype(dtype)
    folder = Path(path).expanduser()
    info = read_info(folder)
    recipe = parse(info["recipe"], str(folder / checkpoint.RUN_INFO))
    registry = Registry()
    if recipe.head is None or recipe.model is None:
        raise CheckpointError(
            f"{folder / checkpoint.RUN_INFO}: must name model and head; the run was not made by"
            f" train"
        )
    head = registry.head(recipe.head)
    head.load_state(info["head"]["state"])
    tokenizer = bridge.load_tokenizer(str(folder))
    is_adapter = info["kind"] == "adapter"
    if base is not None and not is_adapter:
        raise UsageError(f"{folder}: holds a full model, which has no base; got base {base!r}")
    source = base or recipe.model.path if is_adapter else str(folder)
    # a full model's own config.json already has the blocks and settings it was trained with
    section = (
        recipe.model
        if is_adapter
        else recipe.model.model_copy(update={"layers": None, "config": {}})
    )
    # a full model's own folder says what of it is int8
    recorded = recipe.quantization if is_adapter and quantized is not False else None
    quantization = recorded or (QuantizationSection() if quantized else None)
    model: Any = read_base(section, head, quantization=quantization, path=source)
    if is_adapter:
        model = head.attach(model, tokenizer)
        _check_base(model, info, source, folder)
    quantize_base(model, quantization, head.new_modules(model))
    if recorded is not None:
        restore_layers(model, info.get("layers"), str(folder / checkpoint.RUN_INFO))
    if quantized is False:
        dequantize_linears(model)
    if is_adapter:
        with bridge.quiet():
            model = peft_bridge.load(model, folder)
    if dtype is not None:
        # only now: the base is recognised by its values in the dtype it was trained in
        model = model.to(bridge.float_dtype(dtype))
        check_dtype(model)
    return LoadedRun(model.train(False), tokenizer, head, recipe, info, folder)


def read_info(folder: Path) -> dict[str, Any]:
    """What `ftrt.json` of a finished run says.

    Raises:
        CheckpointError: not a run folder, or the run is not finished.
    """
    if not folder.is_dir():
        found = "a file stands there" if folder.exists() else "it does not exist"
        raise CheckpointError(f"{folder}: must be a run folder; {found}")
    info = checkpoint.read_run_info(folder)
    if info is None:
        unfinished = checkpoint.last_checkpoint(folder)
        hint = "; training has not finished: `ftrt train RECIPE --resume`" if unfinished else ""
        raise CheckpointError(
            f"{folder}: must be a run folder with {checkpoint.RUN_INFO}; it has none{hint}"
        )
    file = folder / checkpoint.RUN_INFO
    missing = [key for key in NEEDED if not _holds(info, key)]
    if missing:
        raise CheckpointError(f"{file}: must hold {', '.join(missing)}; it does not")
    if info["kind"] not in KINDS:
        raise CheckpointError(f"{file}: kind must be {' or '.join(KINDS)}; got {info['kind']!r}")
    return info


def _holds(info: Mapping[str, Any], key: str) -> bool:
    """Whether the value of a dotted key is there, in mappings all the way."""
    value: Any = info
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value is not None


def _check_base(model: Any, info: Mapping[str, Any], source: str, folder: Path) -> None:
    expected, found = info["base"]["fingerprint"], checkpoint.base_fingerprint(model)
    if found != expected:
        raise CheckpointError(
            f"{folder}: its base must be the model it was trained on (fingerprint"
            f" {expected[:16]}); {source} has"
            f" {found[:16]}; give the right one with --base"
        )


def load_model(path: str, *, head: Head | None = None, dtype: str = "float32") -> tuple[Any, Any]:
    """Read (model, tokenizer) from a model folder, an asset or a run folder; in eval mode.

    Args:
        path: where it is.
        head: chooses the Auto class, and nothing else: the model keeps its own labels. Not used for
            a run folder, which knows its own.
        dtype: dtype of the float weights.
    """
    bridge.float_dtype(dtype)
    if not path.startswith("asset:") and (Path(path).expanduser() / checkpoint.RUN_INFO).is_file():
        run = load_run(path, dtype=dtype)
        return run.model, run.tokenizer
    tokenizer = bridge.load_tokenizer(path)
    auto_class = head.auto_class if head is not None else "AutoModel"
    model = bridge.load_model(path, auto_class, dtype=dtype)
    return model.train(False), tokenizer


def evaluate_run(
    path: str | Path,
    *,
    data: str | None = None,
    split: str | None = None,
    batch_size: int = 32,
    base: str | None = None,
) -> dict[str, Any]:
    """Measure a run on a file, or on a split of its own data.

    Returns:
        The head's metrics, `loss`, `rows` and `fingerprint` of the measured rows.

    Raises:
        UsageError: the run's recipe has no such split.
    """
    run = load_run(path, base=base)
    encoded, name = held_out(run, data=data, split=split)
    metrics = measure(run, run.model, encoded, batch_size=batch_size)
    return {**metrics, "rows": len(encoded), "split": name}


def held_out(
    run: LoadedRun, *, data: str | None = None, split: str | None = None
) -> tuple[EncodedSplit, str]:
    """Rows to measure a run on, encoded, and what they are: a split of its own data, by default the
    test split, or the validation split of a recipe without one; or a file.

    Raises:
        UsageError: the run's recipe has no such split.
        DataError: the data cannot be read.
    """
    registry = Registry()
    section = run.recipe.data
    transforms = [registry.transform(item) for item in section.transforms]
    if data is not None:
        section = DataSection(
            train=data,
            validation=None,
            test=None,
            columns=section.columns,
            on_bad_row=section.on_bad_row,
            max_length=section.max_length,
            where=section.where if data.startswith("asset:") else {},
        )
        split = "train"
    splits = load_splits(
        section,
        columns=run.head.columns,
        optional=run.head.optional_columns,
        transforms=transforms,
        answers=run.head.answer_columns,
    )
    by_name = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    # as training does
    split = split or ("test" if splits.test else "validation")
    rows = by_name[split]
    if not rows:
        raise UsageError(
            f"{run.path}: its recipe has no {split} split; choose another with --split, or give"
            " rows with --data FILE"
        )
    encoded = encode_split(run.head, rows, run.tokenizer, max_length=section.max_length)
    return encoded, split if data is None else data


def measure(
    run: LoadedRun, model: Any, encoded: EncodedSplit, *, batch_size: int = 32
) -> dict[str, float]:
    """The head's metrics and `loss` of a model with the run's head and tokenizer."""
    choose_loss(model, run.recipe, run.head)
    return training.evaluate_model(model, run.head, run.tokenizer, encoded, batch_size=batch_size)


def predict_run(
    path: str | Path,
    rows: Sequence[Mapping[str, Any] | str] | str | Path,
    *,
    base: str | None = None,
    batch_size: int = 32,
) -> list[dict[str, Any]]:
    """Answers of a run for rows, or for the rows of a file; the columns are mapped as in its
    recipe.
    """
    run = load_run(path, base=base)
    if isinstance(rows, (str, Path)):
        section = run.recipe.data
        registry = Registry()
        rows = read_prediction_rows(
            rows,
            columns=run.head.columns,
            optional=run.head.optional_columns,
            mapping=section.columns,
            transforms=[registry.transform(item) for item in section.transforms],
            on_bad_row=section.on_bad_row,
            answers=run.head.answer_columns,
        )
    whole = [run.head.row_from_text(row) if isinstance(row, str) else row for row in rows]
    answers: list[dict[str, Any]] = []
    for start in range(0, len(whole), batch_size):
        answers += run.head.predict(
            run.model,
            run.tokenizer,
            whole[start : start + batch_size],
            max_length=run.recipe.data.max_length,
        )
    return answers
