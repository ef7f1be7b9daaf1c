"""Models and methods that the peft tests share."""

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from ftrt.api import LinearAdapter, LinearMethod, PeftMethod, PluginConfig
from ftrt.integrations import peft as bridge
from ftrt.integrations.peft_layer import FtrtLayer
from ftrt.integrations.peft_lora import FusedLoraLinear
from ftrt.quantization.convert import quantize_linears


class ShiftConfig(PluginConfig):
    targets: str | list[str] = "all-linear"
    size: int = 3


class ShiftAdapter(LinearAdapter):
    """A low-rank update with every kind of state: frozen parameter, buffer, nested module."""

    def __init__(self, linear, size):
        super().__init__()
        self.down = nn.Linear(linear.in_features, size, bias=False)
        self.up = nn.Parameter(torch.zeros(linear.out_features, size))
        self.frozen = nn.Parameter(torch.randn(size), requires_grad=False)
        self.register_buffer("gain", torch.rand(1) + 1)

    def forward(self, base, x):
        y = base(x)
        hidden = nn.functional.linear(x.float(), self.down.weight.float()) * self.frozen.float()
        return y + (hidden @ self.up.float().T * self.gain).to(y.dtype)

    def delta_weight(self):
        return self.gain * (self.up * self.frozen) @ self.down.weight


class Shift(LinearMethod):
    name = "shift"
    source = "these tests"
    Config = ShiftConfig

    def adapter(self, linear):
        return ShiftAdapter(linear, self.config.size)


class LoraOptions(PluginConfig):
    rank: int = 4
    dropout: float = 0.0
    targets: str | list[str] = "all-linear"
    dora: bool = False
    init: bool | str = True


class Lora(PeftMethod):
    name = "plain"
    source = "these tests"
    Config = LoraOptions

    def peft_config(self, model):
        import peft

        return peft.LoraConfig(
            r=self.config.rank,
            lora_alpha=8,
            lora_dropout=self.config.dropout,
            target_modules=self.config.targets,
            use_dora=self.config.dora,
            init_lora_weights=self.config.init,
        )


def shift(**options):
    return Shift(ShiftConfig(**options))


def lora(**options):
    return Lora(LoraOptions(**options))


def bert(*, int8=False, seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.3,
    )
    model = BertForSequenceClassification(config).eval().to(dtype)
    if int8:
        quantize_linears(model, "per_channel", ["classifier"])
    return model


IDS = torch.randint(0, 40, (3, 7), generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 1, 1])


def logits(model):
    was_training = model.training
    model.eval()
    with torch.no_grad():
        out = model(input_ids=IDS).logits
    model.train(was_training)
    return out


def train(model, steps=3):
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    for _ in range(steps):
        model(input_ids=IDS, labels=LABELS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    return model


def wrapped(method, *, int8=False, steps=0, **options):
    torch.manual_seed(5)
    model = bridge.wrap(
        bert(int8=int8), method(**options), new_modules=["classifier"], task_type="SEQ_CLS"
    )
    return train(model, steps) if steps else model.eval()


def layers_of(model):
    return [m for m in model.modules() if isinstance(m, (FtrtLayer, FusedLoraLinear))]


METHODS = pytest.mark.parametrize("method", [shift, lora], ids=["ftrt", "lora"])
BASES = pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
