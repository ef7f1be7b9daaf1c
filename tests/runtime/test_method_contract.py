"""What a run asks of its method beside the adapter: settings, steps, checkpoints, report."""

import json
from pathlib import Path

import pytest
import torch
from ftrt_lowrank.lora import LoraMethod

import ftrt
from ftrt.api import Setting
from ftrt.errors import CheckpointError, UnsupportedError
from ftrt.integrations.transformers_callbacks import METHOD_STATE, MethodCallback
from ftrt.testing import check_method, try_method

LOG: list = []


class Watched(LoraMethod):
    """LoRA that notes what is asked of it."""

    name = "watched"

    def __init__(self, config):
        super().__init__(config)
        self.seen = torch.zeros(1)

    def check_setting(self, setting):
        LOG.append(setting)

    def on_step(self, model, step, total_steps):
        grads = [p.grad for p in model.parameters() if p.requires_grad]
        self.seen += 1
        LOG.append((step, total_steps, all(g is not None for g in grads), self.seen.item()))

    def finish(self, model):
        LOG.append("finish")

    def training_state(self, model):
        return {"seen": self.seen}

    def load_training_state(self, model, state):
        self.seen = state["seen"].clone()

    def report(self, model):
        return {"steps_seen": int(self.seen)}


class NoCheckpointing(LoraMethod):
    name = "no_checkpointing"
    supports_gradient_checkpointing = False


class FloatOnly(LoraMethod):
    name = "float_only"
    supports_quantized_base = False


@pytest.fixture
def watched(plugin_folder, recipe_tree):
    source = (
        "import ftrt\nftrt_hookspec = 1\nCLASSES = []\n@ftrt.hookimpl\ndef register_methods():\n"
    )
    offers = {f"method.{c.name}": "zz_watched" for c in (Watched, NoCheckpointing, FloatOnly)}
    plugin_folder.add("zz-watched", offers, {"zz_watched": source + "    return CLASSES\n"})
    import zz_watched

    zz_watched.CLASSES[:] = [Watched, NoCheckpointing, FloatOnly]
    LOG.clear()
    recipe_tree["method"] = {"name": "watched", "rank": 2}
    recipe_tree["training"] = {
        "max_steps": 4,
        "eval_strategy": "no",
        "save_strategy": "steps",
        "save_steps": 2,
        "per_device_train_batch_size": 4,
    }
    return recipe_tree


def test_a_run_asks_in_order(watched):
    result = ftrt.train(watched)

    first, second, *steps, last = LOG
    assert (first.quantization, first.task_type, first.model) == ("int8", "SEQ_CLS", None)
    assert (first.training["max_steps"], first.losses) == (4, ())
    assert second.model["model_type"] == "bert"
    assert steps == [(step, 4, True, step) for step in (1, 2, 3, 4)]
    assert last == "finish"
    info = json.loads((result.run_dir / "ftrt.json").read_text())
    assert info["method"] == {"steps_seen": 4}


def interrupt(tree, monkeypatch):
    """Train to the first checkpoint and stop as a signal would."""
    whole = MethodCallback.on_save

    def stop(self, args, state, control, **kwargs):
        whole(self, args, state, control, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MethodCallback, "on_save", stop)
        with pytest.raises(KeyboardInterrupt):
            ftrt.train(tree)
    LOG.clear()


def test_a_resumed_method_gets_its_state_back(watched, monkeypatch):
    interrupt(watched, monkeypatch)

    ftrt.train(watched, resume=True)

    assert LOG[2:] == [(3, 4, True, 3), (4, 4, True, 4), "finish"]


def test_a_checkpoint_without_the_methods_state_is_refused(watched, monkeypatch):
    interrupt(watched, monkeypatch)
    (file,) = Path(watched["output"]).rglob(METHOD_STATE)
    file.write_bytes(b"cut short")

    with pytest.raises(CheckpointError, match="must hold the state of method 'watched'"):
        ftrt.train(watched, resume=True)


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        (
            "no_checkpointing",
            {"training": {"gradient_checkpointing": True}},
            "method 'no_checkpointing': must run without gradient checkpointing; got"
            " training.gradient_checkpointing: true. Remove it, or choose a method that supports"
            " it, such as lora",
        ),
        (
            "float_only",
            {},
            "method 'float_only': needs a float base; got quantization: int8. Remove"
            " `quantization`, or choose a method that supports it, such as lora",
        ),
    ],
)
def test_what_a_method_does_not_support_is_refused_before_anything_is_read(
    watched, name, changes, says
):
    tree = {**watched, **changes, "model": {"path": "nowhere"}, "method": {"name": name}}

    with pytest.raises(UnsupportedError) as caught:
        ftrt.train(tree)

    assert str(caught.value) == says


def test_the_kit_sees_a_refusal_and_a_false_claim():
    check_method(NoCheckpointing, {"rank": 2})
    assert try_method(NoCheckpointing, {"rank": 2})["checkpoints_gradients"] is None

    class Worse(LoraMethod):
        def on_step(self, model, step, total_steps):
            if any(p.requires_grad and p.grad is None for p in model.parameters()):
                raise RuntimeError("no gradients")

    assert try_method(Worse, {"rank": 2})["lowers_the_loss"] is None


def test_a_setting_has_defaults():
    assert Setting() == Setting(None, None, {}, False, (), None)
