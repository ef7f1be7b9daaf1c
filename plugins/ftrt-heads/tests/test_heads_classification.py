"""The head `sequence_classification`."""

import copy

import numpy as np
import pytest
import torch
from ftrt_heads.labels import label_name, order_labels
from ftrt_heads.sequence_classification import SequenceClassification, register_heads
from ftrt_heads.truncation import head_and_tail, shares_of
from pydantic import ValidationError

from ftrt.errors import DataError, UnsupportedError, UsageError

ROWS = [
    {"text": "w1 w2 w3", "label": "neg"},
    {"text": "w4", "label": "pos"},
    {"text": "w5 w6 w7 w8 w9", "label": "pos"},
    {"text": "w1 w1", "label": "neg"},
]


def make(**options):
    return SequenceClassification(SequenceClassification.Config(**options))


def fitted(rows=ROWS, **options):
    head = make(**options)
    head.fit(rows)
    return head


def test_hook_offers_the_head():
    assert register_heads() == [SequenceClassification]


def test_labels_are_learnt_sorted_and_survive_json():
    head = fitted()
    assert head.state() == {"labels": ["neg", "pos"]}
    again = make()
    again.load_state(head.state())
    assert again.model_options() == {
        "num_labels": 2,
        "id2label": {0: "neg", 1: "pos"},
        "label2id": {"neg": 0, "pos": 1},
    }


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["10", "9", "1"], ["1", "9", "10"]),
        ([0, 1, 2.0], ["0", "1", "2"]),
        (["0", 1, "1"], ["0", "1"]),
        (["b", "10", "9"], ["10", "9", "b"]),
        ([True, False], ["False", "True"]),
        (["-1", "1", "0.5"], ["-1", "0.5", "1"]),
    ],
)
def test_numeric_labels_sort_by_number_and_csv_equals_json(values, expected):
    assert order_labels([label_name(value) for value in values]) == expected


@pytest.mark.parametrize("value", [None, float("nan"), "", "  "])
def test_a_missing_label_has_no_name(value):
    assert label_name(value) is None


def test_rows_without_a_label_are_refused_in_training_and_fine_in_prediction(words):
    head = fitted([*ROWS, {"text": "w1", "label": None}, {"text": "w1"}])
    with pytest.raises(
        DataError, match=r"column 'label': must hold one of \['neg', 'pos'\]; got N"
    ):
        head.encode({"text": "w1", "label": None}, words, 16)
    assert "labels" not in head.encode({"text": "w1"}, words, 16, labelled=False).features


def test_a_label_never_seen_is_named_with_the_known_ones_and_the_nearest(words):
    with pytest.raises(
        DataError, match=r"one of \['neg', 'pos'\]; got 'poss'; did you mean 'pos'\?"
    ):
        fitted().encode({"text": "w1", "label": "poss"}, words, 16)
    with pytest.raises(DataError, match=r"one of \['neg', 'pos'\]; got '7'$"):
        fitted().encode({"text": "w1", "label": 7}, words, 16)


def test_one_class_in_training_is_refused():
    rows = [{"text": "w1", "label": "pos"}] * 3
    with pytest.raises(
        DataError, match=r"at least two labels; got \['pos'\] in 3 rows; check data"
    ):
        fitted(rows)
    with pytest.raises(
        DataError, match=r"at least two of the labels \['neg', 'pos'\]; got \['pos'\]"
    ):
        fitted(rows, labels=["neg", "pos"])


def test_free_text_for_a_label_is_refused_unless_listed():
    rows = [{"text": "w1", "label": f"sentence {index}"} for index in range(30)]
    with pytest.raises(DataError, match=r"got 30 labels in 30 rows, 'sentence 0' among them; map"):
        fitted(rows)
    assert len(fitted(rows, labels=[row["label"] for row in rows]).labels) == 30


