"""Stage end_to_end: fine-tuning steps of whole models of random weights, 4 x 2048 tokens.

A step is forward, backward, clipping and AdamW, rank 16 on all linear layers, through the public
functions (`ftrt.attach`, `ftrt.fuse`) and the same loop for all. Every variant computes its loss in
the same chunks; "stock loss" is the model's own. Models of 8B do not fit side by side, so variants
run one after another, and PEFT bf16 once more after its rivals: the difference between its two runs
is the drift of the machine. tokens/s are of the median step on the host's clock, from a device that
has finished to one that has; peak memory is that of steps alone.

Then the loss curves of `loss_curves.py`.
"""

import statistics
import time
from typing import Any

import torch
from measuring.decoder import TARGETS
from measuring.model_variants import FAILURES, ModelVariant, build
from measuring.records import Records
from measuring.training_step import Batch, TrainingStep
from torch import nn

from ftrt.integrations.transformers_chunked import LossSettings, set_chunked
from gpu import loss_curves
from gpu.shapes import DEPTHS, WIDTHS
from gpu.stage import Stage

REFERENCE = "PEFT bf16"
STOCK = " stock loss"
AGAIN = " again"
# the most wanted first
NAMES = (
    REFERENCE,
    "ftrt w8a8",
    "ftrt w8a16",
    "PEFT default",
    "bitsandbytes int8 + PEFT",
    REFERENCE + AGAIN,
    "ftrt fuse",
    "ftrt w8a8" + STOCK,
    REFERENCE + STOCK,
)
QUICK_NAMES = (REFERENCE, "ftrt w8a8", "ftrt w8a8" + STOCK, REFERENCE + AGAIN)
WARM_UPS, STEPS = 2, 5
# shares of the stage's time after which no further variant of a model is started
SHARES = {"8b": 0.6, "1b": 0.75, "tiny": 0.75}


