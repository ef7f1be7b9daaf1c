"""transformers.Trainer over wrapped models: adapter files only, resuming, best model at the end."""

import pytest
import torch
from peft_subjects import bert, logits, lora, shift
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

from ftrt.integrations import peft as bridge

METHODS = pytest.mark.parametrize("method", [shift, lora], ids=["ftrt", "lora"])
BASES = pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])

pytestmark = pytest.mark.usefixtures("installed_shift")


class Rows(torch.utils.data.Dataset):
    """Twelve random rows whose label is the parity of their first token."""

    def __init__(self):
        self.ids = torch.randint(0, 40, (12, 6), generator=torch.Generator().manual_seed(3))

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return {"input_ids": self.ids[index], "labels": self.ids[index, 0] % 2}


def wrapped(method, int8):
    torch.manual_seed(5)
    return bridge.wrap(bert(int8=int8), method(), new_modules=["classifier"], task_type="SEQ_CLS")


def trainer(model, folder, **fields):
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=6,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        save_steps=3,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=1,
        **fields,
    )
    return Trainer(model=model, args=arguments, train_dataset=Rows(), eval_dataset=Rows())


@METHODS
@BASES
def test_checkpoints_hold_adapter_files_only_and_training_resumes_equal(method, int8, tmp_path):
    straight = wrapped(method, int8)
    trainer(straight, tmp_path / "straight").train()
    folder = tmp_path / "straight" / "checkpoint-3"
    names = {file.name for file in folder.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= names
    assert not any(name.startswith(("model", "pytorch_model")) for name in names)
    saved = load_file(folder / "adapter_model.safetensors")
    assert all("ftrt_adapters" in k or "lora_" in k or ".classifier." in k for k in saved)

    resumed = wrapped(method, int8)
    trainer(resumed, tmp_path / "resumed").train(resume_from_checkpoint=str(folder))
    assert torch.equal(logits(resumed), logits(straight))
    assert torch.equal(logits(bridge.load(bert(int8=int8), folder)), logits_at_three(method, int8))


def logits_at_three(method, int8):
    """What a run of three steps of the same schedule of six ends with."""
    import tempfile

    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 3

    model = wrapped(method, int8)
    with tempfile.TemporaryDirectory() as folder:
        run = trainer(model, folder)
        run.add_callback(Stop())
        run.train()
    return logits(model)


@METHODS
def test_the_best_checkpoint_is_loaded_at_the_end(method, tmp_path):
    model = wrapped(method, int8=True)
    run = trainer(
        model,
        tmp_path,
        eval_strategy="steps",
        eval_steps=3,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
    )
    run.train()
    best = run.state.best_model_checkpoint
    assert best is not None
    assert torch.equal(logits(model), logits(bridge.load(bert(int8=True), best)))


@METHODS
def test_training_lowers_the_evaluation_loss(method, tmp_path):
    run = trainer(wrapped(method, int8=True), tmp_path)
    before = run.evaluate()["eval_loss"]
    run.train()
    assert run.evaluate()["eval_loss"] < before


@METHODS
def test_gradient_checkpointing_gives_the_same_run(method, tmp_path):
    results = []
    for enabled in (False, True):
        model = wrapped(method, int8=True)
        extra = {"gradient_checkpointing": True} if enabled else {}
        trainer(model, tmp_path / str(enabled), **extra).train()
        results.append(logits(model))
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=1e-5)