def test_listed_labels_keep_their_order_and_must_differ():
    assert fitted(labels=["pos", "neg"]).labels == ["pos", "neg"]
    assert make(labels=[1, 0]).labels == ["1", "0"]
    for labels in (["a"], ["a", "a"], [1, "1"], ["a", None]):
        with pytest.raises(ValidationError, match="must be two or more different labels"):
            make(labels=labels)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"label": "pos"}, r"column 'text': must be in the row; known: label; map it with data"),
        ({"txt": "a", "label": "pos"}, r"column 'text': must be in the row; did you mean 'txt'\?"),
        ({"text": 5, "label": "pos"}, r"column 'text': must hold text; got int 5"),
        ({"text": " ", "label": "pos"}, r"column 'text': must hold text; got ' '"),
        (
            {"text": "w1", "text_pair": 5, "label": "pos"},
            r"column 'text_pair': must hold text; got",
        ),
        (
            {"text": "w1", "label": ["pos"]},
            r"column 'label': must hold one label; got list \['pos'",
        ),
    ],
)
def test_bad_rows_say_column_and_value(words, row, message):
    with pytest.raises(DataError, match=message):
        fitted().encode(row, words, 16)


def test_pairs_are_encoded_with_their_segments(words):
    row = {"text": "w1 w2", "text_pair": "w3", "label": "pos"}
    features = fitted().encode(row, words, 16).features
    assert features["input_ids"] == [2, 5, 6, 3, 7, 3]
    assert features["token_type_ids"] == [0, 0, 0, 0, 1, 1]
    assert features["labels"] == 1


def test_truncation_keeps_the_head_and_counts_what_is_cut(words):
    row = {"text": " ".join(f"w{index}" for index in range(20)), "label": "pos"}
    encoded = fitted().encode(row, words, 10)
    assert encoded.features["input_ids"] == [2, *range(4, 12), 3]
    assert encoded.truncated_tokens == 12
    assert fitted().encode(row, words, 22).truncated_tokens == 0


def test_head_tail_keeps_a_quarter_and_the_end(words):
    row = {"text": " ".join(f"w{index}" for index in range(20)), "label": "pos"}
    encoded = fitted(truncation="head_tail").encode(row, words, 10)
    assert encoded.features["input_ids"] == [2, 4, 5, *range(18, 24), 3]
    assert encoded.truncated_tokens == 12
    short = {"text": "w1 w2", "label": "pos"}
    assert fitted(truncation="head_tail").encode(short, words, 10).features == dict(
        fitted().encode(short, words, 10).features
    )


def test_head_tail_keeps_512_tokens_as_the_paper_does():
    places = list(range(2000))
    assert head_and_tail(places, 510) == places[:128] + places[-382:]


@pytest.mark.parametrize(
    ("lengths", "budget", "expected"),
    [
        ([20], 8, [8]),
        ([20, 3], 10, [7, 3]),
        ([3, 20], 10, [3, 7]),
        ([20, 20], 9, [4, 5]),
        ([30, 20], 9, [5, 4]),
        ([1, 2], 2, [1, 1]),
    ],
)
def test_the_longer_of_two_texts_is_cut_first(lengths, budget, expected):
    assert shares_of(lengths, budget) == expected


@pytest.mark.parametrize("max_length", [5, 7, 12, 20, 43])
def test_head_truncation_of_a_text_equals_the_tokenizers(words, max_length):
    row = {"text": " ".join(f"w{index}" for index in range(20)), "label": "pos"}
    expected = dict(words(row["text"], truncation=True, max_length=max_length))
    found = dict(fitted().encode(row, words, max_length).features)
    del found["labels"]
    assert found == expected


def test_a_slow_tokenizer_cannot_cut(words, monkeypatch):
    from transformers import BatchEncoding

    monkeypatch.setattr(BatchEncoding, "is_fast", property(lambda self: False))
    assert fitted().encode({"text": "w1", "label": "pos"}, words, 4)
    with pytest.raises(UnsupportedError, match=r"must tell which text a token is of.* use a fast"):
        fitted().encode({"text": "w1 w2 w3 w4", "label": "pos"}, words, 4)


def test_head_tail_of_a_pair_cuts_each_text_by_itself(words):
    first, second = ([f"w{index}" for index in r] for r in (range(20), range(30, 50)))
    row = {"text": " ".join(first), "text_pair": " ".join(second), "label": "pos"}
    encoded = fitted(truncation="head_tail").encode(row, words, 19)
    ids = encoded.features["input_ids"]
    assert ids == [2, 4, 5, *range(18, 24), 3, 34, 35, *range(48, 54), 3]
    assert encoded.truncated_tokens == 43 - 19


def test_a_special_token_written_in_the_text_does_not_confuse_the_tail(words):
    row = {"text": "w1 [SEP] " + " ".join(["w2"] * 10) + " [SEP] w3", "label": "pos"}
    ids = fitted(truncation="head_tail").encode(row, words, 8).features["input_ids"]
    assert ids == [2, 5, 3, 6, 6, 3, 7, 3][:2] + ids[2:]
    assert ids[-3:] == [3, 7, 3] and len(ids) == 8


