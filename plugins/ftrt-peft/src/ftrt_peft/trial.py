"""Tiny models, and options that fit them, on which each method is tried."""

__all__ = ["KINDS", "OPTIONS", "tiny_model"]

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

# kind of model -> PEFT's task type on it
KINDS = {"decoder": "CAUSAL_LM", "encoder": "SEQ_CLS", "encoder_decoder": "SEQ_2_SEQ_LM"}
VOCABULARY = 64
WIDTH = 32

# PEFT's defaults are for layers of thousands of features.
OPTIONS: dict[str, dict[str, Any]] = {
    "adalora": {"init_r": 4, "target_r": 2, "tinit": 3},
    "adamss": {"r": 8, "num_subspaces": 2},
    "adaption_prompt": {"adapter_len": 4, "adapter_layers": 2},
    "c3a": {"block_size": 16},
    "cartridge": {"num_virtual_tokens": 4},
    "fourierft": {"n_frequency": 50},
    "frod": {"progressbar": False},
    "gralora": {"r": 8},
    "hira": {"r": 8},
    "lily": {"r": 8},
    "miss": {"r": 8},
    "oft": {"oft_block_size": 8},
    "p_tuning": {"num_virtual_tokens": 4, "encoder_hidden_size": 16},
    "peanut": {"r": 8},
    "prefix_tuning": {"num_virtual_tokens": 4},
    "prompt_tuning": {"num_virtual_tokens": 4},
    "psoft": {"r": 8},
    "pvera": {"r": 8},
    "randlora": {"r": 4},
    "road": {"group_size": 16},
    "shira": {"r": 8},
    "tinylora": {"u": 8},
    "trainable_tokens": {"token_indices": [1, 2, 3]},
    "unilora": {"theta_d_length": 32},
    "vblora": {"vector_length": 16, "num_vectors": 16},
    "vera": {"r": 8},
    "waveft": {"n_frequency": 48},
}


class Translator(T5ForConditionalGeneration):  # type: ignore[no-untyped-call]
    """T5 that decodes as many tokens as it reads where the caller does not say what to decode."""

    def forward(self, *args: Any, decoder_input_ids: Tensor | None = None, **kwargs: Any) -> Any:
        """As T5; a start for the decoder is made up."""
        if decoder_input_ids is None and kwargs.get("labels") is None:
            whole = args[0] if args else kwargs.get("input_ids")
            rows = whole if whole is not None else kwargs["inputs_embeds"]
            decoder_input_ids = torch.arange(6).repeat(rows.shape[0], 1) + 3
        return super().forward(*args, decoder_input_ids=decoder_input_ids, **kwargs)


_SIZES: dict[str, dict[str, Any]] = {
    "decoder": {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": None,
    },
    "encoder": {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "num_labels": 3,
    },
    "encoder_decoder": {
        "vocab_size": VOCABULARY,
        "d_model": WIDTH,
        "d_ff": 48,
        "d_kv": 8,
        "num_layers": 2,
        "num_heads": 4,
        "dropout_rate": 0.0,
        "decoder_start_token_id": 0,
    },
}
_CLASSES: dict[str, tuple[Any, Any]] = {
    "decoder": (LlamaForCausalLM, LlamaConfig),
    "encoder": (BertForSequenceClassification, BertConfig),
    "encoder_decoder": (Translator, T5Config),
}


def tiny_model(kind: str) -> nn.Module:
    """A two-block model of 32 features and 64 tokens; the same weights on every call."""
    model_class, config_class = _CLASSES[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: nn.Module = model_class(config_class(**_SIZES[kind]))
    return model.train(False)
