"""The Trainer callbacks of a run: drive the method, record metrics, tell a listener, stop cleanly
on a signal.
"""

__all__ = [
    "TIMING",
    "InterruptCallback",
    "Listener",
    "ListenerCallback",
    "MethodCallback",
    "RecordCallback",
    "peak_memory_bytes",
]

import json
import math
import resource
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ftrt.api import Method
from ftrt.errors import CheckpointError, ConfigError, explain_os_error
from ftrt.losses import LossHandle

# in a checkpoint, beside the Trainer's own files
METHOD_STATE = "ftrt_method.safetensors"
# what the Trainer adds to metrics about the evaluation itself
TIMING = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")


class Listener(Protocol):
    """Whoever wants to show a run's progress; the command line implements it."""

    def message(self, text: str) -> None:
        """A line about what happens now (reading, encoding, evaluating)."""

    def started(self, step: int, total_steps: int) -> None:
        """Training begins at `step` of `total_steps`."""

    def advanced(self, step: int, values: dict[str, float]) -> None:
        """Optimizer step `step` is done; `values` has tokens_per_second, memory_bytes, and loss
        once known.
        """

    def evaluated(self, step: int, metrics: dict[str, float]) -> None:
        """An evaluation during training is done."""

    def finished(self) -> None:
        """Training is over, however it ended."""


class MethodCallback(TrainerCallback):
    """Moves loss schedules before each step, calls the method after it, and keeps what the method
    needs to be resumed beside each checkpoint.
    """

    def __init__(self, method: Method, losses: LossHandle | None) -> None:
        self._method = method
        self._losses = losses
        self._has_state = type(method).training_state is not Method.training_state

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set how far training is, for the loss schedules."""
        if self._losses is not None:
            self._losses.set_progress(state.global_step, state.max_steps)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let the method act on the step; the Trainer counts it, and drops its gradients, later."""
        self._method.on_step(kwargs["model"], state.global_step + 1, state.max_steps)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Give a resumed method its state back."""
        if state.global_step == 0 or not self._has_state:
            return
        file = _state_file(args, state)
        try:
            found = load_file(file)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{file}: must hold the state of method {self._method.name!r}; {error}. Start anew"
                " with --overwrite"
            ) from None
        self._method.load_training_state(kwargs["model"], found)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the method's state into the checkpoint."""
        if self._has_state and state.is_world_process_zero:
            found = self._method.training_state(kwargs["model"])
            whole = {name: tensor.detach().cpu().contiguous() for name, tensor in found.items()}
            save_file(whole, _state_file(args, state))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let the method bring the trained model into its final form."""
        self._method.finish(kwargs["model"])

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Add each loss term's mean since the last log."""
        logs = kwargs.get("logs")
        if self._losses is not None and logs is not None and "loss" in logs:
            logs.update(self._losses.pop_logs())


def _state_file(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / METHOD_STATE


class RecordCallback(TrainerCallback):
    """Appends every log of the Trainer to `metrics.jsonl`, one JSON object a line."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write one line."""
        logs = kwargs.get("logs") or {}
        loss = logs.get("loss")
        if isinstance(loss, float) and not math.isfinite(loss):
            raise ConfigError(
                f"training: the loss must stay finite; it is {loss} at step {state.global_step}."
                " Lower training.learning_rate, or add warmup_steps; the checkpoints so far are"
                " kept"
            )
        numbers = {
            k: v for k, v in logs.items() if isinstance(v, (int, float)) and k != "total_flos"
        }
        line = json.dumps(
            {"step": state.global_step, "epoch": round(state.epoch or 0.0, 4), **numbers}
        )
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise CheckpointError(
                f"{self._path}: must be writable; {explain_os_error(error)}"
            ) from None


class ListenerCallback(TrainerCallback):
    """Turns Trainer events into `Listener` calls."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._loss: float | None = None
        self._started = time.perf_counter()
        self._first_tokens = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock."""
        self._started, self._first_tokens = time.perf_counter(), int(state.num_input_tokens_seen)
        self._listener.started(state.global_step, state.max_steps)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Report speed and memory."""
        seconds = max(time.perf_counter() - self._started, 1e-9)
        tokens = int(state.num_input_tokens_seen) - self._first_tokens
        values = {"tokens_per_second": tokens / seconds, "memory_bytes": float(peak_memory_bytes())}
        if self._loss is not None:
            values["loss"] = self._loss
        self._listener.advanced(state.global_step, values)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep the last training loss."""
        logs = kwargs.get("logs") or {}
        if "loss" in logs:
            self._loss = float(logs["loss"])

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Pass on the metrics of the validation split; the held-out rows are the run's to
        report.
        """
        metrics = dict(kwargs.get("metrics") or {})
        own = {k: v for k, v in metrics.items() if k.startswith("eval_") and not k.endswith(TIMING)}
        if own:
            self._listener.evaluated(state.global_step, own)


class InterruptCallback(TrainerCallback):
    """On SIGINT or SIGTERM: finish the step, save a checkpoint, stop. A second signal stops at
    once.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "InterruptCallback":
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._previous[number] = signal.signal(number, self._remember)
            except ValueError:
                # not the main thread: the embedding program owns the signals
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.signal_name is not None:
            raise KeyboardInterrupt
        self.signal_name = signal.Signals(number).name

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask the Trainer to save and stop once a signal has come."""
        if self.signal_name is not None:
            control.should_save = True
            control.should_training_stop = True
            control.should_evaluate = False


def peak_memory_bytes() -> int:
    """Most memory held so far: of the GPU where there is one, else resident memory of this
    process.
    """
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    # Linux counts in KiB, macOS in bytes
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
