"""A tokenizer without files: words and marks, with the methods that task heads use."""

__all__ = ["ToyEncoding", "ToyTokenizer"]

import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch

PAD, BEGIN, END, TURN_START, TURN_END = range(5)
MARKS = ("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
VOCABULARY = 512
CHATML = (
    "<|im_start|>ROLE\nCONTENT<|im_end|>\n per message; <|im_start|>assistant\n before an answer"
)
_PIECE = re.compile("|".join(map(re.escape, MARKS)) + r"|\w+|[^\w\s]|\s")


class ToyEncoding(dict[str, Any]):
    """Model inputs by name; knows which text each token is of."""

    is_fast = True

    def __init__(self, inputs: Mapping[str, Any], owners: Sequence[int | None]) -> None:
        super().__init__(inputs)
        self._owners = list(owners)

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """0 or 1 for a token of the first or second text, None for a special token."""
        return self._owners


class ToyTokenizer:
    """Each word, sign and space is a token; `<s> a </s>` and `<s> a </s> b </s>`; ChatML chats.

    The id of a word depends on its letters only. What is missing here of a transformers tokenizer
    raises `AttributeError`; a head that needs it is checked with `check_head(tokenizer=...)`.
    """

    is_fast = True
    padding_side = "right"
    pad_token, eos_token, bos_token = MARKS[PAD], MARKS[END], MARKS[BEGIN]
    pad_token_id, eos_token_id, bos_token_id = PAD, END, BEGIN
    all_special_ids = tuple(range(len(MARKS)))
    model_max_length = 10**9

    def __init__(self) -> None:
        self.chat_template: str | None = CHATML
        self.added_tokens_decoder = dict(enumerate(MARKS))
        self._words = dict(enumerate(MARKS))

    def __len__(self) -> int:
        return VOCABULARY

    def __call__(
        self,
        text: str,
        text_pair: str | None = None,
        *,
        add_special_tokens: bool = True,
        truncation: bool = False,
        max_length: int | None = None,
        return_offsets_mapping: bool = False,
        verbose: bool = True,
    ) -> ToyEncoding:
        """Encode one text or a pair; truncation shortens the longer of a pair."""
        texts = [text] if text_pair is None else [text, text_pair]
        parts = [self._pieces(item) for item in texts]
        special = self.num_special_tokens_to_add(text_pair is not None) * add_special_tokens
        if truncation and max_length is not None:
            while sum(map(len, parts)) > max(0, max_length - special):
                max(parts, key=len).pop()
        rows: list[tuple[int, tuple[int, int], int | None]] = []
        if add_special_tokens:
            rows.append((BEGIN, (0, 0), None))
        for owner, part in enumerate(parts):
            rows += [(token, span, owner) for token, span in part]
            if add_special_tokens:
                rows.append((END, (0, 0), None))
        inputs = {"input_ids": [row[0] for row in rows], "attention_mask": [1] * len(rows)}
        if return_offsets_mapping:
            inputs["offset_mapping"] = [row[1] for row in rows]  # type: ignore[misc]
        return ToyEncoding(inputs, [row[2] for row in rows])

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Special tokens around one text or a pair."""
        return 3 if pair else 2

    def pad(
        self, encoded: Any, *, padding: bool = True, return_tensors: str = "pt"
    ) -> dict[str, torch.Tensor]:
        """Tensors (batch, tokens) from a dict of lists or a list of dicts, padded on the right."""
        if not isinstance(encoded, Mapping):
            encoded = {key: [row[key] for row in encoded] for key in encoded[0]}
        length = max(map(len, encoded["input_ids"]))
        fill = {"input_ids": PAD, "labels": -100}
        return {
            key: torch.tensor(
                [[*row, *[fill.get(key, 0)] * (length - len(row))] for row in rows]
                if isinstance(rows[0], Sequence)
                else rows
            )
            for key, rows in encoded.items()
        }

    def get_chat_template(self) -> str | None:
        """The template's text; it is for reading, the rendering is built in."""
        return self.chat_template

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, str]],
        *,
        tokenize: bool = True,
        add_generation_prompt: bool = False,
        return_dict: bool = True,
    ) -> Any:
        """The conversation in ChatML, as text or encoded."""
        text = "".join(
            f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in conversation
        )
        if add_generation_prompt:
            text += "<|im_start|>assistant\n"
        if not tokenize:
            return text
        encoded = self(text, add_special_tokens=False)
        return encoded if return_dict else encoded["input_ids"]

    def convert_tokens_to_ids(self, token: str) -> int:
        """The id of one token."""
        return self._id(token)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The text of ids; an id that no text has had becomes `[id]`."""
        return "".join(
            self._words.get(int(token), f"[{int(token)}]")
            for token in ids
            if not (skip_special_tokens and int(token) in self.all_special_ids)
        )

    def batch_decode(
        self, rows: Sequence[Sequence[int]], *, skip_special_tokens: bool = False
    ) -> list[str]:
        """`decode` of each row."""
        return [self.decode(row, skip_special_tokens=skip_special_tokens) for row in rows]

    def _pieces(self, text: str) -> list[tuple[int, tuple[int, int]]]:
        return [(self._id(match.group()), match.span()) for match in _PIECE.finditer(text)]

    def _id(self, piece: str) -> int:
        if piece in MARKS:
            return MARKS.index(piece)
        token = len(MARKS) + zlib.crc32(piece.encode()) % (VOCABULARY - len(MARKS))
        self._words.setdefault(token, piece)
        return token
