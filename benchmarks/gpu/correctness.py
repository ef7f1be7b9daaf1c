"""Stage correctness: the tests of the ops and kernels on the GPU, then compute-sanitizer."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
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
_TEST_SHARE, _TOOL_SHARE = 0.6, 0.2
_LINES = 40


def run_tests(stage: Stage) -> None:
    """pytest in a process of its own; its counts, and the end of what it said if any failed."""
    chosen = QUICK_TESTS if stage.quick else TESTS
    present = [test for test in chosen if (ROOT / test).exists()]
    # pyproject.toml's options hold, -q among them; a second one would leave out the counts
    command = [sys.executable, "-m", "pytest", *present]
    if not stage.quick and importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(min(8, os.cpu_count() or 1)), "--dist", "worksteal"]
    timeout = _TEST_SHARE * stage.seconds
    print(f"\n{' '.join(command)}", flush=True)
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        print(f"!!! the tests did not end within {timeout:.0f} s")
        stage.records.write("tests", command=command, outcome="timeout", seconds=timeout)
        return
    counts = {kind.removesuffix("s"): int(n) for n, kind in _COUNT.findall(last_line(done.stdout))}
    is_right = done.returncode == 0 and counts.get("passed", 0) > 0
    stage.records.write(
        "tests",
        command=command,
        outcome="passed" if is_right else "failed",
        on_cuda=stage.is_cuda,
        counts=counts,
        output=[] if is_right else done.stdout.splitlines()[-_LINES:],
    )
    print(f"  {counts}, exit code {done.returncode}", flush=True)
    if not is_right:
        print("\n".join([*done.stdout.splitlines()[-_LINES:], *done.stderr.splitlines()[-10:]]))
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
    timeout = _TOOL_SHARE * stage.seconds
    print(f"\n{' '.join(command)}", flush=True)
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        print(f"!!! {tool} did not end within {timeout:.0f} s")
        stage.records.write("sanitizer", tool=tool, outcome="timeout", seconds=timeout)
        return
    found = _SANITIZED.findall(done.stdout)
    count = int(found[-1]) if found else None
    is_right = done.returncode == 0 and count == 0
    outcome = "not run" if count is None else "passed" if is_right else "failed"
    output = [] if is_right else done.stdout.splitlines()[-_LINES:]
    stage.records.write("sanitizer", tool=tool, outcome=outcome, errors=count, output=output)
    print(f"  {tool}: {count} errors, exit code {done.returncode}", flush=True)
    if not is_right:
        print("\n".join([*output, *done.stderr.splitlines()[-10:]]))
    if outcome == "failed":
        stage.records.refused.append(f"ftrt: {tool}")


def measure(stage: Stage) -> None:
    """The tests, then memcheck and racecheck where the tool and a GPU are there."""
    run_tests(stage)
    program = sanitizer()
    if not stage.is_cuda or program is None:
        reason = "no CUDA device" if not stage.is_cuda else "compute-sanitizer is not installed"
        print(f"compute-sanitizer is skipped: {reason}")
        stage.records.write("sanitizer", tool=None, outcome="not run", reason=reason)
        return
    for tool in TOOLS:
        sanitize(stage, program, tool)
