"""`merge_run`: a run's adapter written into its base, in float or in int8."""

__all__ = ["Gain", "MergeResult", "merge_run"]

import contextlib
import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from ftrt import checkpoint
from ftrt.errors import (
    CheckpointError,
    ConfigError,
    FtrtError,
    UnsupportedError,
    UsageError,
    explain_os_error,
)
from ftrt.integrations import peft as peft_bridge
from ftrt.integrations import transformers as bridge
from ftrt.integrations.peft_requantize import adapters_off
from ftrt.integrations.transformers_saving import save_llm_int8
from ftrt.nn.layer_report import layer_report
from ftrt.quantization.deferred import chosen_layers, float_weight
from ftrt.quantization.granularity import PerChannel
from ftrt.quantization.int8_layers import int8_layers
from ftrt.quantization.retention import LayerRetention, total_retention
from ftrt.recipe import QuantizationSection
from ftrt.runtime.base import read_base
from ftrt.runtime.load import LoadedRun, held_out, load_run, measure, read_info
from ftrt.runtime.report import card

# The share of what the adapter learnt that an int8 model must keep.
MIN_RETAINED = 0.9

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Gain:
    """What the adapter gains on rows that were held out, before and after merging.

    Attributes:
        metric: the head's, the one that selects the best checkpoint.
        split: which rows.
        rows: how many.
        base: the metric with the adapter switched off; modules that were trained whole, such as a
            new classifier, stay on, since merging does not change them.
        adapter: with the adapter on the base, as it was trained.
        merged: of the merged int8 model.
        greater_is_better: whether a larger metric is better.
    """

    metric: str
    split: str
    rows: int
    base: float
    adapter: float
    merged: float
    greater_is_better: bool

    @property
    def share(self) -> float | None:
        """(merged - base) / (adapter - base); None where the adapter gains nothing."""
        sign = 1 if self.greater_is_better else -1
        gained = sign * (self.adapter - self.base)
        if not math.isfinite(gained) or gained <= 0:
            return None
        share = sign * (self.merged - self.base) / gained
        # a loss that is not finite has kept nothing
        return share if math.isfinite(share) else -math.inf

    def to_json(self) -> dict[str, Any]:
        """The same as JSON values, with the share."""
        return {**vars(self), "share": self.share}


@dataclass(frozen=True)
class MergeResult:
    """What was written, and for int8 how much of the adapter it keeps.

    Attributes:
        folder: the model folder.
        dtype: of the merged weights.
        layers: the score of each adapted int8 layer; empty for a float model.
        gain: on held-out rows; None for a float model, or where none were measured.
    """

    folder: Path
    dtype: str
    layers: tuple[LayerRetention, ...] = ()
    gain: Gain | None = None
    min_retained: float = field(default=MIN_RETAINED, repr=False)

    @property
    def total(self) -> LayerRetention:
        """The score of all layers together."""
        return total_retention(self.layers)

    @property
    def decided_by(self) -> str:
        """`gain`, or `delta` where no gain was measured."""
        return "delta" if self.gain is None or self.gain.share is None else "gain"

    @property
    def retained(self) -> float:
        """The share that the bound is compared with."""
        share = self.gain.share if self.gain is not None else None
        return self.total.retained if share is None else share

    def to_json(self) -> dict[str, Any]:
        """What `ftrt.json` and `ftrt merge --json` say of an int8 model."""
        total = {key: value for key, value in self.total.to_json().items() if key != "name"}
        return {
            "dtype": self.dtype,
            "decided_by": self.decided_by,
            "retained": self.retained,
            "min_retained": self.min_retained,
            "delta": total,
            "gain": self.gain.to_json() if self.gain is not None else None,
            "layers": [layer.to_json() for layer in self.layers],
        }


