"""Peak memory of one variant, in a process of its own.

    python benchmarks/cpu/peak_memory.py smollm2 "ftrt w8a8" [--steps 3] [--weights random]

Prints one JSON object: `bare_bytes`, the high-water mark of resident memory after importing torch,
transformers and peft alone; `peak_bytes`, that after reading the model, making it int8, adapting it
and a few steps; and `above_bytes`, their difference. `end_to_end.py` runs it for each variant.
"""

import sys
from pathlib import Path

# the folder that holds `measuring`
sys.path.append(str(Path(__file__).resolve().parents[1]))

import argparse
import json

import peft
import torch
import transformers

IMPORTED = (torch, transformers, peft)


def high_water_bytes() -> int:
    """VmHWM of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("peak_memory: needs /proc/self/status with VmHWM (Linux)")


def main() -> None:
    """Build the variant, run its steps, print the marks."""
    bare = high_water_bytes()
    from measuring.model_variants import build
    from measuring.training_step import TrainingStep
    from workloads import make_workload

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workload")
    parser.add_argument("variant")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--weights", default="random")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    workload = make_workload(options.workload, options.weights, is_tiny=options.tiny)
    calibration = workload.batches[-1:] if options.weights == "asset" else None
    variant = build(
        options.variant, lambda: workload.make(torch.bfloat16), workload.targets, calibration
    )
    step = TrainingStep(variant, workload.batches)
    for index in range(options.steps):
        step(index)
    peak = high_water_bytes()
    answer = {"bare_bytes": bare, "peak_bytes": peak, "above_bytes": peak - bare}
    print(json.dumps({**answer, "loss": step.losses[-1]}))


if __name__ == "__main__":
    main()
