"""What a run writes for people: `ftrt.json`, the loss plot and the model card."""

__all__ = ["run_info", "write_card", "write_loss_plot"]

import json
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import ftrt
from ftrt import checkpoint
from ftrt.data import Splits
from ftrt.nn.layer_report import layer_report, summarize
from ftrt.ops.extension import implementation_report
from ftrt.runtime.attachment import Run


def run_info(
    run: Run, splits: Splits, results: Mapping[str, Any], *, encoded: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything `ftrt.json` says: enough to read the run back, and to know what made it."""
    recipe = run.recipe
    packages = ("torch", "transformers", "peft", "accelerate", "numpy")
    adapter = hasattr(run.model, "peft_config")
    return {
        "ftrt_version": ftrt.__version__,
        "kind": "adapter" if adapter else "model",
        "recipe": recipe.model_dump(mode="json", exclude_unset=True),
        "plugins": run.registry.manager.distributions,
        "base": {
            "path": recipe.model.path if recipe.model else None,
            "fingerprint": run.base_fingerprint,
            "model_type": getattr(getattr(run.model, "config", None), "model_type", None),
        },
        "method": run.method.report(run.model) if run.method is not None else {},
        "head": {"name": run.head.name, "state": run.head.state()} if run.head else None,
        "data": {"fingerprint": splits.fingerprint, **splits.report, "encoded": dict(encoded)},
        "quantized_layers": run.quantized,
        "layers": [layer.to_json() for layer in layer_report(run.model)],
        "compiled_blocks": run.compiled.count if run.compiled is not None else 0,
        "loss": run.loss_road.to_json() if run.loss_road is not None else None,
        "ops": implementation_report(),
        "environment": {
            "python": platform.python_version(),
            "machine": platform.machine(),
            **{name: metadata.version(name) for name in packages},
        },
        "results": dict(results),
    }


def write_loss_plot(path: Path) -> None:
    """Draw `loss.png` from `metrics.jsonl`: training loss, and validation loss where there is
    one.
    """
    # matplotlib takes half a second to import and only this needs it
    from matplotlib.figure import Figure

    rows = [
        json.loads(line) for line in (path / checkpoint.METRICS).read_text("utf-8").splitlines()
    ]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for key, label in (("loss", "training"), ("eval_loss", "validation")):
        points = [(row["step"], row[key]) for row in rows if key in row]
        if points:
            axes.plot(
                *zip(*points, strict=True), label=label, marker="o" if len(points) < 30 else None
            )
    axes.set(xlabel="optimizer step", ylabel="loss")
    axes.grid(alpha=0.3)
    if axes.has_data():
        axes.legend()
    figure.savefig(path / "loss.png", dpi=120)


def write_card(path: Path, info: Mapping[str, Any]) -> None:
    """Write the model card `README.md`: what this is, how good, how made, how to load."""
    checkpoint.write_atomically(path / "README.md", card(path, info))


def card(path: Path, info: Mapping[str, Any]) -> str:
    """The model card's text."""
    recipe, results = info["recipe"], info["results"]
    method = recipe["method"]["name"]
    lines = [
        "---",
        f"base_model: {info['base']['path']}",
        f"library_name: {'peft' if info['kind'] == 'adapter' else 'transformers'}",
        f"tags: [ftrt, {method}]",
        "---",
        "",
        f"# {path.resolve().name}",
        "",
        f"`{info['base']['path']}` fine-tuned with `{method}` for `{recipe['head']['name']}` by"
        f" ftrt {info['ftrt_version']}.",
        "",
        "## Results on held-out rows",
        "",
        "| metric | before | after |",
        "|---|---|---|",
    ]
    before, after = results.get("before", {}), results.get("after", {})
    for key in sorted(set(before) | set(after)):
        lines.append(f"| {key} | {_number(before.get(key))} | {_number(after.get(key))} |")
    lines += [
        "",
        "## How it was made",
        "",
        f"- {results['trainable_parameters']:,} of {results['all_parameters']:,} parameters"
        f" trained,"
        f" {len(info['quantized_layers'])} layers held in int8",
        *(f"- {line}" for line in [summarize(info.get("layers", ()))] if line),
        f"- {results['steps']} optimizer steps in {results['train_seconds']:.0f} s,"
        f" {results['tokens_per_second']:.0f} tokens/s,"
        f" peak memory {results['peak_memory_bytes'] / 2**30:.2f} GiB",
        f"- data `{recipe['data']['train']}`, fingerprint `{info['data']['fingerprint'][:16]}`",
        f"- base fingerprint `{info['base']['fingerprint'][:16]}`",
        "- plugins: " + ", ".join(f"{name} {version}" for name, version in info["plugins"].items()),
        "",
        "The whole recipe stands in `ftrt.json`, every logged number in `metrics.jsonl`.",
        "",
        "## How to load it",
        "",
        "```python",
        "import ftrt",
        f'run = ftrt.load_run("{path}")  # run.model, run.tokenizer, run.head',
        "```",
    ]
    if info["kind"] == "adapter":
        lines += [
            "",
            "or, on a base of your own that is the same model,",
            f'`ftrt.load(model, "{path}")`; for a method that PEFT itself has,'
            " `PeftModel.from_pretrained` loads it without ftrt.",
        ]
    return "\n".join(lines) + "\n"


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
