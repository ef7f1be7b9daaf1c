"""A folder in which the examples of the documentation run as they are written."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tiny models gain nothing from more threads, and lose much where cores are shared."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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


@pytest.fixture
def validate():
    """Validates a recipe, or a part of one, with its plugins; reads neither data nor model."""
    from ftrt.integrations.transformers_training import check_training
    from ftrt.recipe import load
    from ftrt.registry import Registry
    from ftrt.runtime.attachment import build_parts

    def check(tree):
        registry = Registry()
        whole = registry.expand(load(tree))
        check_training(whole.training)
        for section in whole.data.transforms:
            registry.transform(section)
        return build_parts(whole, registry)

    return check


@pytest.fixture
def run_page(desk, encoded):
    """Does what a page says, from top to bottom, in the reader's folder."""
    from doc_pages import ftrt_commands, stood_in
    from ruamel.yaml import YAML

    from ftrt.cli import run

    def follow(page):
        namespace = {"__name__": "docs_example", "data": encoded}
        for block in page.blocks:
            if block.language == "python":
                block.run(namespace)
            elif block.language == "yaml":
                tree = YAML(typ="safe", pure=True).load(stood_in(block.text))
                if {"model", "method", "head", "data", "output"} <= set(tree):
                    (desk / "recipe.yaml").write_text(stood_in(block.text), encoding="utf-8")
            elif block.language == "console":
                for command in ftrt_commands(block.text):
                    assert run(command) == 0, (str(block), command)

    return follow
