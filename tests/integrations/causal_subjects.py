"""Tiny causal language models, what trains in them, and their gradients."""

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY = 500

SHAPE = dict(
    vocab_size=VOCABULARY,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    intermediate_size=24,
    max_position_embeddings=64,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)


def build(kind="llama", **changes):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SHAPE, **changes})
    return AutoModelForCausalLM.from_config(config).train()


def lora(model, **options):
    torch.manual_seed(1)
    config = LoraConfig(r=2, task_type="CAUSAL_LM", **options)
    wrapped = get_peft_model(model, config)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return wrapped.train()


def hooked():
    """A model whose output layer has a hook that changes its output."""
    model = build(tie_word_embeddings=False)
    model.lm_head.register_forward_hook(lambda layer, args, output: output * 0.5)
    return model


# every way an output layer can stand in a model: what builds it, and whether it is called as it is
HEADS = {
    "frozen": (lambda: lora(build(), target_modules=["q_proj", "down_proj"]), False),
    "trained": (lambda: build(tie_word_embeddings=False), False),
    "tied_and_trained": (lambda: build(tie_word_embeddings=True), False),
    "with_bias": (lambda: build("phi"), False),
    "with_lora": (lambda: lora(build(), target_modules=["q_proj", "lm_head"]), True),
    "saved_whole": (
        lambda: lora(build(), target_modules=["q_proj"], modules_to_save=["lm_head"]),
        True,
    ),
    "hooked": (hooked, True),
}


def batch(rows=4, tokens=20):
    """Right-padded rows whose prompts have no labels."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(3, VOCABULARY, (rows, tokens), generator=generator)
    mask = torch.ones_like(ids)
    labels = ids.clone()
    for row in range(rows):
        labels[row, : 3 * row] = -100
        length = tokens - 2 * row
        ids[row, length:], mask[row, length:], labels[row, length:] = 0, 0, -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def gradients(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def loss_and_gradients(model, inputs):
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return loss.detach(), gradients(model)
