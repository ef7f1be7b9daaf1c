"""Small models, a distillation term and a teacher for the tests of loss terms."""

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

from ftrt import LossTerm, PluginConfig, SignalSource


class SoftConfig(PluginConfig):
    """No options."""


class SoftTargets(LossTerm):
    """Σ KL(teacher ‖ student) over examples, or over tokens with a label."""

    name = "soft"
    source = "a test"
    Config = SoftConfig
    needs_signal = True

    def __call__(self, student, signal, batch):
        ours, theirs, labels = student["logits"], signal["logits"], batch["labels"]
        if ours.dim() == 3:
            ours, theirs, labels = ours[:, :-1], theirs[:, :-1], labels[:, 1:]
        marked = labels != -100
        log_ours, log_theirs = ours[marked].log_softmax(-1), theirs[marked].log_softmax(-1)
        return (log_theirs.exp() * (log_theirs - log_ours)).sum(), marked.sum()


class HiddenSize(LossTerm):
    """Σ over examples of the mean square of the last hidden state; needs no teacher."""

    name = "hidden_size"
    source = "a test"
    Config = SoftConfig
    needs_hidden_states = True

    def __call__(self, student, signal, batch):
        last = student["hidden_states"][-1]
        return last.square().mean(dim=(1, 2)).sum(), last.shape[0]


class FixedTeacher(SignalSource):
    """A frozen model as the teacher; counts its calls."""

    name = "fixed"
    Config = SoftConfig

    def __init__(self, model: nn.Module):
        super().__init__(SoftConfig())
        self.model = model.eval().requires_grad_(False)
        self.calls: list[Mapping[str, object]] = []

    def bind(self, head, student):
        """Nothing to do."""

    def __call__(self, batch, *, hidden_states):
        self.calls.append({"batch": dict(batch), "hidden_states": hidden_states})
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask") if key in batch}
        return dict(self.model(**inputs, output_hidden_states=hidden_states))


BERT = dict(
    vocab_size=50,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=32,
    num_labels=3,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    pad_token_id=0,
)
LLAMA = dict(
    vocab_size=50,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=32,
    num_labels=3,
    pad_token_id=0,
)


def bert(seed: int = 0, **changes) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    return BertForSequenceClassification(BertConfig(**{**BERT, **changes}))


def llama_classifier(seed: int = 0) -> LlamaForSequenceClassification:
    torch.manual_seed(seed)
    return LlamaForSequenceClassification(LlamaConfig(**LLAMA))


def llama(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**LLAMA))


def classification_rows(count: int = 8) -> list[dict[str, list[int] | int]]:
    generator = torch.Generator().manual_seed(3)
    rows = []
    for index in range(count):
        length = 3 + 2 * (index % 4)
        ids = torch.randint(1, 50, (length,), generator=generator).tolist()
        rows.append({"input_ids": ids, "labels": index % 3})
    return rows


def causal_rows(count: int = 8) -> list[dict[str, list[int]]]:
    """Rows whose numbers of answered tokens are uneven; one has a label on its first token."""
    generator = torch.Generator().manual_seed(4)
    rows = []
    for index in range(count):
        length = 4 + 2 * (index % 5)
        ids = torch.randint(1, 50, (length,), generator=generator).tolist()
        asked = 0 if index == 0 else 1 + index % 3
        rows.append({"input_ids": ids, "labels": [-100] * asked + ids[asked:]})
    return rows


def collate(rows):
    length = max(len(row["input_ids"]) for row in rows)
    pad = {"input_ids": 0, "labels": -100}
    batch = {
        "attention_mask": torch.tensor(
            [[1] * len(r["input_ids"]) + [0] * (length - len(r["input_ids"])) for r in rows]
        )
    }
    for key, fill in pad.items():
        values = [row[key] for row in rows]
        if isinstance(values[0], list):
            values = [value + [fill] * (length - len(value)) for value in values]
        batch[key] = torch.tensor(values)
    return batch


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def cross_entropy_sum(logits, labels):
    return functional.cross_entropy(logits, labels, reduction="sum", ignore_index=-100)
