"""Tokenizers and models small enough to build in a test; nothing is downloaded."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def words():
    """One token a word, [CLS] a [SEP] and [CLS] a [SEP] b [SEP], padded with [PAD]."""
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    names = [f"w{index}" for index in range(60)]
    tokenizer = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(marks + names)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def byte_tokenizer(**marks):
    """One token a byte and one a mark; no merges, so every boundary is exact."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([*marks.values(), "<|im_start|>", "<|im_end|>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks)


@pytest.fixture
def chatml():
    """A byte tokenizer with the ChatML template, as SmolLM2 and Qwen have."""
    tokenizer = byte_tokenizer(eos_token="<|endoftext|>", pad_token="<|pad|>")
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.fixture
def unpadded():
    """A byte tokenizer without a padding token and without a template."""
    return byte_tokenizer(eos_token="<|endoftext|>")


def bert_config(**changes):
    sizes = dict(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    return BertConfig(**{**sizes, **changes})


def llama_config(**changes):
    sizes = dict(
        vocab_size=300,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=512,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaConfig(**{**sizes, **changes})


@pytest.fixture
def build():
    """Model builders by name; each call builds the same weights."""

    def of(model_class, config):
        torch.manual_seed(0)
        return model_class(config).eval()

    return {
        "bert": lambda **c: of(BertForSequenceClassification, bert_config(**c)),
        "bert_backbone": lambda **c: of(BertModel, bert_config(**c)),
        "llama_classifier": lambda **c: of(LlamaForSequenceClassification, llama_config(**c)),
        "llama": lambda **c: of(LlamaForCausalLM, llama_config(**c)),
    }