def merge_run(
    path: str | Path,
    output: str | Path,
    *,
    base: str | None = None,
    dtype: str = "float32",
    min_retained: float | None = None,
    force: bool = False,
    evaluate: bool = True,
) -> MergeResult:
    """Merge a run's adapter into its base and write a transformers model to `output`.

    The adapter is added to the base's original float weights (the int8 rounding of a base that was
    trained on in int8 is not baked in). "int8" then rounds each layer once, per channel, writes an
    LLM.int8 checkpoint, and measures what the rounding costs: `ftrt.quantization.retention` for
    each layer, and the gain on the run's held-out rows.

    Args:
        path: the run folder.
        output: a new or empty folder; nothing is left in it after an error.
        base: where the base model is, if it moved since training.
        dtype: "float32", "bfloat16", "float16" or "int8".
        min_retained: int8: refuse below this share of the gain, or of the delta where no gain was
            measured; 0.9 by default.
        force: int8: write the model also below that.
        evaluate: int8: measure the gain; False goes by the delta alone.

    Raises:
        ConfigError: there is no such dtype.
        UsageError: the run holds a full model already; or options of int8 stand with another dtype.
        CheckpointError: `output` is not empty or cannot be written.
        UnsupportedError: the method cannot be merged; or too little of the adapter survives.
    """
    info = read_info(Path(path).expanduser())
    if info["kind"] != "adapter":
        raise UsageError(f"{path}: holds a full model already; there is no adapter to merge")
    _check_options(dtype, min_retained, force=force, evaluate=evaluate)
    folder = Path(output).expanduser()
    with _reserved(folder):
        if dtype != "int8":
            run = load_run(path, base=base, quantized=False)
            merged = peft_bridge.merge(run.model).to(bridge.float_dtype(dtype))
            with _staging(folder) as staging:
                bridge.save(merged, run.tokenizer, staging)
            return MergeResult(folder, dtype)
        run = load_run(path, base=base)
        bound = MIN_RETAINED if min_retained is None else min_retained
        merged, result = _merged_int8(run, folder, base, bound, evaluate=evaluate)
        if result.retained < bound and not force:
            raise UnsupportedError(_refusal(path, result))
        with _staging(folder) as staging:
            save_llm_int8(merged, staging)
            run.tokenizer.save_pretrained(staging)
            _write_info(staging, folder, merged, run.info, result)
    return result


def _check_options(dtype: str, min_retained: float | None, *, force: bool, evaluate: bool) -> None:
    known = bridge.FLOAT_DTYPES
    if dtype not in (*known, "int8"):
        raise ConfigError(f"merge: dtype must be {', '.join(known)} or int8; got {dtype!r}")
    if dtype != "int8" and (min_retained is not None or force or not evaluate):
        raise UsageError(
            "merge: --min-retained, --force and --no-eval must come with --dtype int8, where a part"
            f" of the adapter may be lost; got {dtype}. Leave them out, or merge into int8"
        )
    if min_retained is not None and not 0 <= min_retained <= 1:
        raise UsageError(f"merge: --min-retained must be within 0..1; got {min_retained}")


def _merged_int8(
    run: LoadedRun, folder: Path, base: str | None, min_retained: float, *, evaluate: bool
) -> tuple[Any, MergeResult]:
    encoded, split = (None, "")
    if evaluate and _has_held_out(run):
        encoded, split = held_out(run)
    before: Mapping[str, float] = {}
    adapted: Mapping[str, float] = {}
    if encoded is not None:
        logger.info(
            "measuring %d held-out rows (%s) with and without the adapter", len(encoded), split
        )
        adapted = measure(run, run.model, encoded)
        with adapters_off(run.model):
            before = measure(run, run.model, encoded)
    names, weight_of = _original_weights(run, base)
    logger.info("merging into %d int8 layers", len(names))
    merged, scores = peft_bridge.merge_int8(run.model, names, weight_of)
    gain = None
    if encoded is not None:
        after = measure(run, merged, encoded)
        metric = run.head.metric
        gain = Gain(
            metric,
            split,
            len(encoded),
            before[metric],
            adapted[metric],
            after[metric],
            run.head.greater_is_better,
        )
    return merged, MergeResult(folder, "int8", tuple(scores), gain, min_retained)