def test_no_room_beside_the_special_tokens_is_refused(words):
    row = {"text": "w1 w2 w3", "text_pair": "w1 w2 w3", "label": "pos"}
    with pytest.raises(DataError, match=r"data.max_length: .* beside 3 special tokens; got 4"):
        fitted().encode(row, words, 4)


def test_encode_leaves_the_row_alone(words):
    row = {"text": "w1 " * 30, "text_pair": "w2 " * 30, "label": 1, "other": [1]}
    before = copy.deepcopy(row)
    fitted([{"label": 0}, {"label": 1}], truncation="head_tail").encode(row, words, 12)
    assert row == before


def test_collate_pads_to_the_longest_of_the_batch(words):
    head = fitted()
    batch = head.collate([head.encode(row, words, 16).features for row in ROWS[:2]], words)
    assert batch["input_ids"].tolist() == [[2, 5, 6, 7, 3], [2, 8, 3, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert batch["labels"].tolist() == [0, 1] and batch["labels"].dtype == torch.long


def test_metrics_agree_with_counting_by_hand():
    head = fitted([{"label": name} for name in "abc"])
    guess = np.array([0, 0, 1, 1, 1, 0])
    labels = np.array([0, 1, 1, 1, 0, 0])
    scores = head.metrics(np.eye(3)[guess], labels)
    # a: 2 hits, 3 guesses, 3 rows; b: 2 hits, 3 guesses, 3 rows; c never occurs
    assert scores["accuracy"] == pytest.approx(4 / 6)
    assert scores["f1/a"] == pytest.approx(4 / 6) and scores["f1/b"] == pytest.approx(4 / 6)
    assert scores["macro_f1"] == pytest.approx(4 / 6)
    assert (scores["support/a"], scores["support/b"], scores["support/c"]) == (3.0, 3.0, 0.0)
    assert head.metrics((np.eye(3)[guess], None), labels) == scores


def test_metrics_of_a_constant_guess():
    scores = fitted().metrics(np.array([[1.0, 0.0]] * 4), np.array([0, 0, 0, 1]))
    assert scores["accuracy"] == 0.75
    assert scores["macro_f1"] == pytest.approx((2 * 3 / (3 + 4) + 0) / 2)


@pytest.mark.parametrize("kind", ["bert", "llama_classifier"])
def test_attach_keeps_a_classifier_and_names_its_labels(build, words, kind):
    model = build[kind](num_labels=2)
    head = fitted()
    assert head.attach(model, words) is model
    assert model.config.id2label == {0: "neg", 1: "pos"}
    assert model.config.label2id == {"neg": 0, "pos": 1}
    assert head.new_modules(model) == [{"bert": "classifier"}.get(kind, "score")]


def test_attach_puts_a_classifier_around_the_same_backbone(build, words):
    backbone = build["bert_backbone"]()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    config = backbone.config.to_dict()
    head = fitted([{"label": name} for name in "abc"])
    torch.manual_seed(0)
    model = head.attach(backbone, words)
    assert model.bert is backbone and head.new_modules(model) == ["classifier"]
    assert all(torch.equal(value, before[n]) for n, value in backbone.state_dict().items())
    assert backbone.config.to_dict() == config
    weight = model.classifier.weight
    assert weight.device.type == "cpu" and weight.shape == (3, 16)
    assert 0.01 < float(weight.detach().std()) < 0.03 and not model.classifier.bias.any()
    batch = head.collate([head.encode({"text": "w1", "label": "a"}, words, 8).features], words)
    model.train()(**batch).loss.backward()
    assert backbone.embeddings.word_embeddings.weight.grad is not None


def test_attach_gives_the_classifier_the_backbones_dtype(build, words):
    model = fitted().attach(build["bert_backbone"]().to(torch.bfloat16), words)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_attach_sets_the_padding_token_of_a_decoder(build, unpadded):
    model = build["llama_classifier"](num_labels=2)
    assert model.config.pad_token_id is None
    head = fitted()
    head.attach(model, unpadded)
    assert model.config.pad_token_id == unpadded.pad_token_id == unpadded.eos_token_id


def test_a_decoder_gives_one_row_the_same_answer_alone_and_in_a_batch(build, unpadded):
    model, head = build["llama_classifier"](num_labels=2), fitted()
    head.attach(model, unpadded)
    rows = [{"text": "a"}, {"text": "abc def ghi"}, {"text": "xy"}]
    together = head.predict(model, unpadded, rows, max_length=32)
    for row, answer in zip(rows, together, strict=True):
        (alone,) = head.predict(model, unpadded, [row], max_length=32)
        assert alone["probability"] == pytest.approx(answer["probability"], abs=1e-5)


def test_attach_refuses_another_number_of_labels(build, words):
    with pytest.raises(
        UnsupportedError, match=r"one output for each label; got 3 outputs .* for 2 l"
    ):
        fitted().attach(build["bert"](num_labels=3), words)


def test_attach_refuses_other_names(build, words):
    model = build["bert"](id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1})
    with pytest.raises(UnsupportedError, match=r"got \['cat', 'dog'\] for \['neg', 'pos'\]; list"):
        fitted().attach(model, words)


def test_attach_follows_the_order_of_a_trained_classifier(build, words):
    model = build["bert"](id2label={0: "pos", 1: "neg"}, label2id={"pos": 0, "neg": 1})
    head = fitted()
    head.attach(model, words)
    assert head.labels == ["pos", "neg"]
    assert head.encode(ROWS[0], words, 8).features["labels"] == 1


def test_attach_without_rows_takes_the_models_labels(build, words):
    model = build["bert"](id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1})
    head = make()
    assert head.model_options() == {}
    head.attach(model, words)
    assert head.labels == ["cat", "dog"]


