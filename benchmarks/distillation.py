"""Does `logit_kl` help? The student of recipes/distill.yaml with and without its teacher, over
seeds.

    python benchmarks/distillation.py --seeds 3 --work /tmp/distillation

Both students start from the same blocks, see the same 2,000 labelled rows in the same order and
take the same steps; one also sees the teacher's logits. Held-out accuracy, mean and each seed.
"""

import argparse
import json
import statistics
from pathlib import Path

import ftrt

RECIPES = Path(__file__).resolve().parents[1] / "recipes"


def accuracy(recipe: str, output: Path, *overrides: str) -> float:
    """Held-out accuracy of a run; a finished run in `output` is read, not repeated."""
    done = output / "ftrt.json"
    if done.is_file():
        return json.loads(done.read_text())["results"]["after"]["accuracy"]
    result = ftrt.train(RECIPES / recipe, [f"output={output}", *overrides], overwrite=True)
    return result.after["accuracy"]


def main() -> None:
    """Train, compare, print a table and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()
    teacher = options.work / "teacher"
    scores: dict[str, list[float]] = {"distilled": [], "labels alone": []}
    teacher_accuracy = accuracy("distill-teacher.yaml", teacher)
    print(f"teacher {teacher_accuracy:.4f}", flush=True)
    for seed in range(options.seeds):
        own = [f"seed={seed}"]
        distilled = accuracy(
            "distill.yaml", options.work / f"distilled-{seed}", *own, f"recipe.teacher={teacher}"
        )
        alone = accuracy("distill.yaml", options.work / f"alone-{seed}", *own, "recipe=")
        scores["distilled"].append(distilled)
        scores["labels alone"].append(alone)
        print(f"seed {seed}: distilled {distilled:.4f}, labels alone {alone:.4f}", flush=True)
    means = {name: statistics.mean(values) for name, values in scores.items()}
    print(json.dumps({"teacher": teacher_accuracy, "means": means, "scores": scores}))


if __name__ == "__main__":
    main()
