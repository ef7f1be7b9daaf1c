"""Does an int8 base train as well as a float one? Loss curves over 300 steps, three seeds.

    python benchmarks/cpu/loss_curves.py [--task minilm|smollm2] [--steps 300] [--seeds 3]
                                         [--minutes 30] [--out loss-curves] [--quick] [--json FILE]

Runs `ftrt.train` for each seed and base, everything else equal (data order, adapter initialisation,
calibration rows): the recipe of the demo (MiniLM, Rotten Tomatoes) or of instruction tuning
(SmolLM2-135M, HSK translation). Compared is the loss on held-out rows after the last step: the mean
over seeds with the int8 base minus that with the float base, against the spread between the seeds
of the float base (standard deviation; the range is given too). Where the head measures accuracy,
that is compared as well, in points.

Writes OUT.json (all curves) and OUT.png. A run that would start after `--minutes` is not started,
and the verdict says so.
"""

import sys
from pathlib import Path

# the folder that holds `measuring`
sys.path.append(str(Path(__file__).resolve().parents[1]))

import argparse
import json
import statistics
import tempfile
import time
from typing import Any

from machine import start
from measuring.records import Records, parser

RECIPES = Path(__file__).parents[2] / "recipes"
TASKS = {"minilm": "demo.yaml", "smollm2": "sft-smollm2.yaml"}
BASES: dict[str, dict[str, Any] | None] = {
    "float": None,
    "w8a8": {"dtype": "int8", "compute": "w8a8"},
    "w8a16": {"dtype": "int8", "compute": "w8a16"},
}
# loss points are means over this many steps
SMOOTHING = 10


def recipe_for(options: argparse.Namespace, base: str, seed: int, output: Path) -> dict[str, Any]:
    """The task's recipe with this base and seed."""
    from ruamel.yaml import YAML

    tree = YAML(typ="safe").load(RECIPES / TASKS[options.task])
    tree.pop("quantization", None)
    if BASES[base] is not None:
        tree["quantization"] = dict(BASES[base])
    tree["model"]["dtype"] = options.dtype
    if options.model:
        tree["model"] = {"path": options.model, "dtype": options.dtype}
    if options.train:
        tree["data"] = {"train": options.train, "test": 20, "max_length": 16}
    tree["data"]["validation"] = None
    training = tree["training"]
    for key in ("num_train_epochs", "weight_decay"):
        training.pop(key, None)
    training.update(
        max_steps=options.steps,
        logging_steps=min(SMOOTHING, options.steps),
        save_strategy="no",
        use_cpu=True,
    )
    return {**tree, "baseline": False, "seed": seed, "output": str(output)}


