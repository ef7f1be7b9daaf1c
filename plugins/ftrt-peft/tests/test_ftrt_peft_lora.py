"""`peft:lora`: every option of PEFT's LoraConfig, fused where the algebra allows."""

import peft
import pytest
import torch
from ftrt_peft.methods import method_class
from ftrt_peft.trial import tiny_model

import ftrt
from ftrt.api import Setting
from ftrt.errors import UnsupportedError
from ftrt.testing import try_method

PeftLora = method_class("lora", peft.LoraConfig)
CLAIMS = ("starts_as_the_base", "lowers_the_loss", "reloads_bit_equal", "merges")


@pytest.mark.parametrize(
    "options",
    [
        {"use_rslora": True},
        {"use_dora": True},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
        {"init_lora_weights": "orthogonal"},
    ],
    ids=str,
)
def test_variants_and_initialisations_train_reload_and_run_fused(options):
    options = {"r": 4, "lora_alpha": 4, **options}
    found = try_method(
        PeftLora, options, model=tiny_model("decoder"), task_type="CAUSAL_LM", only=CLAIMS
    )
    assert found == dict.fromkeys(CLAIMS), found
    recipe = {"method": {"name": "peft:lora", **options, "targets": ["q_proj"]}}
    run = ftrt.attach(tiny_model("decoder"), recipe)
    layers = [layer for layer in ftrt.layer_report(run.model) if layer.adapter]
    assert {layer.adapter for layer in layers} == {"fused"}


def test_rank_and_alpha_patterns_reach_the_layers():
    recipe = {
        "method": {
            "name": "peft:lora",
            "r": 2,
            "targets": ["q_proj", "v_proj"],
            "rank_pattern": {"v_proj": 5},
        }
    }
    run = ftrt.attach(tiny_model("decoder"), recipe)
    ranks = {
        name.split(".")[-4]: value.shape[0]
        for name, value in run.model.named_parameters()
        if "lora_A" in name
    }
    assert ranks == {"q_proj": 2, "v_proj": 5}
    assert all(torch.isfinite(p).all() for p in run.model.parameters())


@pytest.mark.parametrize(
    ("options", "setting", "says"),
    [
        ({"init_lora_weights": "eva"}, Setting(), "'eva' is computed from batches before training"),
        ({"init_lora_weights": "loftq"}, Setting(), "for bases that bitsand"),
        (
            {"init_lora_weights": "pissa"},
            Setting(quantization="int8"),
            "init_lora_weights 'pissa' changes the base's float weight; remove `quantization`, or",
        ),
    ],
)
def test_what_would_quietly_be_plain_lora_is_refused(options, setting, says):
    with pytest.raises(UnsupportedError, match="method 'peft:lora': init_lora_weights") as caught:
        # not validated: PEFT wants scipy for LoftQ before anything else
        PeftLora(PeftLora.Config.model_construct(**options)).check_setting(setting)
    assert says in str(caught.value)
