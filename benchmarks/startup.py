"""Start-up time of light commands, with no plugin and with a hundred, one of them broken.

    python benchmarks/startup.py [--plugins 100] [--runs 10] [--json FILE]

Each figure is the median of a number of processes, beside that of a bare `python -c pass` from the
same run. It fails if a command imports torch, or if a plugin changes what a command says.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "ftrt --help": ["-m", "ftrt", "--help"],
    "ftrt plugins list --json": ["-m", "ftrt", "plugins", "list", "--json"],
}
TORCH_IMPORTED = """
import sys
from ftrt.cli import run
code = run({arguments!r})
sys.exit(code or ("torch was imported" if "torch" in sys.modules else 0))
"""


def install(folder: Path, count: int) -> None:
    """Write `count` distributions with a method each; the first raises when it is imported."""
    for index in range(count):
        info = folder / f"zz_plugin_{index}-1.0.dist-info"
        info.mkdir(parents=True)
        header = f"Metadata-Version: 2.1\nName: zz-plugin-{index}\nVersion: 1.0\n"
        (info / "METADATA").write_text(header)
        (info / "RECORD").write_text("")
        points = f"[ftrt]\nmethod.zz_{index} = zz_plugin_{index}\n"
        (info / "entry_points.txt").write_text(points)
        body = "raise SystemExit('imported')\n" if index == 0 else "import torch\n"
        (folder / f"zz_plugin_{index}.py").write_text(body)


def environment(folder: Path) -> dict[str, str]:
    """The environment in which `folder` and the repository are on the path."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join((str(folder), str(REPOSITORY)))}


def run(arguments: list[str], folder: Path) -> tuple[float, str]:
    """(seconds, stdout) of one Python process."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        env=environment(folder),
    )
    return time.perf_counter() - start, done.stdout


def check(folder: Path, count: int) -> None:
    """Fail if a command imports torch or does not see every plugin."""
    for command in list(COMMANDS.values())[1:]:
        run(["-c", TORCH_IMPORTED.format(arguments=command[2:])], folder)
    listed = json.loads(run(COMMANDS["ftrt plugins list --json"], folder)[1])["plugins"]
    found = sum(row["distribution"].startswith("zz-plugin-") for row in listed)
    if found != count:
        raise SystemExit(f"ftrt plugins list: must show {count} plugins; got {found}")


def measure(count: int, runs: int) -> dict[str, float]:
    """command -> median seconds with `count` plugins installed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        install(folder, count)
        check(folder, count)
        return {
            title: statistics.median(run(arguments, folder)[0] for _ in range(runs))
            for title, arguments in COMMANDS.items()
        }


def main() -> None:
    """Measure, print a table and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plugins", type=int, default=100)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--json", type=Path, help="also write the JSON object to this file")
    options = parser.parse_args()
    figures = {count: measure(count, options.runs) for count in (0, options.plugins)}
    print(f"{'median seconds':<28}" + "".join(f"{f'{n} plugins':>14}" for n in figures))
    for title in COMMANDS:
        print(f"{title:<28}" + "".join(f"{by[title]:>14.3f}" for by in figures.values()))
    answer = {"runs": options.runs, "torch_imported": False, "median_seconds": figures}
    text = json.dumps(answer)
    if options.json:
        options.json.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
