"""Does an int8 base train as well as a bfloat16 one? 100 steps on data that can be learnt, 3 seeds.

A small Llama first learns one language in all its weights, in float32, so that what is quantized
are weights with structure. It then learns another by LoRA, on a bfloat16 and on int8 bases, with
the same data and the same adapters at the start for each seed. Compared is the loss on held-out
rows at the end: the mean over seeds with int8 minus that with bfloat16, against the standard
deviation between the seeds with bfloat16.

The second language is real text, bytes of the sentence pairs of asset `hsk-en-zh`, where the cache
holds them, and otherwise random: each token is drawn by the one before it, from one table in the
first language and another in the second. Nothing is fetched.
"""

import os
import statistics
from typing import Any
from unittest import mock

import torch
from measuring.decoder import TARGETS
from measuring.model_variants import FAILURES, build
from measuring.training_step import Batch, TrainingStep
from torch import Tensor, nn

from gpu.stage import Stage

REFERENCE = "PEFT bf16"
NAMES = (REFERENCE, "ftrt w8a8", "ftrt w8a16")
TOKENS = 256
SIZES = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
QUICK_SIZES = {**SIZES, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
HELD_OUT = 8
# how peaked the random languages are: standard deviation of the logits of the next token
SHARPNESS = 2.5


def random_text(seed: int, count: int) -> Tensor:
    """`count` tokens, each drawn by the one before it from a fixed random table."""
    generator = torch.Generator().manual_seed(seed)
    logits = SHARPNESS * torch.randn(TOKENS, TOKENS, generator=generator)
    cumulative = logits.softmax(1).cumsum(1)
    # many chains at once, laid one after another
    chains = 256
    draws = torch.rand(-(-count // chains), chains, generator=generator)
    state = torch.randint(0, TOKENS, (chains,), generator=generator)
    steps = []
    for draw in draws:
        state = torch.searchsorted(cumulative[state], draw.unsqueeze(1)).squeeze(1)
        state = state.clamp_max(TOKENS - 1)
        steps.append(state)
    return torch.stack(steps, dim=1).reshape(-1)[:count]


def real_text(count: int) -> Tensor | None:
    """Bytes of real sentences, or None where the cache has none."""
    from ftrt.data.assets import fetch
    from ftrt.errors import FtrtError

    try:
        with mock.patch.dict(os.environ, FTRT_OFFLINE="1"):
            content = fetch("hsk-en-zh").read_bytes()
    except FtrtError:
        return None
    values = torch.frombuffer(bytearray(content), dtype=torch.uint8).long()
    return values[:count] if len(values) >= count else None


def batches_of(text: Tensor, shape: tuple[int, int], device: torch.device) -> list[Batch]:
    """The text cut into batches (rows, tokens)."""
    size = shape[0] * shape[1]
    count = len(text) // size
    values = text[: count * size].view(count, *shape).to(device)
    return [{"input_ids": ids, "labels": ids.clone()} for ids in values]


def pretrained(stage: Stage, batches: list[Batch], sizes: dict[str, int]) -> dict[str, Tensor]:
    """Weights that know the first language, bfloat16, and what they came from."""
    model = new_model(sizes).to(stage.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loss = torch.zeros(())
    for batch in batches:
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    print(f"  pretrained for {len(batches)} steps to loss {loss.item():.3f}", flush=True)
    stage.records.write("pretraining", steps=len(batches), loss=loss.item())
    return {name: value.bfloat16() for name, value in model.state_dict().items()}


def new_model(sizes: dict[str, int]) -> nn.Module:
    """A small LlamaForCausalLM in float32, the same each time."""
    import transformers

    config = transformers.LlamaConfig(
        **sizes, vocab_size=TOKENS, max_position_embeddings=1024, use_cache=False
    )
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).train()


def train(
    stage: Stage,
    name: str,
    seed: int,
    weights: dict[str, Tensor],
    sizes: dict[str, int],
    data: tuple[list[Batch], list[Batch]],
) -> dict[str, Any]:
    """One run: the curve and the held-out loss at its end."""
    batches, held_out = data

    def make() -> nn.Module:
        model = new_model(sizes).bfloat16()
        model.load_state_dict(weights)
        return model.to(stage.device)

    variant = build(name, make, TARGETS, seed=seed)
    order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(seed)).tolist()
    step = TrainingStep(variant, [batches[index] for index in order])
    for index in range(len(batches)):
        step(index)
    variant.module.eval()
    with torch.no_grad(), variant.context():
        losses = [variant.model(**batch).loss.item() for batch in held_out]
    return {"curve": step.losses, "held_out_loss": statistics.fmean(losses)}


def judge(stage: Stage, losses: dict[str, dict[int, float]], wanted: int) -> None:
    """int8 minus bfloat16 against the spread between seeds."""
    for name in NAMES[1:]:
        seeds = sorted(losses[REFERENCE].keys() & losses[name].keys())
        if not seeds:
            continue
        floats = [losses[REFERENCE][seed] for seed in seeds]
        own = [losses[name][seed] for seed in seeds]
        difference = statistics.fmean(own) - statistics.fmean(floats)
        spread = statistics.stdev(floats) if len(floats) > 1 else None
        holds = None if spread is None or len(seeds) < wanted else difference < spread
        stage.records.write(
            "loss_curves",
            name=name,
            seeds=seeds,
            float_losses=floats,
            losses=own,
            difference=difference,
            seed_deviation=spread,
            holds=holds,
        )
        shown = "-" if spread is None else f"{spread:.5f}"
        print(
            f"  {name} minus {REFERENCE}: {difference:+.5f}, between seeds {shown}"
            f" ({len(seeds)} seeds)"
        )


def measure(stage: Stage) -> None:
    """Pretrain once, then every base with every seed."""
    sizes, shape = (QUICK_SIZES, (2, 32)) if stage.quick else (SIZES, (16, 256))
    before, steps, seeds = (4, 3, 2) if stage.quick else (200, 100, 3)
    size = shape[0] * shape[1]
    count = (steps + HELD_OUT) * size
    text = real_text(count)
    source = "random" if text is None else "asset hsk-en-zh"
    print(f"\nloss curves: {steps} steps of {shape[0]} x {shape[1]} tokens, {source} text")
    text = random_text(2, count) if text is None else text
    stage.records.write("text", source=source, steps=steps, shape=shape)
    weights = pretrained(
        stage, batches_of(random_text(1, before * size), shape, stage.device), sizes
    )
    batches = batches_of(text, shape, stage.device)
    data = (batches[:steps], batches[steps:])
    losses: dict[str, dict[int, float]] = {name: {} for name in NAMES}
    for seed in range(seeds):
        for name in NAMES:
            if not stage.has_time(f"loss curve of {name}, seed {seed}"):
                continue
            try:
                run = train(stage, name, seed, weights, sizes, data)
            except FAILURES as error:
                stage.records.away(f"loss curve of {name}", error)
                continue
            losses[name][seed] = run["held_out_loss"]
            stage.records.write("curve", name=name, seed=seed, **run)
            curve = run["curve"]
            print(
                f"  {name} seed {seed}: {curve[0]:.3f} -> {curve[-1]:.3f},"
                f" held out {run['held_out_loss']:.4f}",
                flush=True,
            )
    judge(stage, losses, seeds)
