"""Tiny models and data that whole runs can be trained on in a second, without a network."""

import contextlib
import copy
import importlib.util
import json
import os
import random
import sys
import warnings
from pathlib import Path

import pytest

# Two workers share two cores; more threads than cores make tiny models wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# "emulated": ops on CPU tensors are computed by their CUDA implementations, on kernels compiled for
# the host. "device": tensors are made on the GPU. Else neither.
CUDA_PLACE = os.environ.get("FTRT_TEST_CUDA", "")
if CUDA_PLACE == "device":
    import torch

    # Here and not in a fixture, so that it holds for tensors that test modules make when imported.
    torch.set_default_device("cuda")

GOOD = ("good", "great", "lovely", "warm", "funny", "superb")
BAD = ("bad", "awful", "dull", "cold", "boring", "poor")
FILLER = ("film", "plot", "cast", "scene", "the", "a", "was", "is", "very", "quite", "and")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def _tokenizer():
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIAL, *GOOD, *BAD, *FILLER]
    core = Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = Whitespace()
    core.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


@pytest.fixture(scope="session")
def tiny_bert_dir(tmp_path_factory):
    """A random two-block BERT of 16 features with a 28-word vocabulary, as a model folder."""
    import torch
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("tiny-bert")
    tokenizer = _tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertModel(
            BertConfig(
                vocab_size=len(tokenizer),
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=32,
                max_position_embeddings=64,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_reviews(path: Path, count: int, seed: int = 0) -> Path:
    """`count` distinct made-up reviews with labels 0 and 1 that a tiny model can learn."""
    draw = random.Random(seed)
    seen, lines = set(), []
    while len(lines) < count:
        label = draw.randrange(2)
        words = [draw.choice(BAD if label == 0 else GOOD), *draw.choices(FILLER, k=6)]
        draw.shuffle(words)
        text = " ".join(words)
        if text not in seen:
            seen.add(text)
            lines.append(json.dumps({"text": text, "label": str(label)}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def reviews(tmp_path_factory):
    """A jsonl file of 160 made-up reviews."""
    return write_reviews(tmp_path_factory.mktemp("reviews") / "reviews.jsonl", 160)


@pytest.fixture(scope="session")
def many_reviews(tmp_path_factory):
    """A jsonl file of 320 made-up reviews, enough to see a tiny model learn."""
    return write_reviews(tmp_path_factory.mktemp("reviews") / "many.jsonl", 320)


@pytest.fixture
def recipe_tree(tiny_bert_dir, reviews, tmp_path):
    """A complete recipe for a run of about a second, as a mapping to change and write."""
    tree = {
        "model": {"path": str(tiny_bert_dir)},
        "quantization": {"dtype": "int8"},
        "method": {"name": "lora", "rank": 4, "alpha": 8},
        "head": {"name": "sequence_classification"},
        "data": {"train": str(reviews), "validation": "20%", "test": 20, "max_length": 16},
        "training": {
            "learning_rate": 0.02,
            "num_train_epochs": 2,
            "per_device_train_batch_size": 8,
            "per_device_eval_batch_size": 32,
            "logging_steps": 4,
            "use_cpu": True,
        },
        "output": str(tmp_path / "run"),
    }
    return copy.deepcopy(tree)


def load_emulation():
    """The module tests/csrc/cuda/emulated.py."""
    source = Path(__file__).parent / "csrc" / "cuda" / "emulated.py"
    spec = importlib.util.spec_from_file_location("emulated", source)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def emulated_cuda():
    """CUDA implementations for CPU tensors too, launching on the emulation, which is returned."""
    import torch

    from ftrt.kernels.backend import use_backend
    from ftrt.ops.cuda import IMPLEMENTATIONS

    wrapper = importlib.import_module("ftrt.ops.int8_lora_linear")
    half = (torch.float16, torch.bfloat16)
    with (
        torch.library._scoped_library("ftrt", "IMPL") as library,
        warnings.catch_warnings(),
        pytest.MonkeyPatch.context() as patch,
    ):
        # torch warns that kernels are overridden, which is the purpose.
        warnings.simplefilter("ignore")
        for name, implementation in IMPLEMENTATIONS.items():
            library.impl(name, implementation, "CPU")
        patch.setattr(wrapper, "quantizes_while_projecting", lambda x: x.dtype in half)
        backend = load_emulation().EmulatedBackend()
        with use_backend(backend):
            yield backend


@pytest.fixture
def cuda_implementations():
    """`emulated_cuda`, for tests that compare with the CPU's."""
    return emulated_cuda


@pytest.fixture
def emulated_backend():
    """The class `EmulatedBackend`, a backend that runs CUDA kernels on CPU tensors."""
    return load_emulation().EmulatedBackend


@pytest.fixture(scope="session", autouse=True)
def cuda_place():
    """Makes the whole session one of the CUDA implementations where FTRT_TEST_CUDA says so."""
    if CUDA_PLACE != "emulated":
        yield
        return
    with emulated_cuda():
        yield


@pytest.fixture
def plugin_folder(tmp_path, monkeypatch):
    """A folder at the front of the path to put made-up plugin distributions into."""
    source = Path(__file__).with_name("plugin_folder.py")
    spec = importlib.util.spec_from_file_location("plugin_folder", source)
    tools = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tools)
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    before = set(sys.modules)
    made = tools.PluginFolder(folder)
    made.METHOD = tools.METHOD
    yield made
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
            del sys.modules[name]
