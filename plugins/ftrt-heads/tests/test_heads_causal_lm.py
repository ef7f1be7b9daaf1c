"""The head `causal_lm`."""

import copy
import warnings

import pytest
import torch
from ftrt_heads.causal_lm import CausalLM, register_heads
from ftrt_heads.chat import end_of_turn_ids
from pydantic import ValidationError

from ftrt.errors import DataError, UnsupportedError

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": " 4 "},
]
GENERATION = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}{% else %}{{ m['content'] }}"
    "<|im_end|>{% endif %}{{ '\n' }}{% endfor %}"
)


def make(**options):
    return CausalLM(CausalLM.Config(**options))


def learnt(features, tokenizer):
    """The text of the labelled tokens, each run ended by a bar."""
    text, previous = "", False
    for token, label in zip(features["input_ids"], features["labels"], strict=True):
        assert label in (-100, token)
        if previous and label == -100:
            text += "|"
        previous = label != -100
        if previous:
            text += tokenizer.convert_tokens_to_string([tokenizer.convert_ids_to_tokens(token)])
    return text


def test_hook_offers_the_head():
    assert register_heads() == [CausalLM]


def test_chatml_learns_the_answers_and_their_end_marks_only(chatml):
    encoded = make().encode({"messages": TURNS}, chatml, 512)
    assert learnt(encoded.features, chatml) == "Hello!<|im_end|>| 4 <|im_end|>|"
    whole = chatml.apply_chat_template(TURNS, tokenize=True)["input_ids"]
    assert encoded.features["input_ids"] == whole
    assert encoded.truncated_tokens == 0


def test_generation_marks_of_a_template_are_believed_and_agree(chatml):
    plain = make().encode({"messages": TURNS}, chatml, 512).features
    chatml.chat_template = GENERATION
    assert make().encode({"messages": TURNS}, chatml, 512).features == plain


def test_prompt_and_response_equal_the_same_messages(chatml):
    row = {"prompt": "Hi", "response": "Hello!", "system": "Be brief."}
    expected = make().encode({"messages": TURNS[:3]}, chatml, 512)
    assert make().encode(row, chatml, 512) == expected
    without = make().encode({"prompt": "Hi", "response": "Hello!", "system": None}, chatml, 512)
    assert without == make().encode({"messages": TURNS[1:3]}, chatml, 512)


def test_the_training_prompt_is_the_prompt_that_prediction_gives(chatml):
    row = {"prompt": "Hi", "response": "Hello!"}
    trained = make().encode(row, chatml, 512).features
    asked = make().encode(row, chatml, 512, labelled=False).features
    assert "labels" not in asked
    begin = len(asked["input_ids"])
    assert trained["input_ids"][:begin] == asked["input_ids"]
    assert trained["labels"][:begin] == [-100] * begin and trained["labels"][begin] != -100
    assert make().encode({"prompt": "Hi"}, chatml, 512, labelled=False).features == asked


def test_a_conversation_to_answer_ends_before_its_last_answer(chatml):
    asked = make().encode({"messages": TURNS}, chatml, 512, labelled=False).features
    expected = chatml.apply_chat_template(TURNS[:4], add_generation_prompt=True)["input_ids"]
    assert asked["input_ids"] == expected
    open_turn = make().encode({"messages": TURNS[:4]}, chatml, 512, labelled=False).features
    assert open_turn == asked


def test_instruction_stands_before_the_first_user_message(chatml):
    head = make(instruction="Translate:")
    features = head.encode({"messages": TURNS}, chatml, 512).features
    text = chatml.decode(features["input_ids"])
    assert "user\nTranslate:\nHi<|im_end|>" in text and text.count("Translate:") == 1
    row = {"prompt": "Hi"}
    asked = head.encode(row, chatml, 512, labelled=False).features
    assert "user\nTranslate:\nHi<|im_end|>" in chatml.decode(asked["input_ids"])
    assert row == {"prompt": "Hi"}
    with pytest.raises(ValidationError, match="instruction needs format: chat"):
        make(format="text", instruction="x")


def test_a_template_without_end_marks_gets_an_eos_that_is_learnt(chatml):
    chatml.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    features = make().encode({"prompt": "Hi", "response": "Yes"}, chatml, 512).features
    assert learnt(features, chatml) == "Yes<|endoftext|>"
    assert chatml.decode(features["input_ids"]) == "user: Hi\nassistant: Yes<|endoftext|>"


def test_multibyte_answers_are_learnt_whole(chatml):
    features = make().encode({"prompt": "你好", "response": "再见 🙂"}, chatml, 512).features
    ids = [
        t
        for t, label in zip(features["input_ids"], features["labels"], strict=True)
        if label != -100
    ]
    assert chatml.decode(ids) == "再见 🙂<|im_end|>"


