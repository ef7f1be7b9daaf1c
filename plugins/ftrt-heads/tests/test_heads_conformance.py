"""Both heads keep the head contract, on the toy tokenizer and on real ones."""

import pytest
from ftrt_heads.causal_lm import CausalLM
from ftrt_heads.sequence_classification import SequenceClassification

from ftrt.testing import check_head

FILMS = [
    {"text": "w1 w2 w3 a good film", "label": "pos"},
    {"text": "w4 bad", "label": "neg"},
    {"text": "w5 so so, but long and dull", "label": "neg"},
]
CHATS = [
    {"prompt": "hi there", "response": "good day to you"},
    {"prompt": "one two three?", "response": "four five", "system": "count"},
]
SHORT = {"max_new_tokens": 4}


@pytest.mark.parametrize("options", [{}, {"truncation": "head_tail"}, {"labels": ["pos", "neg"]}])
def test_sequence_classification_keeps_the_contract(options):
    check_head(SequenceClassification, options, FILMS)
    pairs = [{**row, "text_pair": "w6 and w7"} for row in FILMS]
    check_head(SequenceClassification, options, pairs)


@pytest.mark.parametrize("kind", ["bert", "llama_classifier"])
def test_sequence_classification_keeps_it_on_transformers_models(build, words, kind):
    model = build[kind](num_labels=2)
    check_head(SequenceClassification, {}, FILMS, tokenizer=words, model=model, max_length=32)


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({"format": "chat", "generation": SHORT}, CHATS),
        ({"format": "chat", "instruction": "Answer:", "generation": SHORT}, CHATS),
        ({"format": "text", "generation": SHORT}, FILMS),
    ],
)
def test_causal_lm_keeps_the_contract(options, rows, build, chatml):
    check_head(CausalLM, options, rows)
    check_head(CausalLM, options, rows, tokenizer=chatml, model=build["llama"](), max_length=256)
