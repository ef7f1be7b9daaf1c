"""AdaLoRA's schedule is driven by the run, and ends where PEFT's ends when driven by hand."""

import json
import shutil

import peft
import pytest
import torch
from ftrt_peft.methods import method_class
from ftrt_peft.trial import tiny_model
from safetensors.torch import load_file

import ftrt
from ftrt.api import Setting
from ftrt.errors import ConfigError

AdaLora = method_class("adalora", peft.AdaLoraConfig)
TARGETS = ["q_proj", "v_proj", "up_proj"]
STEPS = 12


def batch():
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 64, (4, 9), generator=generator)


def by_hand(options, steps):
    """PEFT's own loop: backward, step, update_and_allocate, zero_grad."""
    torch.manual_seed(5)
    config = peft.AdaLoraConfig(
        **options, total_step=steps, target_modules=TARGETS, task_type="CAUSAL_LM"
    )
    model = peft.get_peft_model(tiny_model("decoder"), config)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    model.train()
    for step in range(1, steps + 1):
        model(input_ids=batch(), labels=batch()).loss.backward()
        optimizer.step()
        model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    return model


def by_ftrt(options, steps):
    torch.manual_seed(5)
    recipe = {
        "method": {"name": "peft:adalora", "targets": TARGETS, **options},
        "head": {"name": "causal_lm"},
        "chunked_loss": False,
    }
    run = ftrt.attach(tiny_model("decoder"), recipe)
    trained = [p for p in run.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    run.model.train()
    for step in range(1, steps + 1):
        run.model(input_ids=batch(), labels=batch()).loss.backward()
        optimizer.step()
        run.method.on_step(run.model, step, steps)
        optimizer.zero_grad()
    run.method.finish(run.model)
    return run


@pytest.mark.parametrize(
    "options",
    [
        {"init_r": 6, "target_r": 3},
        {"init_r": 6, "target_r": 2, "tinit": 2, "tfinal": 4, "deltaT": 2},
    ],
)
def test_ranks_end_as_peft_s_driven_by_hand(options):
    expected, run = by_hand(options, STEPS), by_ftrt(options, STEPS)

    pattern = {
        name.removesuffix(".default"): kept
        for name, kept in expected.peft_config["default"].rank_pattern.items()
    }
    assert run.model.peft_config["default"].rank_pattern == pattern
    assert len({sum(kept) for kept in pattern.values()}) > 1, "the ranks must differ to tell"
    theirs, ours = expected.state_dict(), run.model.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())

    report = run.method.report(run.model)
    layers = len(pattern)
    assert report["rank_budget"] == {
        "initial": options["init_r"] * layers,
        "target": options["target_r"] * layers,
        "final": options["target_r"] * layers,
    }
    assert sum(report["ranks"].values()) == options["target_r"] * layers


def recipe(recipe_of, steps, **options):
    section = {"name": "peft:adalora", "init_r": 4, "target_r": 2, **options}
    tree = recipe_of("encoder", section, quantization={"dtype": "int8"})
    tree["training"] |= {"max_steps": steps, "save_strategy": "steps", "save_steps": 4}
    return tree


@pytest.mark.asset
def test_a_run_reports_its_budget_and_saves_only_the_rows_it_kept(recipe_of):
    result = ftrt.train(recipe(recipe_of, 8, tfinal=2))

    info = json.loads((result.run_dir / "ftrt.json").read_text())["method"]
    budget = info["rank_budget"]
    assert budget["initial"] == 2 * budget["target"] and budget["final"] == budget["target"]
    config = json.loads((result.run_dir / "adapter_config.json").read_text())
    assert {name: sum(kept) for name, kept in config["rank_pattern"].items()} == {
        f"{name}.lora_E": rank for name, rank in info["ranks"].items()
    }
    run = ftrt.load_run(result.run_dir)
    rows = [{"text": "a good film"}]
    assert run.head.predict(run.model, run.tokenizer, rows, max_length=16)


@pytest.mark.asset
@pytest.mark.parametrize("tfinal", [0, 3])
def test_a_broken_run_goes_on_as_if_nothing_had_happened(recipe_of, tmp_path, tfinal):
    tree = recipe(recipe_of, 6, tfinal=tfinal)
    whole = ftrt.train({**tree, "output": str(tmp_path / "whole")}).run_dir
    broken = tmp_path / "broken"
    ftrt.train({**tree, "output": str(broken)})
    for file in [*broken.glob("*.safetensors"), broken / "ftrt.json"]:
        file.unlink()
    shutil.rmtree(broken / "checkpoints" / "checkpoint-6")
    ftrt.train({**tree, "output": str(broken)}, resume=True)

    expected = load_file(whole / "adapter_model.safetensors")
    found = load_file(broken / "adapter_model.safetensors")
    assert {n: v.shape for n, v in found.items()} == {n: v.shape for n, v in expected.items()}
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_a_schedule_without_room_is_refused_with_the_recipe():
    method = AdaLora(AdaLora.Config(tinit=5, tfinal=5))
    with pytest.raises(ConfigError) as caught:
        method.check_setting(Setting(training={"max_steps": 10}))
    assert str(caught.value) == (
        "method 'peft:adalora': tinit + tfinal must leave steps to take ranks away in; got tinit 5,"
        " tfinal 5 of 10 steps"
    )
    method.check_setting(Setting(training={"max_steps": 11}))
