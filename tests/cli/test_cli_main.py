"""The command line: every exception is one message and an exit code, and no traceback."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from ftrt import cli, errors
from ftrt.cli import COMMANDS, faults, run
from ftrt.cli.output import print_json


@pytest.fixture
def raising(monkeypatch):
    """Make `ftrt doctor` raise an exception."""

    def install(error):
        app = typer.Typer()

        @app.command()
        def doctor(as_json: bool = typer.Option(False, "--json")) -> None:
            raise error

        monkeypatch.setattr("ftrt.cli.doctor.app", app)

    __import__("ftrt.cli.doctor")
    return install


def called(capsys, *arguments, **flags):
    code = run(list(arguments), **flags)
    out, err = capsys.readouterr()
    return code, out, err


def test_help_lists_every_command_and_exit_code(capsys):
    code, out, _ = called(capsys, "--help")

    assert code == 0
    assert all(name in out for name in COMMANDS)
    assert all(f"{number} " in out for number in (0, 1, 2, 3, 4, 5, 6, 130))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_that_shows_an_example_or_explains(capsys, command):
    code, out, _ = called(capsys, command, "--help")

    assert code == 0
    assert f"ftrt {command}" in out
    assert "--install-completion" not in out


def test_every_command_takes_json():
    for name in COMMANDS:
        module = __import__(f"ftrt.cli.{name}", fromlist=["app"])
        command = typer.main.get_command(module.app)
        for leaf in getattr(command, "commands", {name: command}).values():
            assert "--json" in [option for param in leaf.params for option in param.opts], leaf.name


@pytest.mark.parametrize("arguments", [[], ["plugins"]])
def test_a_group_alone_shows_its_help_as_a_usage_error(capsys, arguments):
    code, out, _ = called(capsys, *arguments)

    assert (code, "Commands" in out) == (2, True)


def test_version(capsys):
    assert called(capsys, "--version") == (0, "ftrt 0.1.0\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "No such command 'trian'; did you mean 'train'? Try `ftrt --help`"),
        (["zzz"], "No such command 'zzz'. Try `ftrt --help`"),
        (["--vresion"], "No such option: --vresion; did you mean --version? Try `ftrt --help`"),
        (
            ["plugins", "lst"],
            "No such command 'lst'; did you mean 'list'? Try `ftrt plugins --help`",
        ),
        (
            ["plugins", "list", "--kidn", "head"],
            "No such option: --kidn; did you mean --kind? Try `ftrt plugins list --help`",
        ),
        (
            ["plugins", "list", "--kind", "heads"],
            "--kind: must be one of method, head, loss, signal, recipe, transform, kernel; got"
            " 'heads'; did you mean 'head'?",
        ),
    ],
)
def test_usage_errors_say_what_was_meant(capsys, arguments, message):
    code, out, err = called(capsys, *arguments)

    assert (code, out) == (2, "")
    assert err.startswith(f"error: {message}")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.UsageError("u"), 2),
        (errors.ConfigError("c"), 3),
        (errors.UnsupportedError("s"), 3),
        (errors.DataError("d"), 4),
        (errors.CheckpointError("p"), 5),
        (errors.PluginError("g"), 6),
        (errors.InterruptedRun("i"), 130),
    ],
)
def test_an_ftrt_error_is_its_message_and_exit_code(capsys, raising, error, code):
    raising(error)

    assert called(capsys, "doctor") == (code, "", f"error: {error}\n")


def test_markup_in_a_message_is_text(capsys, raising):
    raising(errors.DataError("row [bold]3[/bold] :smile: [/x]"))

    assert called(capsys, "doctor")[2] == "error: row [bold]3[/bold] :smile: [/x]\n"


def test_with_json_the_error_is_an_object_on_stdout(capsys, raising):
    raising(errors.DataError("no rows"))

    code, out, err = called(capsys, "doctor", "--json", as_json=True)

    assert json.loads(out) == {"error": {"type": "DataError", "message": "no rows", "exit_code": 4}}
    assert (code, err) == (4, "error: no rows\n")


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "the disk is full; free some space, or choose another folder"),
        (errno.EACCES, "permission is denied; choose a folder you may write"),
        (errno.EROFS, "the file system is read-only; choose another folder"),
    ],
)
def test_disk_errors_are_no_bugs(capsys, raising, number, says):
    raising(OSError(number, os.strerror(number), "/runs/out"))

    code, _, err = called(capsys, "doctor")

    assert code == 5
    assert err.startswith(f"error: /runs/out: {os.strerror(number)}; {says}")


def test_a_full_disk_in_another_librarys_words_is_no_bug(capsys, raising):
    raising(RuntimeError('IoError(Os { code: 28, message: "No space left on device" })'))

    code, _, err = called(capsys, "doctor")

    assert (code, "the disk is full" in err, "bug" in err) == (5, True, False)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")]
)
def test_out_of_memory_says_what_to_lower(capsys, raising, error):
    raising(error)

    code, _, err = called(capsys, "doctor")

    assert (code, "Lower per_device_train_batch_size" in err, "bug" in err) == (1, True, False)


@pytest.mark.parametrize(
    "error", [KeyError("k"), FileNotFoundError(2, "No such file", "x"), SystemExit(3)]
)
def test_anything_else_is_a_bug_and_says_how_to_report(capsys, raising, error):
    raising(error)

    code, _, err = called(capsys, "doctor")

    assert code == 1
    assert err.startswith(f"error: {type(error).__name__}: ")
    assert "this is a bug in ftrt. Run the command again with --debug and report" in err
    assert "Traceback" not in err


def test_an_interrupt_ends_with_130(capsys, raising):
    raising(KeyboardInterrupt())

    assert called(capsys, "doctor") == (130, "", "error: interrupted\n")


def test_debug_shows_the_traceback_and_the_message(capsys, raising):
    raising(errors.DataError("no rows"))

    _, _, err = called(capsys, "doctor", debug=True)

    assert "Traceback (most recent call last)" in err
    assert err.endswith("error: no rows\n")


@pytest.mark.parametrize(
    ("arguments", "environment", "debug"),
    [
        (["--debug", "doctor"], {}, True),
        (["doctor", "--debug"], {}, True),
        (["doctor"], {"FTRT_DEBUG": "1"}, True),
        (["doctor"], {"FTRT_DEBUG": "0"}, False),
        (["doctor"], {"FTRT_DEBUG": ""}, False),
        (["doctor", "--", "--debug"], {}, False),
    ],
)
def test_debug_stands_anywhere_or_in_the_environment(monkeypatch, arguments, environment, debug):
    monkeypatch.delenv("FTRT_DEBUG", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    seen = {}
    monkeypatch.setattr(cli, "run", lambda args, **flags: seen.update(flags, args=args) or 0)

    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)

    assert (ended.value.code, seen["debug"]) == (0, debug)
    assert seen["args"] == [a for a in arguments if a != "--debug" or "--" in arguments]


def test_logs_go_to_stderr_and_the_logger_is_left_as_it_was(capsys, monkeypatch):
    import logging

    logger = logging.getLogger("ftrt")
    before = (list(logger.handlers), logger.level)
    app = typer.Typer()

    @app.command()
    def doctor() -> None:
        logging.getLogger("ftrt.x").info("working")
        logging.getLogger("ftrt.x").warning("odd")
        logging.getLogger("ftrt.x").debug("detail")

    __import__("ftrt.cli.doctor")
    monkeypatch.setattr("ftrt.cli.doctor.app", app)

    assert called(capsys, "doctor") == (0, "", "working\nwarning: odd\n")
    assert (list(logger.handlers), logger.level) == before


def test_a_closed_pipe_is_quiet():
    code = "import sys\nfrom ftrt.cli import main\nmain(['plugins', 'list', '--json'])"
    repository = str(Path(__file__).parents[2])
    # the reader is closed before ftrt writes
    read, write = os.pipe()
    os.close(read)
    process = subprocess.run(
        [sys.executable, "-c", code],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": repository},
    )
    os.close(write)

    assert (process.returncode, process.stderr) == (0, "")


def test_explain_keeps_a_usage_errors_own_full_stop():
    fault = faults.explain(typer.BadParameter("no."))

    assert fault.message == "Invalid value: no. Try `ftrt --help`"


def test_a_broken_pipe_that_is_not_stdout_is_no_success(capsys, raising):
    raising(BrokenPipeError(errno.EPIPE, "Broken pipe"))

    code, _, err = called(capsys, "doctor")

    assert (code, "BrokenPipeError" in err) == (1, True)


def test_schema_into_a_folder_that_is_not_there(capsys, tmp_path):
    code, _, err = called(capsys, "schema", "--out", str(tmp_path / "no" / "x.json"))

    assert (code, "its folder must exist; got" in err) == (2, True)


def test_json_is_one_line_without_nan(capsys):
    value = {"a": float("nan"), "b": [float("inf"), 1.5], "c": Path("x"), "d": "汉字", 3: {"e"}}

    print_json(value)

    out = capsys.readouterr().out
    assert out.endswith("\n") and out.count("\n") == 1
    assert json.loads(out) == {"a": None, "b": [None, 1.5], "c": "x", "d": "汉字", "3": ["e"]}
    assert "汉字" in out


def test_json_survives_text_that_cannot_be_encoded(capsys):
    print_json({"file": "\udcff"})

    assert json.loads(capsys.readouterr().out) == {"file": "\udcff"}
