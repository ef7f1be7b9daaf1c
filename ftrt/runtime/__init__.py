"""One run, from a recipe to a saved folder: attach, train, load, evaluate, predict, merge."""

__all__ = [
    "LoadedRun",
    "MergeResult",
    "Run",
    "TrainResult",
    "attach",
    "evaluate_run",
    "load_model",
    "load_quantized",
    "load_run",
    "merge_run",
    "predict_run",
    "train",
]

from ftrt.runtime.attachment import Run, attach
from ftrt.runtime.base import load_quantized
from ftrt.runtime.load import (
    LoadedRun,
    evaluate_run,
    load_model,
    load_run,
    predict_run,
)
from ftrt.runtime.merge import MergeResult, merge_run
from ftrt.runtime.training import TrainResult, train