def _has_held_out(run: LoadedRun) -> bool:
    return run.recipe.data.test is not None or run.recipe.data.validation is not None


def _original_weights(run: LoadedRun, base: str | None) -> tuple[list[str], Any]:
    """The layers to put in int8, and a function that reads the original weight of one."""
    if run.recipe.model is None:
        raise CheckpointError(f"{run.path}: its recipe must name the model; it does not")
    section = run.recipe.quantization or QuantizationSection()
    model: Any = read_base(run.recipe.model, run.head, quantization=section, path=base)
    model = run.head.attach(model, run.tokenizer)
    names = chosen_layers(model, PerChannel(), section.skip, run.head.new_modules(model))

    def weight_of(name: str) -> Tensor:
        return float_weight(model.get_submodule(name))

    return names, weight_of


def _refusal(path: str | Path, result: MergeResult) -> str:
    gain = result.gain
    kept = _percent(result.retained, result.min_retained)
    if gain is not None and result.decided_by == "gain":
        found = (
            f"what the adapter gained on the {gain.rows} {gain.split} rows; it keeps"
            f" {kept} ({gain.metric}: {gain.base:.4f} without the adapter,"
            f" {gain.adapter:.4f} with it, {gain.merged:.4f} merged)"
        )
    else:
        worst = min(result.layers, key=lambda layer: layer.retained)
        found = (
            f"the adapter's weights; it keeps {kept} (least in {worst.name},"
            f" {_percent(worst.retained, result.min_retained)}): what is small beside the steps of"
            " int8 is rounded away"
        )
    return (
        f"{path}: the int8 model must keep at least {100 * result.min_retained:g}% of {found}."
        " Nothing was written. Merge with --dtype bfloat16, keep the adapter apart, or write it all"
        " the same with --force"
    )


def _percent(share: float, bound: float) -> str:
    """A share in percent, with the digits that tell it from the bound it is below."""
    for digits in range(6):
        if f"{share:.{digits}%}" != f"{bound:.{digits}%}":
            break
    return f"{share:.{digits}%}"


def _write_info(
    staging: Path, folder: Path, merged: Any, info: Mapping[str, Any], result: MergeResult
) -> None:
    whole = {
        **info,
        "kind": "model",
        "quantized_layers": list(int8_layers(merged)),
        "layers": [layer.to_json() for layer in layer_report(merged)],
        "merge": result.to_json(),
    }
    checkpoint.write_run_info(staging, whole)
    checkpoint.write_atomically(staging / "README.md", card(folder, whole))


@contextlib.contextmanager
def _reserved(folder: Path) -> Iterator[None]:
    """Check that `folder` can be written to before any work is done; it is not left there empty."""
    existed = folder.exists()
    checkpoint.check_output(folder, advice="Choose another folder, or empty this one")
    try:
        yield
    finally:
        if not existed and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


@contextlib.contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """A folder inside `folder` to write into; what is in it moves up at the end, or vanishes.

    Raises:
        CheckpointError: the disk refuses.
    """
    staging = folder / f".ftrt-merge-{os.getpid()}"
    try:
        staging.mkdir()
        yield staging
        # config.json makes a model folder of it, so it comes last
        for file in sorted(staging.iterdir(), key=lambda file: file.name == "config.json"):
            file.replace(folder / file.name)
    # safetensors and tokenizers write through Rust and have errors of their own for a full disk
    except Exception as error:
        is_disk = isinstance(error, OSError | SafetensorError)
        if isinstance(error, FtrtError) or not (is_disk or checkpoint.is_disk_full(error, folder)):
            raise
        raise CheckpointError(_unwritable(folder, error)) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _unwritable(folder: Path, error: Exception) -> str:
    if checkpoint.is_disk_full(error, folder):
        said = "the disk is full; free some space, or choose another folder"
    else:
        said = explain_os_error(error) if isinstance(error, OSError) else str(error)
    return f"{folder}: the merged model must be written whole; {said}. Nothing was written"
