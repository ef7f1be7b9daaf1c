"""`attach`, `detach` and embedding in somebody else's trainer."""

import pytest
import torch

import ftrt
from ftrt.errors import ConfigError, UsageError

LORA_INT8 = {"quantization": {"dtype": "int8"}, "method": {"name": "lora", "rank": 4}}


@pytest.fixture
def model(tiny_bert_dir):
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(tiny_bert_dir, num_labels=2).eval()


@pytest.fixture
def batch():
    ids = torch.randint(5, 28, (4, 9), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def logits(model, batch):
    with torch.no_grad():
        return model(**batch).logits


def train_a_little(model, batch):
    labels = torch.tensor([0, 1, 0, 1])
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.5)
    model.train()
    for _ in range(3):
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


@pytest.mark.parametrize(
    "recipe",
    [
        LORA_INT8,
        {"method": {"name": "lora"}},
        {"method": {"name": "lora_xs", "rank": 2}},
        {"method": {"name": "full"}},
    ],
    ids=["lora-int8", "lora", "lora_xs", "full"],
)
def test_detach_restores_bit_identical_outputs(model, batch, recipe):
    before, state = logits(model, batch), {k: v.clone() for k, v in model.state_dict().items()}
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    config = model.config.to_dict()
    run = ftrt.attach(model, recipe)
    train_a_little(run.model, batch)
    assert not torch.equal(logits(run.model, batch), before)
    restored = run.detach()
    assert restored is model
    assert torch.equal(logits(model, batch), before)
    after = model.state_dict()
    assert list(after) == list(state) and all(torch.equal(after[k], state[k]) for k in state)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert model.config.to_dict() == config
    assert not hasattr(model, "peft_config")


@pytest.mark.parametrize("recipe", [LORA_INT8, {"method": {"name": "lora"}}], ids=["int8", "float"])
def test_detach_undoes_a_cast_of_what_was_attached(model, batch, recipe):
    before = logits(model, batch)
    run = ftrt.attach(model, recipe)
    run.model.to(torch.float64)
    run.detach()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(logits(model, batch), before)


def test_with_block_detaches_also_after_an_error(model, batch):
    before = logits(model, batch)
    with pytest.raises(RuntimeError, match="mine"), ftrt.attach(model, LORA_INT8) as run:
        train_a_little(run.model, batch)
        raise RuntimeError("mine")
    assert torch.equal(logits(model, batch), before)


def test_attach_that_fails_leaves_the_model_as_it_was(model, batch):
    before = logits(model, batch)
    with pytest.raises(ConfigError, match="qeury"):
        ftrt.attach(model, {**LORA_INT8, "method": {"name": "lora", "targets": ["qeury"]}})
    assert torch.equal(logits(model, batch), before)
    assert all(p.requires_grad for p in model.parameters())


def test_detach_twice_or_without_memory_is_refused(model):
    run = ftrt.attach(model, LORA_INT8)
    run.detach()
    with pytest.raises(UsageError, match="restorable and still attached"):
        run.detach()
    unrestorable = ftrt.attach(model, LORA_INT8, restorable=False)
    with pytest.raises(UsageError, match="restorable=False"):
        unrestorable.detach()


def test_attach_without_a_method_says_what_to_add(model):
    with pytest.raises(ConfigError, match="must name a method"):
        ftrt.attach(model, {"quantization": {"dtype": "int8"}})


def test_only_adapter_and_head_train_on_an_int8_base(model):
    run = ftrt.attach(model, {**LORA_INT8, "head": {"name": "sequence_classification"}})
    trained = {name for name, p in run.model.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name or "classifier" in name for name in trained)
    assert any("classifier" in name for name in trained)
    assert len(run.quantized) == 13


def test_plain_trainer_trains_an_attached_model(model, tmp_path):
    from transformers import Trainer, TrainingArguments

    rows = [
        {"input_ids": [2, 5 + i % 6, 3], "attention_mask": [1, 1, 1], "labels": i % 2}
        for i in range(32)
    ]
    run = ftrt.attach(model, LORA_INT8)
    arguments = TrainingArguments(
        tmp_path, max_steps=4, report_to="none", use_cpu=True, save_steps=4, disable_tqdm=True
    )
    trainer = Trainer(run.model, arguments, train_dataset=rows, callbacks=run.callbacks)
    trainer.train()
    saved = {file.name for file in (tmp_path / "checkpoint-4").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json"} <= saved
    assert "model.safetensors" not in saved


def test_attach_changes_no_class_of_torch_transformers_or_peft(model):
    import peft
    import transformers

    forwards = [
        torch.nn.Linear.forward,
        transformers.PreTrainedModel.forward,
        peft.PeftModel.forward,
    ]
    ftrt.attach(model, LORA_INT8)
    assert forwards == [
        torch.nn.Linear.forward, transformers.PreTrainedModel.forward, peft.PeftModel.forward,
    ]  # fmt: skip


def test_a_method_that_trains_the_base_is_refused_on_int8_whatever_it_claims():
    from ftrt.errors import UnsupportedError
    from ftrt.recipe import parse
    from ftrt.registry import Registry
    from ftrt.runtime.attachment import build_parts

    class Bold(ftrt.ModelMethod):
        name, source, Config = "bold", "made up", ftrt.PluginConfig
        supports_quantized_base = True

        def prepare(self, model, new_modules):
            model.requires_grad_(True)

    registry = Registry()
    registry.method = lambda section: Bold(section)
    recipe = parse({"method": {"name": "bold"}, "quantization": {"dtype": "int8"}})
    with pytest.raises(UnsupportedError, match="method 'bold': trains the base's own weights"):
        build_parts(recipe, registry)
