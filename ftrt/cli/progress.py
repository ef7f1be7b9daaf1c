"""Showing a run: a live bar on a terminal, plain lines elsewhere; always on stderr."""

__all__ = ["BarListener", "LineListener", "listener"]

import sys
import time
from typing import TYPE_CHECKING

import typer

from ftrt.cli.output import console

if TYPE_CHECKING:
    from rich.progress import Progress

    from ftrt.integrations.transformers_callbacks import Listener

# a plain line at most this often, so that a log file stays readable
SECONDS_BETWEEN_LINES = 10.0


def listener() -> "Listener":
    """The bar on a terminal, lines when stderr is a file or a pipe."""
    return BarListener() if sys.stderr.isatty() else LineListener()


def _metrics(metrics: dict[str, float]) -> str:
    shown = {name.removeprefix("eval_"): value for name, value in metrics.items()}
    return ", ".join(f"{name} {value:.4f}" for name, value in shown.items())


def _speed(values: dict[str, float]) -> str:
    loss = f"loss {values['loss']:.4f}  " if "loss" in values else ""
    memory = values["memory_bytes"] / 2**30
    return f"{loss}{values['tokens_per_second']:,.0f} tokens/s  {memory:.2f} GiB"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return (
        f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
        if minutes >= 60
        else f"{minutes}:{rest:02d}"
    )


class LineListener:
    """One line every few seconds."""

    def __init__(self) -> None:
        self._total = 0
        self._first = 0
        self._started = self._last = 0.0

    def message(self, text: str) -> None:
        """A line about what happens now."""
        typer.echo(text, err=True)

    def started(self, step: int, total_steps: int) -> None:
        """Start counting."""
        self._first, self._total = step, total_steps
        self._started = time.monotonic()
        self._last = self._started
        self.message(f"training for {total_steps - step} steps")

    def advanced(self, step: int, values: dict[str, float]) -> None:
        """A line, if the last one is long enough ago or this is the last step."""
        now = time.monotonic()
        if now - self._last < SECONDS_BETWEEN_LINES and step < self._total:
            return
        self._last = now
        remaining = (now - self._started) / max(step - self._first, 1) * (self._total - step)
        self.message(f"step {step}/{self._total}  {_speed(values)}  {_clock(remaining)} left")

    def evaluated(self, step: int, metrics: dict[str, float]) -> None:
        """A line with the metrics."""
        self.message(f"validation at step {step}: {_metrics(metrics)}")

    def finished(self) -> None:
        """Nothing is left to close."""


class BarListener:
    """A rich progress bar with loss, tokens per second, memory and time left."""

    def __init__(self) -> None:
        self._console = console(stderr=True)
        self._bar: Progress | None = None
        self._task = 0

    def message(self, text: str) -> None:
        """A line above the bar."""
        self._console.print(text)

    def started(self, step: int, total_steps: int) -> None:
        """Show the bar."""
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._bar.start()
        self._task = self._bar.add_task("training", total=total_steps, completed=step, speed="")

    def advanced(self, step: int, values: dict[str, float]) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step, speed=_speed(values))  # type: ignore[arg-type]

    def evaluated(self, step: int, metrics: dict[str, float]) -> None:
        """The metrics above the bar."""
        self.message(f"validation at step {step}: {_metrics(metrics)}")

    def finished(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