def test_a_template_that_rewrites_earlier_turns_is_refused(chatml):
    chatml.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{% if loop.last %}<think></think>{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    with pytest.raises(UnsupportedError, match=r"message 3 of 5 is shown differently; use rows of"):
        make().encode({"messages": TURNS}, chatml, 512)


def test_a_tokenizer_without_a_template_is_refused_with_the_fix(unpadded):
    with pytest.raises(
        UnsupportedError, match=r"needs a chat template; .* has none; use `format: t"
    ):
        make().encode({"prompt": "a", "response": "b"}, unpadded, 512)


def test_a_template_that_raises_is_the_rows_fault(chatml):
    chatml.chat_template = "{{ raise_exception('no system role here') }}"
    with pytest.raises(
        DataError, match=r"refuses them \(system, user, assistant\): no system role"
    ):
        make().encode({"prompt": "a", "response": "b", "system": "c"}, chatml, 512)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, r"column 'prompt': must be in the row; none is known; map it with data.columns"),
        (
            {"prompt": "a", "answer": "b"},
            r"column 'response': must be in the row; known: answer, pr",
        ),
        ({"prompt": "a", "response": ""}, r"column 'response': must hold text; got ''"),
        ({"prompt": 3, "response": "b"}, r"column 'prompt': must hold text; got int 3"),
        ({"messages": []}, r"must hold a user's and an assistant's turn; got none"),
        ({"messages": ["hi"]}, r"message 1 must be \{role, content\}; got 'hi'"),
        ({"messages": "hi"}, r"message 1 must be \{role, content\}; got 'h'"),
        ({"messages": [{"role": "asistant", "content": "x"}]}, r"did you mean 'assistant'\?"),
        (
            {"messages": [{"role": "user", "content": None}]},
            r"message 1 \(user\) must have text; g",
        ),
        ({"messages": TURNS[1:2]}, r"must hold a user's and an assistant's turn; got user"),
        (
            {"messages": TURNS[2:4]},
            r"the user must speak before the assistant; got \['assistant', '",
        ),
    ],
)
def test_bad_rows_say_what_is_wrong(chatml, row, message):
    with pytest.raises(DataError, match=message):
        make().encode(row, chatml, 512)


def test_text_is_learnt_whole_with_eos_at_its_end(chatml):
    features = make(format="text").encode({"text": "abc"}, chatml, 512).features
    assert learnt(features, chatml) == "abc<|endoftext|>"
    again = make(format="text").encode({"text": "abc<|endoftext|>"}, chatml, 512).features
    assert again == features


def test_text_without_an_eos_token_is_refused(unpadded):
    unpadded.eos_token = None
    with pytest.raises(UnsupportedError, match=r"must have an eos token, so that a model learns"):
        make(format="text").encode({"text": "abc"}, unpadded, 512)


def test_truncation_is_counted_and_the_end_mark_is_not_invented(chatml):
    encoded = make(format="text").encode({"text": "abcdefgh"}, chatml, 5)
    assert learnt(encoded.features, chatml) == "abcde" and encoded.truncated_tokens == 4


def test_a_row_whose_answer_is_cut_away_is_refused_with_the_lengths(chatml):
    row = {"prompt": "x" * 50, "response": "yes"}
    begin = len(make().encode(row, chatml, 512, labelled=False).features["input_ids"])
    with pytest.raises(
        DataError, match=rf"got 20 tokens, the answer begins after {begin}; raise data"
    ):
        make().encode(row, chatml, 20)
    encoded = make().encode(row, chatml, begin + 2)
    assert learnt(encoded.features, chatml) == "ye" and encoded.truncated_tokens == 3


def test_a_long_prompt_to_answer_keeps_its_end(chatml):
    encoded = make().encode({"prompt": "x" * 50}, chatml, 20, labelled=False)
    assert chatml.decode(encoded.features["input_ids"]).endswith("<|im_start|>assistant\n")
    assert len(encoded.features["input_ids"]) == 20 and encoded.truncated_tokens > 0


def test_encode_leaves_the_row_alone(chatml):
    row = {"messages": copy.deepcopy(TURNS)}
    make(instruction="Translate:").encode(row, chatml, 512)
    assert row == {"messages": TURNS}


def test_collate_pads_labels_with_the_ignored_value(chatml):
    head = make(format="text")
    rows = [head.encode({"text": text}, chatml, 64).features for text in ("abc", "a")]
    batch = head.collate(rows, chatml)
    pad, eos = chatml.pad_token_id, chatml.eos_token_id
    assert batch["input_ids"][1].tolist()[1:] == [eos, pad, pad]
    assert batch["labels"][1].tolist()[1:] == [eos, -100, -100]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert {value.dtype for value in batch.values()} == {torch.long}


def test_a_learnt_eos_that_also_pads_keeps_its_label(unpadded):
    head = make(format="text")
    rows = [head.encode({"text": text}, unpadded, 64).features for text in ("abc", "a")]
    labels = head.collate(rows, unpadded)["labels"]
    assert unpadded.pad_token_id == unpadded.eos_token_id
    assert (labels == unpadded.eos_token_id).sum(dim=1).tolist() == [1, 1]


