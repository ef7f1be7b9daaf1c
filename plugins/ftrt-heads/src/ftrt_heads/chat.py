"""Conversations as token ids, with a mark on every token that the model is to learn."""

__all__ = ["answer_spans", "encode_chat", "end_of_turn_ids", "prompt_text", "read_messages"]

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from ftrt.errors import DataError, UnsupportedError, suggest
from ftrt_heads.tokens import text_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]

ROLES = ("system", "user", "assistant")
WHERE = "head 'causal_lm'"


def read_messages(
    row: Mapping[str, Any], instruction: str | None, *, labelled: bool
) -> list[Message]:
    """The row's conversation: its `messages`, or `system`, `prompt` and `response`.

    Args:
        instruction: stands before the first user message, on a line of its own.
        labelled: False drops what the model is to answer, the last assistant message.

    Raises:
        DataError: a column is missing, or the messages are no conversation.
    """
    if row.get("messages") is not None:
        messages = [_message(item, place) for place, item in enumerate(row["messages"], start=1)]
    else:
        messages = [{"role": "user", "content": text_of(row, "prompt")}]
        if row.get("system") is not None:
            messages.insert(0, {"role": "system", "content": text_of(row, "system")})
        if labelled:
            messages.append({"role": "assistant", "content": text_of(row, "response")})
    if not labelled and messages and messages[-1]["role"] == "assistant":
        messages.pop()
    _check_turns(messages, labelled=labelled)
    if instruction is not None:
        first = next(item for item in messages if item["role"] == "user")
        first["content"] = f"{instruction}\n{first['content']}"
    return messages


def encode_chat(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message]
) -> tuple[list[int], list[bool]]:
    """Token ids of a conversation, and for each whether it is the assistant's to say.

    The assistant's tokens are its messages with the mark that ends a turn, without the header that
    opens one. A template that marks them itself (`{% generation %}`) is believed. A tokenizer whose
    template ends no turn gets its eos token after the last.

    Raises:
        UnsupportedError: no template, or one that shows earlier turns differently later on.
    """
    template = _template(tokenizer)
    if "{% generation" in template or "{%- generation" in template:
        marked = _apply(
            tokenizer, messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        return list(marked["input_ids"]), [bool(mark) for mark in marked["assistant_masks"]]
    text, spans = answer_spans(tokenizer, messages)
    if not tokenizer.is_fast:
        raise UnsupportedError(
            f"{WHERE}: {type(tokenizer).__name__} must tell where a token stands in the text; it is"
            " a slow tokenizer; use a fast one, or a template with {% generation %} marks"
        )
    last = messages[-1]
    is_open = last["role"] == "assistant" and text[: spans[-1][1]].endswith(last["content"].strip())
    if is_open:
        text = text[: spans[-1][1]]
    encoded: Any = tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    ids: list[int] = list(encoded["input_ids"])
    # a token on a boundary that ends inside the answer is part of it
    answers = [
        stop > start and any(begin < stop and start < end for begin, end in spans)
        for start, stop in encoded["offset_mapping"]
    ]
    if is_open and tokenizer.eos_token_id is not None:
        return [*ids, int(tokenizer.eos_token_id)], [*answers, True]
    return ids, answers


def answer_spans(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message]
) -> tuple[str, list[tuple[int, int]]]:
    """The conversation as text, and where in it each assistant message begins and ends.

    White space after a turn's end mark is left out of the span: no generation ever gets there.
    """
    text = str(_apply(tokenizer, messages))
    spans = []
    for place, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = prompt_text(tokenizer, messages[:place])
        after = str(_apply(tokenizer, messages[: place + 1]))
        if not (after.startswith(before) and text.startswith(after.rstrip())):
            raise UnsupportedError(
                f"{WHERE}: the chat template must show a turn the same whatever follows; message"
                f" {place + 1} of {len(messages)} is shown differently; use rows of one turn, or a"
                " template with {% generation %} marks"
            )
        spans.append((len(before), max(len(before), len(after.rstrip()))))
    return text, spans


def prompt_text(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message]) -> str:
    """The conversation as text, up to where the assistant begins to answer."""
    return str(_apply(tokenizer, messages, add_generation_prompt=True))


def end_of_turn_ids(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Ids of tokens that end an answer: eos, and the mark the template puts after an answer."""
    ids = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    if tokenizer.chat_template is None:
        return ids
    answer = "answer"
    turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": answer}]
    _, _, after = str(_apply(tokenizer, turns)).rpartition(answer)
    following = tokenizer(after.strip(), add_special_tokens=False)["input_ids"]
    is_mark = bool(following) and following[0] in tokenizer.added_tokens_decoder
    return list(dict.fromkeys([*ids, following[0]])) if is_mark else ids


def _template(tokenizer: "PreTrainedTokenizerBase") -> str:
    if tokenizer.chat_template is None:
        raise UnsupportedError(
            f"{WHERE}: format chat needs a chat template; {type(tokenizer).__name__} has none; use"
            " `format: text`, or a tokenizer with one (tokenizer.chat_template)"
        )
    return str(tokenizer.get_chat_template())


def _apply(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Message],
    *,
    tokenize: bool = False,
    **options: Any,
) -> Any:
    _template(tokenizer)
    try:
        return tokenizer.apply_chat_template(list(messages), tokenize=tokenize, **options)
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise DataError(f"messages: the chat template refuses them ({roles}): {error}") from error


def _message(item: Any, place: int) -> Message:
    if not isinstance(item, Mapping) or not {"role", "content"} <= set(item):
        raise DataError(f"messages: message {place} must be {{role, content}}; got {item!r}")
    role, content = item["role"], item["content"]
    if role not in ROLES:
        raise DataError(
            f"messages: message {place} must have a role of {', '.join(ROLES)}; got {role!r}"
            f"{suggest(str(role), ROLES)}"
        )
    if not isinstance(content, str) or not content.strip():
        raise DataError(f"messages: message {place} ({role}) must have text; got {content!r}")
    return {"role": role, "content": content}


def _check_turns(messages: Sequence[Message], *, labelled: bool) -> None:
    roles = [message["role"] for message in messages]
    if "user" not in roles or (labelled and "assistant" not in roles):
        raise DataError(
            "messages: must hold a user's and an assistant's turn; got"
            f" {', '.join(roles) or 'none'}"
        )
    if roles.index("user") > (roles.index("assistant") if "assistant" in roles else len(roles)):
        raise DataError(f"messages: the user must speak before the assistant; got {roles}")
