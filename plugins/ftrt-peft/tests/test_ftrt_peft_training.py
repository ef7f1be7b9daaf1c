"""Each method trains through the command line on real reviews, and its run is read back."""

import contextlib
import json

import pytest
import torch
from ftrt_peft import record
from ftrt_peft.catalog import peft_configs
from ftrt_peft.trial import OPTIONS
from ruamel.yaml import YAML
from safetensors.torch import load_file

import ftrt
from ftrt.cli import run

# what a two-step run on a model of 32 features takes; AdaLoRA's schedule must fit into it
CHANGES = {"adalora": {"init_r": 4, "target_r": 2}}
TRAINED = [name for name in sorted(peft_configs()) if record.tested(name).works]


def train(tree, folder):
    file = folder / "recipe.yaml"
    with file.open("w", encoding="utf-8") as stream:
        YAML(typ="safe", pure=True).dump(tree, stream)
    return run(["train", str(file), "--json"])


@pytest.mark.asset
@pytest.mark.parametrize("name", TRAINED)
def test_it_trains_on_real_reviews_and_is_read_back(name, recipe_of, tmp_path, capsys):
    if name == "adamss":
        pytest.importorskip("sklearn")
    found = record.tested(name)
    kind = "encoder" if "encoder" in found.works else "decoder"
    options = CHANGES.get(name, OPTIONS.get(name, {}))
    quantization = {"dtype": "int8"} if found.has("int8") else None
    tree = recipe_of(kind, {"name": f"peft:{name}", **options}, quantization=quantization)

    assert train(tree, tmp_path) == 0, capsys.readouterr().err
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert answer["steps"] == 2 and answer["trainable_parameters"] > 0
    tensors = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert all(torch.isfinite(value).all() for value in tensors.values())

    again = ftrt.load_run(tmp_path / "run")
    ids = torch.tensor([[1, 2, 3, 5, 6]])
    # PEFT cannot disable a prompt on a classifier; a prompt is none of the base's business
    is_prompt = again.model.peft_config["default"].is_prompt_learning
    bare = again.model.get_base_model() if is_prompt else again.model
    off = contextlib.nullcontext() if is_prompt else again.model.disable_adapter()
    with torch.no_grad():
        logits = again.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        with off:
            base = bare(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    assert torch.isfinite(logits).all()
    assert logits.shape != base.shape or not torch.equal(logits, base)


def test_methods_that_nothing_is_known_of_are_few():
    assert len(TRAINED) >= 40
