"""Where a fine-tuning step of SmolLM2-135M with LoRA r=16 goes, by category; 4x256 tokens.

    python benchmarks/cpu/profile_step.py                       PEFT bf16, ftrt w8a16, ftrt w8a8
    python benchmarks/cpu/profile_step.py "ftrt bf16" --stock-loss --top 15
    python benchmarks/cpu/profile_step.py "ftrt w8a8" --compile

Any variant of `model_variants.py` may be named, and `ftrt` ones with the recipe's `chunked_loss:
false` (--stock-loss) and `compile: true` (--compile). The profiler slows small ops down, so these
figures say what to look at, not how fast a step is: `end_to_end.py` measures that.

Each op's own time counts for the first category whose rule it or an op around it meets; "python" is
the rest of the wall time: the interpreter, autograd's book-keeping, and waiting for it.
"""

import sys
from pathlib import Path

# the folder that holds `measuring`
sys.path.append(str(Path(__file__).resolve().parents[1]))

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from measuring import model_variants
from measuring.model_variants import RANK, ModelVariant
from measuring.training_step import LEARNING_RATE, MAX_NORM
from torch.profiler import ProfilerActivity, profile, record_function
from workloads import make_workload

PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::linear", "aten::matmul", "mkldnn")
FUSED = ("ftrt::int8_lora_linear", "ftrt::lora_linear")
BASE = ("ftrt::int8_linear", "ftrt::quantize_per_token")
LOSS = ("cross_entropy", "log_softmax", "LogSoftmax", "nll_loss", "NllLoss")
ATTENTION = ("scaled_dot_product", "flash_attention")
COPIES = ("aten::copy_", "aten::_to_copy", "aten::to", "aten::clone", "aten::contiguous")

DEFAULT = ("PEFT bf16", "ftrt w8a16", "ftrt w8a8")


def main() -> None:
    """Print one table for each variant."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    workload = make_workload("smollm2", "random", is_tiny=arguments.tiny)
    vocabulary = workload.make(torch.bfloat16).config.vocab_size
    results = {}
    for name in arguments.variants:
        variant = _build(name, workload, arguments)
        events, wall = _profile(variant, workload.batches, arguments.steps)
        times, ops = _sums(events, vocabulary)
        inside = sum(times.values())
        times["python"] = max(0.0, wall - inside)
        results[name] = {key: 1e3 * value / arguments.steps for key, value in times.items()}
        _print(name, results[name], workload.tokens)
        for (category, op), seconds in ops.most_common(arguments.top):
            print(f"      {1e3 * seconds / arguments.steps:8.1f} ms  {category:<18} {op}")
    if arguments.json:
        print(json.dumps(results))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Where one fine-tuning step goes.")
    parser.add_argument("variants", nargs="*", default=DEFAULT)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--top", type=int, default=0, help="also the ops that take most")
    parser.add_argument("--stock-loss", action="store_true", help="chunked_loss: false")
    parser.add_argument("--compile", action="store_true", help="compile: true")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _build(name: str, workload: Any, arguments: argparse.Namespace) -> ModelVariant:
    if not name.startswith("ftrt ") or not (arguments.stock_loss or arguments.compile):
        make = lambda: workload.make(torch.bfloat16)  # noqa: E731
        return model_variants.build(name, make, workload.targets)
    import ftrt

    recipe: dict[str, Any] = {
        "method": {"name": "lora", "rank": RANK, "alpha": 2 * RANK, "targets": workload.targets},
        "chunked_loss": not arguments.stock_loss,
        "compile": arguments.compile,
    }
    compute = name.split()[1]
    if compute != "bf16":
        recipe["quantization"] = {"dtype": "int8", "compute": compute}
    model = ftrt.attach(workload.make(torch.bfloat16), recipe, restorable=False).model
    return ModelVariant(name, model, model)


def _profile(variant: ModelVariant, batches: list[Any], steps: int) -> tuple[list[Any], float]:
    """Events of `steps` steps after two to warm up, and their wall time in seconds."""
    parameters = variant.parameters
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE)

    def step(index: int) -> None:
        with variant.context():
            loss = variant.model(**batches[index % len(batches)]).loss
        loss.backward()
        with record_function("optimizer"):
            torch.nn.utils.clip_grad_norm_(parameters, MAX_NORM)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    step(0)
    step(1)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as trace:
        start = time.perf_counter()
        for index in range(steps):
            step(index)
        wall = time.perf_counter() - start
    return list(trace.events()), wall


def _sums(events: list[Any], vocabulary: int) -> tuple[Counter[str], Counter[tuple[str, str]]]:
    """Seconds of own time by category, and by category and op."""
    times: Counter[str] = Counter()
    ops: Counter[tuple[str, str]] = Counter()
    for event in events:
        category = next(filter(None, (_rule(e, vocabulary) for e in _upwards(event))), None)
        category = category or "norms, rope, rest"
        seconds = event.self_cpu_time_total / 1e6
        if event.name.startswith("autograd::") or "Backward" in event.name:
            # an op of the engine: what is not in the ops under it is book-keeping
            continue
        times[category] += seconds
        ops[category, event.name] += seconds
    return times, ops


def _upwards(event: Any) -> Iterator[Any]:
    while event is not None:
        yield event
        event = event.cpu_parent


def _rule(event: Any, vocabulary: int) -> str | None:
    """The category of an op by its name and the shapes of its operands; None if they say none."""
    name = event.name
    sizes = {
        size
        for shape in event.input_shapes or []
        if isinstance(shape, list)
        for size in shape
        if isinstance(size, int)
    }
    if name == "optimizer" or name.startswith("Optimizer"):
        return "optimizer"
    if "embedding" in name:
        return "embedding"
    if any(part in name for part in LOSS) or (vocabulary in sizes and "Embedding" not in name):
        return "loss"
    if any(part in name for part in ATTENTION):
        return "attention"
    if name.startswith(FUSED):
        return "base + adapter"
    if name.startswith(BASE):
        return "base linears"
    if RANK in sizes and name.startswith("aten::"):
        return "adapters"
    if name.startswith(PRODUCTS):
        return "base linears"
    if name.startswith(COPIES):
        return "casts and copies"
    return None


def _print(name: str, milliseconds: dict[str, float], tokens: int) -> None:
    total = sum(milliseconds.values())
    print(f"{name}: {total:.0f} ms a step under the profiler, {1e3 * tokens / total:.0f} tokens/s")
    for category, value in sorted(milliseconds.items(), key=lambda item: -item[1]):
        print(f"    {value:8.1f} ms {value / total:6.1%}  {category}")


if __name__ == "__main__":
    main()
