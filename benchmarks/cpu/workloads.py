"""What is fine-tuned in the end-to-end benchmarks: a model, its targets, and batches of one shape.

    smollm2   SmolLM2-135M, causal language model, 4 x 256 tokens
    minilm    MiniLM-L6, sequence classification, 32 x 64 tokens

The weights and texts are real where the assets are in the cache or can be fetched, and random
otherwise; which it was is printed and recorded. Speed does not depend on it, losses do.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import torch
from measuring.training_step import Batch
from torch import Tensor, nn

SMOLLM2_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BERT_TARGETS = ["query", "key", "value", "dense"]


@dataclass(frozen=True)
class Workload:
    """A model to fine-tune.

    Attributes:
        name: on the command line.
        weights: "asset" or "random".
        make: the float model, fresh, in the dtype given, in train mode without dropout.
        targets: names of the linear layers that are adapted.
        batches: of equal shape; steps take them in turn.
    """

    name: str
    weights: str
    make: Callable[[torch.dtype], nn.Module]
    targets: list[str]
    batches: list[Batch]

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.batches[0]["input_ids"].numel()


def make_workload(name: str, weights: str, *, is_tiny: bool = False) -> Workload:
    """`smollm2` or `minilm`, with weights "asset", "random", or "auto": asset if it can be had."""
    maker = {"smollm2": _smollm2, "minilm": _minilm}[name]
    if is_tiny:
        return maker("random", True)
    if weights != "auto":
        return maker(weights, False)
    from ftrt.errors import FtrtError

    try:
        return maker("asset", False)
    except FtrtError as error:
        print(f"!!! {name}: random weights, because {error}")
        return maker("random", False)


def smollm2_config(*, is_tiny: bool) -> Any:
    """The architecture of SmolLM2-135M, or one of its kind that runs in milliseconds."""
    import transformers

    sizes = (
        {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 128,
        }
        if is_tiny
        else {
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "vocab_size": 49152,
        }
    )
    return transformers.LlamaConfig(
        **sizes,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_theta=100000.0,
        tie_word_embeddings=True,
        use_cache=False,
    )


def _smollm2(weights: str, is_tiny: bool) -> Workload:
    import transformers

    rows, tokens = (2, 16) if is_tiny else (4, 256)
    config = smollm2_config(is_tiny=is_tiny)
    if weights == "asset":
        from ftrt.integrations.transformers import load_model, load_tokenizer

        tokenizer = load_tokenizer("asset:smollm2-135m-instruct")
        stream = [token for text in hsk_texts() for token in tokenizer(text)["input_ids"]]

        def make(dtype: torch.dtype) -> nn.Module:
            name = str(dtype).removeprefix("torch.")
            model = load_model("asset:smollm2-135m-instruct", "AutoModelForCausalLM", dtype=name)
            model.config.use_cache = False
            return model.train()

        make(torch.bfloat16)  # fails here, not later, where the asset cannot be had
    else:
        generator = torch.Generator().manual_seed(0)
        size = (8 * rows * tokens,)
        stream = torch.randint(0, config.vocab_size, size, generator=generator).tolist()

        def make(dtype: torch.dtype) -> nn.Module:
            torch.manual_seed(0)
            return transformers.LlamaForCausalLM(config).to(dtype).train()

    values = torch.tensor(list(islice(cycle(stream), 8 * rows * tokens))).view(8, rows, tokens)
    batches = [{"input_ids": ids, "labels": ids.clone()} for ids in values]
    return Workload("smollm2", weights, make, SMOLLM2_TARGETS, batches)


def _minilm(weights: str, is_tiny: bool) -> Workload:
    import transformers

    rows, tokens = (2, 8) if is_tiny else (32, 64)
    sizes = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6}
    config = transformers.BertConfig(
        **(
            {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
            if is_tiny
            else sizes
        ),
        num_attention_heads=4 if is_tiny else 12,
        vocab_size=128 if is_tiny else 30522,
        attention_probs_dropout_prob=0.0,
        hidden_dropout_prob=0.0,
    )
    if weights == "asset":
        from ftrt.integrations.transformers import load_model

        ids = _movie_review_ids(8 * rows, tokens).view(8, rows, tokens)
        no_dropout = {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0}

        def make(dtype: torch.dtype) -> nn.Module:
            torch.manual_seed(0)  # the new classifier
            return load_model(
                "asset:all-MiniLM-L6-v2",
                "AutoModelForSequenceClassification",
                dtype=str(dtype).removeprefix("torch."),
                options={"num_labels": 2},
                config=no_dropout,
            ).train()

        make(torch.float32)
    else:
        generator = torch.Generator().manual_seed(0)
        shape = (8, rows, tokens)
        ids = torch.randint(1, config.vocab_size, shape, generator=generator)

        def make(dtype: torch.dtype) -> nn.Module:
            torch.manual_seed(0)
            return transformers.BertForSequenceClassification(config).to(dtype).train()

    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 2, (8, rows), generator=generator)
    batches = [
        {"input_ids": i, "attention_mask": torch.ones_like(i), "labels": y}
        for i, y in zip(ids, labels, strict=True)
    ]
    return Workload("minilm", weights, make, BERT_TARGETS, batches)


def hsk_texts() -> list[str]:
    """Real sentence pairs, Chinese and English, one text each."""
    import json

    from ftrt.data.assets import fetch

    records = json.loads(fetch("hsk-en-zh").read_text(encoding="utf-8"))
    records = records if isinstance(records, list) else records["sentences"]
    return [f"{row['chinese']}\n{row['translation']['en']}\n\n" for row in records]


def _movie_review_ids(rows: int, tokens: int) -> Tensor:
    import csv

    from ftrt.data.assets import fetch
    from ftrt.integrations.transformers import load_tokenizer

    tokenizer = load_tokenizer("asset:all-MiniLM-L6-v2")
    with fetch("rotten-tomatoes").open(encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in islice(csv.DictReader(file), rows)]
    # full rows: the benchmark compares equal work, not padding
    return torch.tensor(
        [list(islice(cycle(tokenizer(text)["input_ids"]), tokens)) for text in texts]
    )
