"""ftrt on one GPU: ceilings, correctness, kernels, linears, a decoder layer, whole models.

    python benchmarks/gpu/run.py [--stage linears,layer] [--out runs/gpu] [--device cpu --quick]

Each stage writes OUT/STAGE.jsonl, a row as soon as it is measured, prints its table, and keeps to
its share of the time: all of them take twenty minutes at most, any two of them ten. Several stages
run in a process each, so that one that breaks the device or hangs takes no other with it. At the
end OUT/report.md has what `report.py` makes of all stages that OUT holds, with the targets of issue
4.

The exit code is 1 if a result of ftrt's was wrong or a stage broke.
"""

import sys
from pathlib import Path

# the folder that holds `gpu` and `measuring`
sys.path.append(str(Path(__file__).resolve().parents[1]))

import argparse
import importlib
import subprocess
import time
import traceback

import torch
from measuring.records import Records

from gpu import machine, report
from gpu.stage import NeedsCudaError, Stage

# stage -> minutes that it may take
STAGES = {
    "ceilings": 0.75,
    "correctness": 5.0,
    "kernels": 1.5,
    "linears": 5.0,
    "layer": 1.75,
    "end_to_end": 4.5,
}
# where a stage is, if not in the module of its name; `kernels` would hide the package of that name
# from transformers, since Python looks beside a script first
MODULES = {"kernels": "kernel_times"}
# A stage that overruns its minutes by this factor, beside what importing takes, hangs.
GRACE = 1.3
START_SECONDS = 30


def options_of() -> argparse.Namespace:
    """The command line."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--stage", default=",".join(STAGES), help="of " + ", ".join(STAGES))
    options.add_argument("--out", type=Path, default=Path("runs/gpu"), metavar="FOLDER")
    options.add_argument("--device", default="cuda")
    options.add_argument("--quick", action="store_true", help="toy sizes: does it run?")
    options.add_argument("--no-report", action="store_true", help="leave it to a later run")
    chosen = options.parse_args()
    chosen.stage = chosen.stage.split(",")
    unknown = sorted(set(chosen.stage) - STAGES.keys())
    if unknown:
        options.error(f"--stage: must be of {', '.join(STAGES)}; got {', '.join(unknown)}")
    chosen.device = torch.device(chosen.device)
    if chosen.device.type == "cuda" and not torch.cuda.is_available():
        options.error(
            "--device cuda: torch sees no CUDA device. `--device cpu --quick` shows that the"
            " script runs, and measures nothing"
        )
    if chosen.device.type == "cpu" and not chosen.quick:
        options.error("--device cpu: needs --quick; benchmarks/cpu measures CPUs")
    return chosen


def run_stage(name: str, options: argparse.Namespace) -> int:
    """One stage from its first row to its last; its exit code."""
    records = Records(options.out / f"{name}.jsonl")
    stage = Stage(name, options.device, options.quick, options.out, records, 60 * STAGES[name])
    found = machine.facts(options.device)
    print(f"\n== {name}\n{machine.describe(found)}\n{found['date']}, {found['command']}")
    print(", ".join(f"{key} {value}" for key, value in found["versions"].items()), flush=True)
    records.write("machine", stage=name, quick=options.quick, **found)
    stage.sample_state("before")
    code = 0
    try:
        importlib.import_module(f"gpu.{MODULES.get(name, name)}").measure(stage)
    except NeedsCudaError as error:
        print(f"skipped: {error}")
        records.write("skipped", reason=str(error))
    except Exception as error:
        # one broken stage must not take the others' figures with it: it is shown and recorded
        traceback.print_exc()
        records.write("broken", reason=f"{type(error).__name__}: {error}")
        code = 1
    after = stage.sample_state("after")
    if after:
        print(", ".join(f"{key} {value:g}" for key, value in after.items()))
    records.write("end", seconds=stage.elapsed_seconds)
    print(f"{name} took {stage.elapsed_seconds:.0f} s", flush=True)
    stage.empty_memory()
    return max(code, records.finish())


def run_apart(name: str, options: argparse.Namespace) -> int:
    """One stage in a process of its own, ended where it outruns its time; its exit code."""
    command = [sys.executable, __file__, "--stage", name, "--no-report", "--out", str(options.out)]
    command += ["--device", str(options.device), *(["--quick"] if options.quick else [])]
    timeout = GRACE * 60 * STAGES[name] + START_SECONDS
    try:
        return subprocess.run(command, timeout=timeout, check=False).returncode
    except subprocess.TimeoutExpired:
        print(f"!!! stage {name} was ended after {timeout:.0f} s", flush=True)
        return 1


def main() -> int:
    """The stages in order, then the report."""
    options = options_of()
    options.out.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    torch.manual_seed(0)
    if options.device.type == "cpu":
        torch.set_num_threads(1)
    names = [name for name in STAGES if name in options.stage]
    is_apart = options.device.type == "cuda" and len(names) > 1
    run = run_apart if is_apart else run_stage
    codes = [run(name, options) for name in names]
    if not options.no_report:
        print(f"\n{report.write(options.out)}")
        print(f"all of it took {time.monotonic() - begin:.0f} s; wrote {options.out}", flush=True)
    return max(codes)


if __name__ == "__main__":
    raise SystemExit(main())
