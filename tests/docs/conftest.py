"""A folder in which the examples of the documentation run as they are written."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

# the data set, model and run names that examples use, and what they stand for here
STAND_INS = {"asset:all-MiniLM-L6-v2": "model", "asset:rotten-tomatoes": "reviews.jsonl"}


@pytest.fixture(scope="session")
def long_bert_dir(tiny_bert_dir, tmp_path_factory):
    """The tiny BERT with positions for the default `max_length`, as a model folder."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    folder = tmp_path_factory.mktemp("long-bert")
    config = BertConfig.from_pretrained(tiny_bert_dir, max_position_embeddings=512)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_bert_dir).save_pretrained(folder)
    return folder


@pytest.fixture
def desk(long_bert_dir, reviews, tmp_path, monkeypatch):
    """The working folder of a reader: `model/` and `reviews.jsonl` stand in it."""
    folder = tmp_path / "desk"
    folder.mkdir()
    (folder / "model").symlink_to(long_bert_dir)
    (folder / "reviews.jsonl").write_bytes(Path(reviews).read_bytes())
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def encoded(long_bert_dir):
    """Eight encoded reviews: what an existing trainer has as its data set."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(long_bert_dir)
    texts = ["good plot", "bad plot", "great cast", "awful cast"] * 2
    return [{**tokenizer(text), "labels": index % 2} for index, text in enumerate(texts)]


def stood_in(text):
    """An example with what has to be fetched replaced by what stands in the folder."""
    for name, local in STAND_INS.items():
        text = text.replace(name, local)
    return text
