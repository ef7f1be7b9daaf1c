"""Continue text, or answer in a conversation."""

__all__ = ["CausalLM", "register_heads"]

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ftrt import Encoded, Head, PluginConfig, hookimpl
from ftrt.errors import DataError, UnsupportedError
from ftrt_heads.chat import encode_chat, end_of_turn_ids, prompt_text, read_messages
from ftrt_heads.generation import GenerationOptions, generate_texts
from ftrt_heads.tokens import encode_rows, pad_token_id, require_vocabulary, text_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ftrt_hookspec = 1

IGNORED_LABEL = -100


class CausalLMConfig(PluginConfig):
    """Options of `causal_lm`."""

    format: Literal["chat", "text"] = Field(
        "chat",
        description="chat learns answers in the tokenizer's template; text learns all of it.",
    )
    instruction: str | None = Field(
        None, description="Stands before the first user message, on a line of its own; chat only."
    )
    generation: GenerationOptions = GenerationOptions()

    @model_validator(mode="after")
    def _instruction_is_for_chat(self) -> Self:
        if self.format == "text" and self.instruction is not None:
            raise ValueError("instruction needs format: chat; put it into the text itself")
        return self


class CausalLM(Head):
    """Next-token prediction with the pretrained output layer; in chat only on the answers."""

    name: ClassVar[str] = "causal_lm"
    Config: ClassVar[type[PluginConfig]] = CausalLMConfig
    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    task_type: ClassVar[str] = "CAUSAL_LM"
    columns: ClassVar[Mapping[str, str]] = {
        "prompt": "chat: what the user says",
        "response": "chat: what the model is to answer",
        "system": "chat: a system message before the prompt",
        "messages": "chat: a whole conversation, a list of {role, content}, instead of the above",
        "text": "text: the text to learn, or to continue",
    }
    # which of them a row must have depends on `format`; `encode` says what is missing
    optional_columns: ClassVar[frozenset[str]] = frozenset(columns)
    answer_columns: ClassVar[frozenset[str]] = frozenset({"response"})
    metric: ClassVar[str] = "loss"
    needs_logits: ClassVar[bool] = False

    def attach(
        self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase | None"
    ) -> "PreTrainedModel":
        """`model` itself, checked to predict tokens, with the padding token set."""
        lm_head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        if lm_head is None or not model.can_generate():
            raise UnsupportedError(
                f"head {self.name!r}: the model must predict the next token; got"
                f" {type(model).__name__}; read it with AutoModelForCausalLM"
            )
        if tokenizer is not None:
            require_vocabulary(model, tokenizer, f"head {self.name!r}")
            if model.config.get_text_config().pad_token_id is None:
                model.config.get_text_config().pad_token_id = pad_token_id(tokenizer)
        return model

    def encode(
        self,
        row: Mapping[str, Any],
        tokenizer: "PreTrainedTokenizerBase",
        max_length: int,
        *,
        labelled: bool = True,
    ) -> Encoded:
        """Token ids and labels, -100 where nothing is learnt; without an answer the prompt's ids.

        A row that is too long loses its end; a prompt to be answered loses its beginning.
        """
        if not labelled:
            return _encode_prompt(self._prompt_ids(row, tokenizer), max_length)
        if self.config.format == "text":
            ids = _text_ids(row, tokenizer)
            answers = [True] * len(ids)
        else:
            messages = read_messages(row, self.config.instruction, labelled=True)
            ids, answers = encode_chat(tokenizer, messages)
        # position 0 is predicted by nothing
        if not any(answers[1:max_length]):
            begins = answers.index(True) if any(answers) else len(ids)
            raise DataError(
                f"row: some answer must lie within data.max_length; got {max_length} tokens, the"
                f" answer begins after {begins}; raise data.max_length or shorten the prompt"
            )
        kept = zip(ids[:max_length], answers[:max_length], strict=True)
        labels = [token if is_answer else IGNORED_LABEL for token, is_answer in kept]
        features = {
            "input_ids": ids[:max_length],
            "attention_mask": [1] * len(labels),
            "labels": labels,
        }
        return Encoded(features, len(ids) - len(labels))

    def collate(
        self, features: Sequence[Mapping[str, Any]], tokenizer: "PreTrainedTokenizerBase"
    ) -> dict[str, Tensor]:
        """Pad to the longest row of the batch, on the right; labels with -100."""
        fill = {"input_ids": pad_token_id(tokenizer), "attention_mask": 0, "labels": IGNORED_LABEL}
        length = max(len(row["input_ids"]) for row in features)
        return {
            key: torch.tensor(
                [[*row[key], *[value] * (length - len(row[key]))] for row in features]
            )
            for key, value in fill.items()
            if all(key in row for row in features)
        }

    def row_from_text(self, text: str) -> dict[str, Any]:
        """A user's message in chat, the beginning of a text otherwise."""
        return {"prompt" if self.config.format == "chat" else "text": text}

    def predict(
        self,
        model: nn.Module,
        tokenizer: "PreTrainedTokenizerBase",
        rows: Sequence[Mapping[str, Any]],
        *,
        max_length: int,
    ) -> list[dict[str, Any]]:
        """`{"response": ...}` in chat, `{"text": ...}` (the continuation) in text, in order."""
        prompts = encode_rows(self, rows, tokenizer, max_length)
        is_chat = self.config.format == "chat"
        eos = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
        stop_ids = end_of_turn_ids(tokenizer) if is_chat else eos
        texts = generate_texts(
            model, tokenizer, prompts, options=self.config.generation, stop_ids=stop_ids
        )
        return [{"response" if is_chat else "text": text} for text in texts]

    def _prompt_ids(
        self, row: Mapping[str, Any], tokenizer: "PreTrainedTokenizerBase"
    ) -> list[int]:
        if self.config.format == "text":
            return _without_eos(tokenizer(text_of(row, "text"), verbose=False), tokenizer)
        messages = read_messages(row, self.config.instruction, labelled=False)
        text = prompt_text(tokenizer, messages)
        return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _text_ids(row: Mapping[str, Any], tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    if tokenizer.eos_token_id is None:
        raise UnsupportedError(
            f"head 'causal_lm': {type(tokenizer).__name__} must have an eos token, so that a model"
            " learns where a text ends; got none; set tokenizer.eos_token"
        )
    ids = _without_eos(tokenizer(text_of(row, "text"), verbose=False), tokenizer)
    return [*ids, int(tokenizer.eos_token_id)]


def _without_eos(encoded: Mapping[str, Any], tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    ids = list(encoded["input_ids"])
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids


def _encode_prompt(ids: list[int], max_length: int) -> Encoded:
    kept = ids[-max_length:]
    features = {"input_ids": kept, "attention_mask": [1] * len(kept)}
    return Encoded(features, len(ids) - len(kept))


@hookimpl
def register_heads() -> list[type[Head]]:
    """Offer `causal_lm`."""
    return [CausalLM]