def train_once(recipe: dict[str, Any]) -> dict[str, Any]:
    """Curve, held-out metrics and seconds of one run."""
    import ftrt

    result = ftrt.train(recipe)
    lines = (Path(recipe["output"]) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    curve = [[row["step"], row["loss"]] for row in rows if "loss" in row and "step" in row]
    layers = json.loads((Path(recipe["output"]) / "ftrt.json").read_text()).get("layers", [])
    fallen = sum(layer.get("compute") == "w8a16" for layer in layers)
    return {
        "curve": curve,
        "after": result.after,
        "seconds": result.train_seconds,
        "layers": len(layers),
        "layers_in_w8a16": fallen,
    }


def held_out_loss(run: dict[str, Any]) -> float:
    """The held-out loss, whatever prefix its name has."""
    return next(value for key, value in run["after"].items() if key.endswith("loss"))


def draw(runs: dict[str, dict[int, dict[str, Any]]], file: Path, title: str) -> None:
    """One line a run, one colour a base."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for colour, (base, by_seed) in zip(("C0", "C1", "C2"), runs.items(), strict=False):
        for number, (_, run) in enumerate(by_seed.items()):
            label = base if number == 0 else None
            axes.plot(*zip(*run["curve"], strict=True), color=colour, alpha=0.7, label=label)
    axes.set(xlabel="optimizer step", ylabel="training loss", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=120)


def judge(records: Records, runs: dict[str, dict[int, dict[str, Any]]], wanted: int) -> None:
    """Difference of the means against the spread of the float base, a line for each int8 base."""
    reference = runs["float"]
    for base, by_seed in runs.items():
        seeds = sorted(reference.keys() & by_seed.keys())
        if base == "float" or not seeds:
            continue
        floats = [held_out_loss(reference[seed]) for seed in seeds]
        own = [held_out_loss(by_seed[seed]) for seed in seeds]
        difference = statistics.fmean(own) - statistics.fmean(floats)
        spread = statistics.stdev(floats) if len(floats) > 1 else float("nan")
        complete = len(seeds) >= wanted
        holds = complete and difference < spread
        outcome = "PASS" if holds else "FAIL" if complete else "NOT MEASURED"
        values = {
            "base": base,
            "seeds": seeds,
            "float_losses": floats,
            "losses": own,
            "difference": difference,
            "seed_deviation": spread,
            "seed_range": max(floats) - min(floats),
            "outcome": outcome,
        }
        print(
            f"{outcome:>12}  {base} minus float held-out loss {difference:+.5f}; between seeds"
            f" deviation {spread:.5f}, range {values['seed_range']:.5f}; {len(seeds)} seeds"
        )
        records.write("loss_curves", **values)
        _accuracy(records, base, reference, by_seed, seeds)


def _accuracy(
    records: Records,
    base: str,
    reference: dict[int, dict[str, Any]],
    by_seed: dict[int, dict[str, Any]],
    seeds: list[int],
) -> None:
    key = next((k for k in reference[seeds[0]]["after"] if k.endswith("accuracy")), None)
    if key is None:
        return
    floats = [100 * reference[seed]["after"][key] for seed in seeds]
    own = [100 * by_seed[seed]["after"][key] for seed in seeds]
    points = statistics.fmean(own) - statistics.fmean(floats)
    outcome = "PASS" if points >= -0.5 else "FAIL"
    print(f"{outcome:>12}  {base} minus float accuracy {points:+.2f} points (at least -0.5)")
    records.write("accuracy", base=base, points=points, float=floats, own=own, outcome=outcome)


def main() -> int:
    """Train, compare, write."""
    options = parser(__doc__)
    options.add_argument("--task", choices=list(TASKS), default="minilm")
    options.add_argument("--steps", type=int, default=300)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--minutes", type=float, default=30.0)
    options.add_argument("--bases", default="float,w8a8", help="of " + ", ".join(BASES))
    options.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    options.add_argument("--model", help="another model folder than the recipe's")
    options.add_argument("--train", help="another training file than the recipe's")
    options.add_argument("--out", type=Path, default=Path("loss-curves"))
    options = options.parse_args()
    if options.quick or options.smoke:
        options.steps, options.seeds = (4, 1) if options.smoke else (30, 2)
    records = Records(options.json)
    machine = start(records, options.threads)
    end = time.monotonic() + 60 * options.minutes
    bases = options.bases.split(",")
    runs: dict[str, dict[int, dict[str, Any]]] = {base: {} for base in bases}
    with tempfile.TemporaryDirectory() as work:
        for seed in range(options.seeds):
            for base in bases:
                if time.monotonic() > end:
                    print(f"!!! not run, {options.minutes:g} minutes are over: {base} seed {seed}")
                    continue
                run = train_once(recipe_for(options, base, seed, Path(work) / f"{base}-{seed}"))
                runs[base][seed] = run
                after = ", ".join(f"{k} {v:.4f}" for k, v in run["after"].items())
                print(f"  {base} seed {seed}: {run['seconds']:.0f} s, {after}", flush=True)
                records.write("run", base=base, seed=seed, **run)
    judge(records, runs, options.seeds)
    name = options.out.name
    answer = {"task": options.task, "steps": options.steps, "machine": machine, "runs": runs}
    options.out.with_name(f"{name}.json").write_text(json.dumps(answer) + "\n", encoding="utf-8")
    draw(runs, options.out.with_name(f"{name}.png"), f"{options.task}, {options.steps} steps")
    print(f"wrote {name}.json and {name}.png in {options.out.parent.resolve()}")
    return records.finish()


if __name__ == "__main__":
    sys.exit(main())
