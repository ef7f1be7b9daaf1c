"""What `make demo` runs: fine-tune recipes/demo.yaml, show what came of it, end with one line of
JSON.
"""

import json
import sys
from pathlib import Path

import ftrt
from ftrt.cli.faults import report
from ftrt.cli.progress import listener

HERE = Path(__file__).parent
TEXTS = (
    "a joy from start to finish , with a cast that could make a phone book funny .",
    "a tedious , overlong mess that wastes a fine cast .",
    "the plot creaks , yet the performances are so warm that you hardly mind .",
)


def main() -> int:
    """Train, predict, print; the exit code is the command line's."""
    try:
        result = ftrt.train(HERE / "demo.yaml", overwrite=True, listener=listener())
        run = ftrt.load_run(result.run_dir)
        answers = run.head.predict(
            run.model, run.tokenizer, [{"text": text} for text in TEXTS], max_length=64
        )
    # the one place of this script where every error becomes a message, as in the command line
    except (Exception, KeyboardInterrupt) as error:
        return report(error, debug="--debug" in sys.argv, as_json=False)
    before, after = result.before["accuracy"], result.after["accuracy"]
    print(f"\naccuracy on 1,000 held-out reviews: {before:.3f} before, {after:.3f} after")
    print(
        f"trained {result.trainable_parameters:,} of {result.all_parameters:,} parameters"
        f" in {result.train_seconds:.0f} s"
    )
    print(f"\nsaved in {result.run_dir}:")
    for file in sorted(result.run_dir.iterdir()):
        if file.is_file() and not file.name.startswith("."):
            print(f"  {file.name:<28}{file.stat().st_size / 1024:>9,.0f} KiB")
    print("\nthree predictions (1 is a good review):")
    for text, answer in zip(TEXTS, answers, strict=True):
        print(f"  {answer['label']}  {answer['probability']:.3f}  {text}")
    print(
        f"\nnext: read {result.run_dir}/README.md, look at {result.run_dir}/loss.png,"
        "\n      .venv/bin/ftrt eval runs/demo, .venv/bin/ftrt merge runs/demo merged,"
        "\n      change recipes/demo.yaml to your own data, .venv/bin/ftrt plugins list\n"
    )
    summary = {
        "accuracy_before": before,
        "accuracy_after": after,
        "train_seconds": round(result.train_seconds, 1),
        "run_dir": str(result.run_dir),
    }
    print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