def test_the_loss_is_the_mean_over_the_learnt_tokens(build, chatml):
    head, model = make(), build["llama"]()
    head.attach(model, chatml)
    rows = [{"prompt": "Hi", "response": "Hello!"}, {"prompt": "a long question", "response": "no"}]
    batch = head.collate([head.encode(row, chatml, 64).features for row in rows], chatml)
    with torch.no_grad():
        output = model(**batch)
    log_probs = output.logits.double().log_softmax(-1)
    values = [
        -log_probs[r, place - 1, label]
        for r, labels in enumerate(batch["labels"].tolist())
        for place, label in enumerate(labels)
        if label != -100
    ]
    assert float(output.loss) == pytest.approx(float(sum(values) / len(values)), rel=1e-5)
    assert len(values) == len("Hello!") + len("no") + 2


def test_attach_checks_task_vocabulary_and_padding(build, chatml, words):
    head = make()
    model = build["llama"]()
    assert head.attach(model, chatml) is model and model.config.pad_token_id == chatml.pad_token_id
    assert head.new_modules(model) == []
    with pytest.raises(UnsupportedError, match=r"must predict the next token; got BertModel; read"):
        head.attach(build["bert_backbone"](), words)
    with pytest.raises(UnsupportedError, match=r"got 100 embeddings for 260 tokens"):
        head.attach(build["llama"](vocab_size=100), chatml)


def test_end_marks_are_found_in_the_template(chatml, unpadded):
    assert end_of_turn_ids(chatml) == [
        chatml.eos_token_id,
        chatml.convert_tokens_to_ids("<|im_end|>"),
    ]
    assert end_of_turn_ids(unpadded) == [unpadded.eos_token_id]
    chatml.chat_template = "{% for m in messages %}{{ m['content'] }} END {% endfor %}"
    assert end_of_turn_ids(chatml) == [chatml.eos_token_id]


class Echo(torch.nn.Module):
    """Generates a fixed answer and then an end mark, and remembers what it was given."""

    def __init__(self, answer):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.answer, self.calls = answer, []

    def generate(self, input_ids, attention_mask, **options):
        self.calls.append((input_ids, attention_mask, options))
        answer = torch.tensor([self.answer] * len(input_ids))
        return torch.cat([input_ids, answer], dim=1)


def test_predict_stops_at_the_end_mark_and_pads_on_the_left(chatml):
    end = chatml.convert_tokens_to_ids("<|im_end|>")
    model = Echo([*chatml("fine")["input_ids"], end, *chatml("rubbish")["input_ids"]])
    answers = make().predict(
        model, chatml, [{"prompt": "long question"}, {"prompt": "a"}], max_length=99
    )
    assert answers == [{"response": "fine"}] * 2
    ids, mask, options = model.calls[0]
    assert mask[0].sum() < mask[1].sum() and mask[:, -1].tolist() == [1, 1]
    assert torch.equal(ids == chatml.pad_token_id, mask == 0)
    assert options["eos_token_id"] == [chatml.eos_token_id, end] and not options["do_sample"]


@pytest.mark.parametrize("text_format", ["chat", "text"])
def test_predict_equals_greedy_decoding_of_each_row_alone(build, chatml, text_format):
    head = make(format=text_format, generation={"max_new_tokens": 6})
    model = build["llama"]()
    torch.manual_seed(3)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4) if parameter.dim() > 1 else None
    head.attach(model, chatml)
    column = {"chat": "prompt", "text": "text"}[text_format]
    rows = [{column: "question " * (1 + index * 5 % 7)} for index in range(11)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answers = head.predict(model, chatml, rows, max_length=128)
    stop_ids = end_of_turn_ids(chatml) if text_format == "chat" else [chatml.eos_token_id]
    for row, answer in zip(rows, answers, strict=True):
        ids = head.encode(row, chatml, 128, labelled=False).features["input_ids"]
        written = []
        for _ in range(6):
            with torch.no_grad():
                token = int(model(torch.tensor([ids + written])).logits[0, -1].argmax())
            if token in stop_ids:
                break
            written.append(token)
        expected = chatml.decode(written, skip_special_tokens=True).strip()
        assert answer == {{"chat": "response", "text": "text"}[text_format]: expected}


def test_sampling_follows_the_options(build, chatml):
    head = make(generation={"max_new_tokens": 8, "temperature": 1.0, "top_p": 0.9})
    model = build["llama"]()
    head.attach(model, chatml)
    torch.manual_seed(1)
    first = head.predict(model, chatml, [{"prompt": "a"}], max_length=64)
    torch.manual_seed(2)
    assert head.predict(model, chatml, [{"prompt": "a"}], max_length=64) != first