def make_model(model: str, device: torch.device) -> nn.Module:
    """A LlamaForCausalLM in bfloat16, made on `device` without a float32 copy."""
    import transformers

    config = transformers.LlamaConfig(
        **WIDTHS[model],
        **DEPTHS[model],
        max_position_embeddings=8192,
        rope_theta=500000.0,
        use_cache=False,
        attn_implementation="sdpa",
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            return transformers.LlamaForCausalLM(config).train()
    finally:
        torch.set_default_dtype(before)


def make_variant(name: str, model: str, device: torch.device) -> ModelVariant:
    """A variant whose loss is computed in chunks, unless its name says stock loss."""
    # `attach` has an option for it, what is built otherwise computes its own loss
    is_attached = name.startswith("ftrt") and name != "ftrt fuse"
    known = name if is_attached else name.removesuffix(STOCK)
    variant = build(known, lambda: make_model(model, device), TARGETS)
    if not is_attached and not name.endswith(STOCK):
        settings = LossSettings("lm_head", in_training=True, in_evaluation=True)
        set_chunked(variant.module.get_base_model(), settings)
    variant.name = name
    return variant


def make_batches(model: str, shape: tuple[int, int], device: torch.device) -> list[Batch]:
    """Random tokens, which are labels too."""
    generator = torch.Generator().manual_seed(0)
    size = (2, *shape)
    ids = torch.randint(0, DEPTHS[model]["vocab_size"], size, generator=generator).to(device)
    return [{"input_ids": batch, "labels": batch.clone()} for batch in ids]


def set_checkpointing(base: nn.Module, *, is_on: bool) -> None:
    """Recompute every block in backward, or none; by the names that this transformers has."""
    word = "activation" if hasattr(base, "activation_checkpointing_enable") else "gradient"
    if is_on:
        options = {f"{word}_checkpointing_kwargs": {"use_reentrant": False}}
        getattr(base, f"{word}_checkpointing_enable")(**options)
    else:
        getattr(base, f"{word}_checkpointing_disable")()


def time_steps(
    stage: Stage, variant: ModelVariant, batches: list[Batch], *, checkpointing: bool
) -> dict[str, Any]:
    """Seconds of each step, the loss after all of them, and the memory of the timed ones."""
    set_checkpointing(variant.module.get_base_model(), is_on=checkpointing)
    step = TrainingStep(variant, batches)
    taken = []
    for index in range(WARM_UPS + (1 if stage.quick else STEPS)):
        if index == WARM_UPS:
            stage.empty_memory()
        stage.synchronize()
        begin = time.perf_counter()
        step(index)
        stage.synchronize()
        taken.append(time.perf_counter() - begin)
    return {
        "first_seconds": taken[0],
        "step_seconds": taken[WARM_UPS:],
        "seconds": statistics.median(taken[WARM_UPS:]),
        "loss": step.losses[-1],
        "peak_bytes": stage.peak_bytes(),
        "reserved_bytes": stage.reserved_bytes(),
    }


def run_variant(
    stage: Stage, name: str, model: str, shape: tuple[int, int], reference: dict[bool, float]
) -> None:
    """Build one variant, and take its steps with and without checkpointing.

    Args:
        stage: where it is recorded.
        name: of `NAMES`.
        model: of `gpu.shapes`.
        shape: rows and tokens of a batch.
        reference: checkpointing -> loss of the reference; filled by it.
    """
    stage.empty_memory()
    begin = time.perf_counter()
    try:
        variant = make_variant(name.removesuffix(AGAIN), model, stage.device)
    except FAILURES as error:
        stage.records.away(f"{model} {name}", error)
        return
    stage.synchronize()
    built = time.perf_counter() - begin
    batches = make_batches(model, shape, stage.device)
    modes = (True,) if name.endswith(STOCK) else (True, False)
    for checkpointing in modes:
        where = f"{model} {name}, checkpointing {'on' if checkpointing else 'off'}"
        try:
            found = time_steps(stage, variant, batches, checkpointing=checkpointing)
        except FAILURES as error:
            stage.records.away(where, error)
            continue
        finally:
            for parameter in variant.parameters:
                parameter.grad = None
        expected = reference.setdefault(checkpointing, found["loss"])
        difference = abs(found["loss"] - expected) / abs(expected)
        if not stage.records.gate(where, "training", {"loss": difference}):
            continue
        rate = shape[0] * shape[1] / found["seconds"]
        stage.records.write(
            "step",
            model=model,
            name=name,
            checkpointing=checkpointing,
            tokens_per_second=rate,
            build_seconds=built,
            notes=variant.notes,
            **found,
        )
        print(
            f"  {where:<56}{found['seconds'] * 1e3:9.1f} ms {rate:9.0f} tok/s  peak"
            f" {found['peak_bytes'] / 2**30:6.2f} GiB  loss {found['loss']:.3f}"
            f"  (built in {built:.1f} s, first step {found['first_seconds']:.1f} s)",
            flush=True,
        )


def compare(records: Records, model: str) -> None:
    """Ratios to the reference with the same checkpointing, and the drift."""
    rows = [r for r in records.rows if r["record"] == "step" and r["model"] == model]
    for checkpointing in (True, False):
        same = {row["name"]: row for row in rows if row["checkpointing"] is checkpointing}
        base = same.get(REFERENCE)
        if base is None:
            continue
        print(f"{model}, checkpointing {'on' if checkpointing else 'off'}, over {REFERENCE}:")
        for name, row in same.items():
            speed = row["tokens_per_second"] / base["tokens_per_second"]
            memory = row["peak_bytes"] / base["peak_bytes"] if base["peak_bytes"] else None
            records.write(
                "comparison",
                model=model,
                name=name,
                checkpointing=checkpointing,
                speed=speed,
                memory=memory,
            )
            shown = "-" if memory is None else f"{memory:.2f}"
            print(f"  {name:<32} tokens/s x{speed:.3f}  peak memory x{shown}")


def measure(stage: Stage) -> None:
    """8B, then 1B, then the loss curves."""
    shape = (2, 16) if stage.quick else (4, 2048)
    for model in ("tiny",) if stage.quick else ("8b", "1b"):
        print(f"\n{model}, {shape[0]} x {shape[1]} tokens a step")
        reference: dict[bool, float] = {}
        for name in QUICK_NAMES if stage.quick else NAMES:
            if stage.has_time(f"{model} {name}", SHARES[model]):
                run_variant(stage, name, model, shape, reference)
        stage.sample_state(model)
        compare(stage.records, model)
    stage.empty_memory()
    loss_curves.measure(stage)
