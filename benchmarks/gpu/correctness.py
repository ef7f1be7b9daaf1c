"""Stage correctness: the tests of the ops and kernels on the GPU, then compute-sanitizer."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from gpu.stage import Stage

ROOT = Path(__file__).resolve().parents[2]
TESTS = ("tests/ops", "tests/csrc/cuda")
QUICK_TESTS = ("tests/ops/test_packing.py",)
SCRIPT = Path(__file__).with_name("sanitized.py")
TOOLS = ("memcheck", "racecheck")
# where a toolkit leaves it if it is not on the PATH
_FOLDERS = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer")
_COUNT = re.compile(r"(\d+) (passed|failed|errors?|skipped|deselected|xfailed|xpassed)")
_SANITIZED = re.compile(r"(?:ERROR SUMMARY|RACECHECK SUMMARY): (\d+)")
# shares of the stage's time: the tests, and each tool of the sanitizer
_TEST_SHARE, _TOOL_SHARE = 0.5, 0.25
_LINES = 40


@dataclass(frozen=True)
class Outcome:
    """What became of a command.

    Attributes:
        code: its exit code, or None if it was ended for taking too long.
        output: all it said.
    """

    code: int | None
    output: str

    @property
    def last_lines(self) -> list[str]:
        """The end of it."""
        return self.output.splitlines()[-_LINES:]


def run(stage: Stage, command: list[str], share: float, **variables: str) -> Outcome:
    """Run a command in the repository for at most a share of the stage's time, and log it.

    Args:
        stage: whose time it is, and whose folder has correctness.log.
        command: what to run.
        share: of the stage's time.
        variables: added to the environment.
    """
    print(f"\n{' '.join(command)}", flush=True)
    log = stage.out / "correctness.log"
    with log.open("a+", encoding="utf-8", errors="replace") as file:
        file.write(f"$ {' '.join(command)}\n")
        file.flush()
        begin = file.tell()
        try:
            code = subprocess.run(
                command,
                cwd=ROOT,
                env={**os.environ, **variables},
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=share * stage.seconds,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            code = None
            print(f"!!! not done within {share * stage.seconds:.0f} s")
        file.seek(begin)
        return Outcome(code, file.read())


def run_tests(stage: Stage) -> None:
    """pytest in a process of its own; its counts, and the end of what it said if any failed."""
    chosen = QUICK_TESTS if stage.quick else TESTS
    present = [test for test in chosen if (ROOT / test).exists()]
    # pyproject.toml's options hold, -q among them; a second one would leave out the counts
    command = [sys.executable, "-m", "pytest", *present]
    if not stage.quick and importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(min(8, os.cpu_count() or 1)), "--dist", "worksteal"]
    done = run(stage, command, _TEST_SHARE)
    line = last_line(done.output)
    counts = {kind.removesuffix("s"): int(number) for number, kind in _COUNT.findall(line)}
    is_right = done.code == 0 and counts.get("passed", 0) > 0
    outcome = "timeout" if done.code is None else "passed" if is_right else "failed"
    stage.records.write(
        "tests",
        command=command,
        outcome=outcome,
        on_cuda=stage.is_cuda,
        counts=counts,
        output=[] if is_right else done.last_lines,
    )
    print(f"  {counts}, exit code {done.code}", flush=True)
    if not is_right:
        print("\n".join(done.last_lines))
        stage.records.refused.append("ftrt: tests of the ops on this device")


def last_line(output: str) -> str:
    """pytest's closing line, which has the counts."""
    lines = [line for line in output.splitlines() if _COUNT.search(line)]
    return lines[-1] if lines else ""


def sanitizer() -> str | None:
    """Path of compute-sanitizer, or None."""
    found = shutil.which("compute-sanitizer")
    if found is not None:
        return found
    return next(
        (path for folder in _FOLDERS if (path := shutil.which("compute-sanitizer", path=folder))),
        None,
    )


def sanitize(stage: Stage, program: str, tool: str) -> None:
    """One tool over `sanitized.py`: how many errors or hazards it reports."""
    command = [program, "--tool", tool, "--error-exitcode", "9", sys.executable, str(SCRIPT)]
    # each tensor gets memory of its own, or an access behind its end would hit its neighbour's
    done = run(stage, command, _TOOL_SHARE, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    found = _SANITIZED.findall(done.output)
    count = int(found[-1]) if found else None
    is_right = done.code == 0 and count == 0
    outcome = "passed" if is_right else "not run" if count is None else "failed"
    output = [] if is_right else done.last_lines
    stage.records.write("sanitizer", tool=tool, outcome=outcome, errors=count, output=output)
    print(f"  {tool}: {count} errors, exit code {done.code}", flush=True)
    if not is_right:
        print("\n".join(output))
    if outcome == "failed":
        stage.records.refused.append(f"ftrt: {tool}")


def measure(stage: Stage) -> None:
    """The tests, then memcheck and racecheck where the tool and a GPU are there."""
    (stage.out / "correctness.log").unlink(missing_ok=True)
    run_tests(stage)
    program = sanitizer()
    if not stage.is_cuda or program is None:
        reason = "no CUDA device" if not stage.is_cuda else "compute-sanitizer is not installed"
        print(f"compute-sanitizer is skipped: {reason}")
        stage.records.write("sanitizer", tool=None, outcome="not run", reason=reason)
        return
    for tool in TOOLS:
        sanitize(stage, program, tool)
