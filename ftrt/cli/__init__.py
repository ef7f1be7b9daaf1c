"""The `ftrt` command; each sub-command is a module, imported when it runs or shows its own help.

A command module `ftrt/cli/NAME.py` defines `app`, a `typer.Typer`, with one command (or several:
then they are sub-commands). `COMMANDS` below has its line for `ftrt --help`; nothing else registers
it.

    app = typer.Typer()

    @app.command()
    def train(recipe: Annotated[Path, typer.Argument(...)], as_json: JsonFlag = False) -> None:
        \"\"\"What `ftrt train --help` teaches.\"\"\"
        ...
        output.emit(result, as_json=as_json, render=show)    # or output.print_json(result), last

A command raises `ftrt.errors` classes and lets everything else through: `main` turns each exception
into one message on stderr and an exit code (`ftrt.cli.faults`), and with `--json` into an error
object on stdout. Progress and logs go to stderr through `logging`; stdout carries the result.
`--debug` and `FTRT_DEBUG=1` are taken by `main`, never by a command. A command that ends with
another code than 0 without an error raises `typer.Exit(code)`.
"""

__all__ = ["COMMANDS", "main"]

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from ftrt.cli import faults
from ftrt.cli.logs import logs_to_stderr
from ftrt.errors import UsageError

# command -> its line in `ftrt --help`; the module `ftrt.cli.<command>` holds the rest
COMMANDS = {
    "train": "Fine-tune a model as a recipe says, and write a run folder.",
    "eval": "Measure a run on its held-out split, or on a file.",
    "predict": "Answer rows with a trained run.",
    "merge": "Write a run's adapter into its base model.",
    "plugins": "List, explain, check and create plugins.",
    "schema": "Print the JSON Schema of a recipe, installed plugins included.",
    "kernels": "List, build and time the CUDA kernels, and look after the compiled ones.",
    "doctor": "Say what works on this machine, and how to mend what does not.",
}

EPILOG = (
    "Exit codes: 0 done, 1 a bug in ftrt, 2 usage, 3 recipe, 4 data, 5 model or run folder,"
    " 6 plugin, 130 interrupted. --debug (or FTRT_DEBUG=1) shows tracebacks."
)


COMPLETION_OPTIONS = ("install_completion", "show_completion")


class LazyGroup(TyperGroup):
    """A group whose commands are stubs with their help line until one is resolved."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.commands.update(
            {name: TyperCommand(name, help=line) for name, line in COMMANDS.items()}
        )

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The named command with its module imported."""
        name, command, rest = super().resolve_command(ctx, args)
        if name in COMMANDS:
            module = importlib.import_module(f"ftrt.cli.{name}")
            command = _taught(typer.main.get_command(module.app))
        return name, command, rest


def _taught(command: Any) -> Any:
    """`command` with its help reflowed, and without typer's own completion options."""
    command.help = _reflowed(command.help or "")
    command.params = [p for p in command.params if p.name not in COMPLETION_OPTIONS]
    for inner in getattr(command, "commands", {}).values():
        _taught(inner)
    return command


def _reflowed(text: str) -> str:
    # typer keeps the line breaks of all but the first paragraph; indented ones are examples.
    paragraphs = text.split("\n\n")
    return "\n\n".join(p if "\n " in f"\n{p}" else p.replace("\n", " ") for p in paragraphs)


app = typer.Typer(
    cls=LazyGroup,
    add_completion=False,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from ftrt import __version__

        typer.echo(f"ftrt {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def ftrt(
    ctx: typer.Context,
    version: bool = typer.Option(
        False,
        "--version",
        is_eager=True,
        callback=_show_version,
        help="Print the version and exit.",
    ),
    debug: bool = typer.Option(
        False, "--debug", help="Show the full traceback of an error; also after a command."
    ),
) -> None:
    """Fine-tune language models from a recipe; every method, head and loss is a plugin.

    Start: `ftrt train recipe.yaml`. What is installed: `ftrt plugins list`. Trouble: `ftrt doctor`.
    """
    show_help_without_command(ctx)


def show_help_without_command(ctx: typer.Context) -> None:
    """Print the help of a group that was called without a sub-command, and end as a usage error."""
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())
        raise typer.Exit(UsageError.exit_code)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code; the entry point of the script `ftrt`."""
    args = list(sys.argv[1:] if arguments is None else arguments)
    own, foreign = _split_at_dashes(args)
    debug = "--debug" in own or os.environ.get("FTRT_DEBUG", "0") not in ("", "0")
    as_json = "--json" in own
    own = [arg for arg in own if arg != "--debug"]
    sys.exit(run([*own, *foreign], debug=debug, as_json=as_json))


def run(args: list[str], *, debug: bool = False, as_json: bool = False) -> int:
    """Run `args` and return the exit code; every exception ends here as one message."""
    try:
        with logs_to_stderr(debug):
            group = typer.main.get_command(app)
            with group.make_context("ftrt", args) as context:
                group.invoke(context)
        sys.stdout.flush()
    except typer.Exit as finished:
        return finished.exit_code
    except BrokenPipeError as error:
        if faults.leave_quietly():
            return 0
        return faults.report(error, debug=debug, as_json=as_json)
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        return faults.report(error, debug=debug, as_json=as_json)
    return 0


def _split_at_dashes(args: list[str]) -> tuple[list[str], list[str]]:
    end = args.index("--") if "--" in args else len(args)
    return args[:end], args[end:]
