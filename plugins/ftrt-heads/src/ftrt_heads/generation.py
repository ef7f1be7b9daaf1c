"""Generating answers for prompts of unequal length, in batches."""

__all__ = ["GenerationOptions", "generate_texts"]

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from torch import nn

from ftrt import PluginConfig
from ftrt_heads.tokens import pad_token_id

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROWS_PER_BATCH = 8


class GenerationOptions(PluginConfig):
    """How `predict` chooses tokens."""

    max_new_tokens: int = Field(default=128, ge=1)
    temperature: float = Field(default=0.0, ge=0, description="0 takes the likeliest token.")
    top_p: float = Field(default=1.0, gt=0, le=1, description="Sample within this mass.")


def generate_texts(
    model: nn.Module,
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Mapping[str, Any]],
    *,
    options: GenerationOptions,
    stop_ids: Sequence[int],
) -> list[str]:
    """What `model` writes after each prompt, in order, without special tokens.

    Args:
        prompts: features with `input_ids`. They are padded on the left, so that each goes on from
            its own last token, and batched with others of about their length.
        stop_ids: tokens that end an answer.
    """
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]["input_ids"]))
    texts = [""] * len(prompts)
    for start in range(0, len(order), _ROWS_PER_BATCH):
        chosen = order[start : start + _ROWS_PER_BATCH]
        ids = [list(prompts[index]["input_ids"]) for index in chosen]
        written = _generate(model, tokenizer, ids, options=options, stop_ids=stop_ids)
        for index, answer in zip(chosen, written, strict=True):
            texts[index] = str(tokenizer.decode(answer, skip_special_tokens=True)).strip()
    return texts


def _generate(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    ids: list[list[int]],
    *,
    options: GenerationOptions,
    stop_ids: Sequence[int],
) -> list[list[int]]:
    pad = pad_token_id(tokenizer)
    length = max(map(len, ids))
    device = next(model.parameters()).device
    is_sampled = options.temperature > 0
    sampling = {"temperature": options.temperature, "top_p": options.top_p} if is_sampled else {}
    with torch.no_grad():
        output = model.generate(
            input_ids=torch.tensor([[pad] * (length - len(row)) + row for row in ids]).to(device),
            attention_mask=torch.tensor(
                [[0] * (length - len(row)) + [1] * len(row) for row in ids]
            ).to(device),
            max_new_tokens=options.max_new_tokens,
            do_sample=is_sampled,
            pad_token_id=pad,
            eos_token_id=list(stop_ids) or None,
            use_cache=True,
            **sampling,
        )
    return [_until(row[length:].tolist(), stop_ids) for row in output]


def _until(ids: list[int], stop_ids: Sequence[int]) -> list[int]:
    for place, token in enumerate(ids):
        if token in stop_ids:
            return ids[:place]
    return ids