def test_attach_refuses_a_model_of_another_task(build, unpadded):
    with pytest.raises(
        UnsupportedError, match=r"or be a bare backbone; got LlamaForCausalLM; read"
    ):
        fitted().attach(build["llama"](), unpadded)


def test_attach_refuses_a_backbone_before_the_labels_are_known(build, words):
    with pytest.raises(UsageError, match=r"a model without a classifier needs the labels; list"):
        make().attach(build["bert_backbone"](), words)


def test_attach_refuses_a_tokenizer_of_another_vocabulary(build, unpadded):
    with pytest.raises(
        UnsupportedError, match=r"got 64 embeddings for 259 tokens; use the model's"
    ):
        fitted().attach(build["bert"](num_labels=2), unpadded)


def test_attach_without_a_tokenizer_needs_a_padding_token(build):
    assert fitted().attach(build["bert"](num_labels=2), None)
    with pytest.raises(
        UnsupportedError, match=r"LlamaForSequenceClassification must know the padd"
    ):
        fitted().attach(build["llama_classifier"](num_labels=2), None)


@pytest.mark.parametrize("kind", ["bert", "llama_classifier"])
def test_predict_answers_each_row_in_order(build, words, kind):
    model, head = build[kind](num_labels=2, pad_token_id=0), fitted()
    head.attach(model, words)
    rows = [{"text": " ".join(["w3"] * (1 + index * 7 % 11))} for index in range(70)]
    answers = head.predict(model, words, rows, max_length=8)
    assert len(answers) == 70
    for row, answer in zip(rows[::13], answers[::13], strict=True):
        inputs = words(row["text"], truncation=True, max_length=8, return_tensors="pt")
        inputs.pop("token_type_ids") if kind != "bert" else None
        with torch.no_grad():
            scores = model(**inputs).logits.softmax(-1)[0]
        assert answer["probability"] == pytest.approx(float(scores.max()), abs=1e-5)
        assert answer["label"] == ["neg", "pos"][int(scores.argmax())]
        assert answer["scores"] == pytest.approx(
            dict(zip(["neg", "pos"], scores.tolist(), strict=True)), abs=1e-5
        )


def test_predict_names_the_row_that_does_not_fit(build, words):
    head = fitted()
    model = head.attach(build["bert"](num_labels=2), words)
    assert head.predict(model, words, [], max_length=8) == []
    with pytest.raises(DataError, match=r"row 2: column 'text': must hold text; got ''"):
        head.predict(model, words, [{"text": "w1"}, {"text": ""}], max_length=8)


def test_predict_before_the_labels_are_known_is_refused(build, words):
    with pytest.raises(UsageError, match=r"must know its labels; list them under head.labels"):
        make().predict(build["bert"](num_labels=2), words, [{"text": "w1"}], max_length=8)
