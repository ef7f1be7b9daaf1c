"""Tiny models as folders, and real reviews for them; skipped where the data cannot be had."""

import json

import pytest
from ftrt_peft.trial import tiny_model

ROWS = 48


@pytest.fixture(scope="session")
def real_reviews(tmp_path_factory):
    """The first rows of Rotten Tomatoes as (file, their commonest words)."""
    from collections import Counter

    from ftrt.data import assets
    from ftrt.data.build import load_rows
    from ftrt.errors import DataError
    from ftrt.recipe import DataSection

    try:
        assets.fetch("rotten-tomatoes")
    except DataError as error:
        pytest.skip(str(error))
    columns = {"text": "", "label": ""}
    rows, _ = load_rows(
        "asset:rotten-tomatoes", DataSection(), columns=columns, optional=frozenset()
    )
    chosen = rows[:ROWS]
    half = [r for r in rows if r["label"] != chosen[0]["label"]][: ROWS // 2]
    chosen[ROWS // 2 :] = half
    file = tmp_path_factory.mktemp("reviews") / "real.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in chosen), encoding="utf-8")
    counts = Counter(word for row in chosen for word in row["text"].lower().split())
    return file, [word for word, _ in counts.most_common()]


@pytest.fixture(scope="session")
def folders(tmp_path_factory, real_reviews):
    """kind of model -> a model folder with a tokenizer of the reviews' 60 commonest words."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    marks = ["[PAD]", "[UNK]", "[EOS]", "[CLS]"]
    words = [*marks, *real_reviews[1][:60]]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]"
    )
    found = {}
    for kind in ("decoder", "encoder"):
        found[kind] = tmp_path_factory.mktemp(kind)
        model = tiny_model(kind)
        # the head is the run's own
        (model.bert if kind == "encoder" else model).save_pretrained(found[kind])
        tokenizer.save_pretrained(found[kind])
    return found


@pytest.fixture
def recipe_of(folders, real_reviews, tmp_path):
    """A recipe of two steps for a kind of model and a method's section."""

    def make(kind, method, **changes):
        encoder = kind == "encoder"
        return {
            "model": {"path": str(folders[kind])},
            "method": method,
            "head": {"name": "sequence_classification"}
            if encoder
            else {"name": "causal_lm", "format": "text"},
            "data": {
                "train": str(real_reviews[0]),
                "validation": None,
                "max_length": 16,
            },
            "training": {
                "max_steps": 2,
                "per_device_train_batch_size": 4,
                "eval_strategy": "no",
                "save_strategy": "no",
                "learning_rate": 0.01,
                "use_cpu": True,
            },
            "output": str(tmp_path / "run"),
            **changes,
        }

    return make
