"""Does a run's adapter mean the same to plain PEFT, in a process that cannot import ftrt?

    python benchmarks/plain_peft.py runs/demo --texts 200

Twice: on the dequantised int8 base the adapter was trained on, and on the original float base, in
each case against ftrt with the same base. Prints the share of equal predictions and the largest
difference of logits.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

import ftrt
import ftrt.nn
from ftrt.data import load_splits

PLAIN = """
import sys
sys.modules["ftrt"] = None  # importing it fails from here on
import json
import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

base, adapter, texts, labels, length, out = sys.argv[1:]
model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=int(labels))
model = PeftModel.from_pretrained(model, adapter).eval()
tokenizer = AutoTokenizer.from_pretrained(adapter)
with torch.no_grad():
    batches = [
        tokenizer(text, return_tensors="pt", truncation=True, max_length=int(length))
        for text in json.load(open(texts))
    ]
    save_file({"logits": torch.cat([model(**batch).logits for batch in batches])}, out)
"""


def own_logits(run: ftrt.LoadedRun, texts: list[str]) -> torch.Tensor:
    """(texts, labels) logits of ftrt's own model."""
    length = run.recipe.data.max_length
    batches = [
        run.tokenizer(text, return_tensors="pt", truncation=True, max_length=length)
        for text in texts
    ]
    with torch.no_grad():
        return torch.cat([run.model(**batch).logits for batch in batches])


def plain_logits(base: Path, run: ftrt.LoadedRun, texts: list[str], work: Path) -> torch.Tensor:
    """The same from plain PEFT in a process of its own."""
    (work / "texts.json").write_text(json.dumps(texts))
    out = work / "logits.safetensors"
    labels, length = len(run.head.state()["labels"]), run.recipe.data.max_length
    arguments = [base, run.path, work / "texts.json", labels, length, out]
    subprocess.run([sys.executable, "-c", PLAIN, *map(str, arguments)], check=True)
    return load_file(out)["logits"]


def save_base(run: ftrt.LoadedRun, folder: Path) -> None:
    """The run's base, without its adapter, as a plain float model."""
    base = run.model.unload()
    if any(isinstance(module, ftrt.nn.Int8Linear) for module in base.modules()):
        ftrt.dequantize_linears(base)
    base.save_pretrained(folder)


def main() -> None:
    """Compare on both bases; print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--texts", type=int, default=200)
    options = parser.parse_args()
    answer = {}
    for name, quantized in (("dequantised base", None), ("float base", False)):
        run = ftrt.load_run(options.run, quantized=quantized)
        splits = load_splits(
            run.recipe.data, columns=run.head.columns, optional=run.head.optional_columns
        )
        texts = [row["text"] for row in splits.test[: options.texts]]
        own = own_logits(run, texts)
        with tempfile.TemporaryDirectory() as scratch:
            save_base(run, Path(scratch) / "base")
            plain = plain_logits(Path(scratch) / "base", run, texts, Path(scratch))
        answer[name] = {
            "texts": len(texts),
            "equal_predictions": (own.argmax(1) == plain.argmax(1)).float().mean().item(),
            "largest_logit_difference": (own - plain).abs().max().item(),
        }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
