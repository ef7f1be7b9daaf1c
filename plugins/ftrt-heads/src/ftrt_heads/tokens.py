"""What both heads need of a tokenizer and a model: a padding token and one vocabulary."""

__all__ = ["encode_rows", "pad_token_id", "require_vocabulary", "text_of"]

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ftrt import Head
from ftrt.errors import DataError, UnsupportedError, suggest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def pad_token_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The id that pads a batch; a tokenizer without a padding token is given its eos token for it.

    Raises:
        UnsupportedError: it has neither.
    """
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise UnsupportedError(
                f"{type(tokenizer).__name__}: must have a padding or an eos token to batch rows of"
                " unequal length; got neither; set tokenizer.pad_token"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return int(tokenizer.pad_token_id)


def require_vocabulary(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", where: str
) -> None:
    """Refuse a tokenizer with ids that the model has no embedding for.

    Raises:
        UnsupportedError: the largest id is out of range; the message has both sizes.
    """
    embeddings: Any = model.get_input_embeddings()
    rows: int = embeddings.num_embeddings
    if len(tokenizer) > rows:
        raise UnsupportedError(
            f"{where}: the model must embed every token of the tokenizer; got {rows} embeddings for"
            f" {len(tokenizer)} tokens; use the model's own tokenizer, or resize_token_embeddings"
        )


def text_of(row: Mapping[str, Any], column: str) -> str:
    """The row's text in `column`.

    Raises:
        DataError: there is no such column, or it holds no text.
    """
    if column not in row:
        raise DataError(
            f"column {column!r}: must be in the row{suggest(column, row)}; map it with"
            f" data.columns: {{{column}: NAME IN THE FILE}}"
        )
    value = row[column]
    if not isinstance(value, str) or not value.strip():
        shown = repr(value) if isinstance(value, str) else f"{type(value).__name__} {value!r}"
        raise DataError(f"column {column!r}: must hold text; got {shown}")
    return value


def encode_rows(
    head: Head,
    rows: Sequence[Mapping[str, Any]],
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
) -> list[Mapping[str, Any]]:
    """The features of rows without answers.

    Raises:
        DataError: a row does not fit; the message says which, counted from 1.
    """
    encoded = []
    for number, row in enumerate(rows, start=1):
        try:
            encoded.append(head.encode(row, tokenizer, max_length, labelled=False).features)
        except DataError as error:
            raise DataError(f"row {number}: {error}") from error
    return encoded
