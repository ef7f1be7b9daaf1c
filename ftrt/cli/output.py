"""How a command answers: one JSON object as the last line of stdout, or tables for a person."""

__all__ = ["JsonFlag", "console", "emit", "print_json", "table"]

import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

JsonFlag = Annotated[
    bool,
    typer.Option(
        "--json", help="Print one JSON object as the last line of stdout; logs go to stderr."
    ),
]


def emit(
    result: Mapping[str, Any], *, as_json: bool, render: Callable[[Mapping[str, Any]], None]
) -> None:
    """Print `result` as JSON, or hand it to `render`."""
    if as_json:
        print_json(result)
    else:
        render(result)


def print_json(result: Mapping[str, Any]) -> None:
    """Print `result` as one line of JSON; NaN and infinities, which JSON has not, become null."""
    value = json.loads(json.dumps(result, default=_plain))
    text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        # an ASCII terminal, or a file name that is not Unicode
        text = json.dumps(_finite(value), allow_nan=False)
    typer.echo(text)


def console(*, stderr: bool = False) -> "Console":
    """A rich console on stdout or stderr; markup and emoji codes in text stay as they are."""
    from rich.console import Console

    class PipeConsole(Console):
        """Lets a closed pipe through as itself: rich would end the program with exit code 1."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return PipeConsole(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=True)


def table(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str | None = None
) -> None:
    """Print rows under column names on stdout, cells shown in full; in a pipe or a file, where no
    window folds them, on one line each.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    grid = Table(box=SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for column in columns:
        grid.add_column(column, overflow="fold")
    for row in rows:
        grid.add_row(*("" if cell is None else str(cell) for cell in row))
    screen = console()
    if not screen.is_terminal:
        endless = screen.options.update(max_width=sys.maxsize)
        screen.width = max(screen.width, screen.measure(grid, options=endless).maximum)
    screen.print(grid, soft_wrap=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):
        return value.item()
    return str(value)
