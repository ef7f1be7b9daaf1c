"""Soft prompts: with heads, generation, int8 bases and resuming, or refused by name."""

import pytest
import torch
from ftrt_peft.catalog import peft_configs
from ftrt_peft.methods import method_class
from ftrt_peft.trial import tiny_model

import ftrt
from ftrt.api import Setting
from ftrt.errors import UnsupportedError
from ftrt.testing import check_method

PROMPTS = {
    "prompt_tuning": {"num_virtual_tokens": 3},
    "prefix_tuning": {"num_virtual_tokens": 3},
    "p_tuning": {"num_virtual_tokens": 3, "encoder_hidden_size": 8},
}


def method(name):
    return method_class(name, peft_configs()[name])


@pytest.mark.parametrize("name", PROMPTS)
def test_the_contract_holds(name):
    check_method(method(name), PROMPTS[name], model=tiny_model("decoder"), task_type="CAUSAL_LM")


def test_a_projected_prefix_is_refused():
    found = method("prefix_tuning")
    config = found.Config(num_virtual_tokens=3, prefix_projection=True)
    with pytest.raises(UnsupportedError, match="cannot be used with prefix_projection, because"):
        found(config).check_setting(Setting())


@pytest.mark.asset
@pytest.mark.parametrize("name", PROMPTS)
def test_a_run_generates_as_before_it_was_saved(name, recipe_of):
    section = {"name": f"peft:{name}", **PROMPTS[name]}
    tree = recipe_of("decoder", section, quantization={"dtype": "int8"})
    result = ftrt.train(tree)
    loaded = ftrt.load_run(result.run_dir)
    again = ftrt.load_run(result.run_dir)
    ids = torch.tensor([[5, 6, 7]])
    written = [
        run.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False
        )
        for run in (loaded, again)
    ]
    assert torch.equal(*written)
    answers = loaded.head.predict(
        loaded.model, loaded.tokenizer, [{"text": "a film"}, {"text": "the"}], max_length=16
    )
    assert len(answers) == 2


@pytest.mark.asset
def test_a_prompt_starts_from_a_text_with_the_tokenizer_of_the_base(recipe_of):
    section = {
        "name": "peft:prompt_tuning",
        "num_virtual_tokens": 2,
        "prompt_tuning_init": "TEXT",
        "prompt_tuning_init_text": "the film",
    }
    tree = recipe_of("decoder", section)
    tree["training"]["learning_rate"] = 0.0
    run = ftrt.load_run(ftrt.train(tree).run_dir)
    ids = run.tokenizer("the film")["input_ids"][:2]
    expected = run.model.get_base_model().get_input_embeddings().weight[ids]
    found = run.model.prompt_encoder["default"].embedding.weight
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("name", "setting", "says"),
    [
        (
            "prefix_tuning",
            Setting(training={"gradient_checkpointing": True}),
            "method 'peft:prefix_tuning': does not work with gradient checkpointing: its keys and"
            " values are put in the cache, which recomputation does without. Do without it, or use"
            " lora",
        ),
        (
            "multitask_prompt_tuning",
            Setting(),
            "method 'peft:multitask_prompt_tuning': cannot be used here, because it reads task_ids"
            " with each batch, which no head gives; use peft:prompt_tuning",
        ),
        (
            "prompt_tuning",
            Setting(task_type="CAUSAL_LM", losses=("task", "logit_kl")),
            "method 'peft:prompt_tuning': its 3 virtual tokens have logits and no labels, and the"
            " loss term 'logit_kl' needs both; use peft:prefix_tuning or lora",
        ),
        (
            "adaption_prompt",
            Setting(quantization="int8"),
            "method 'peft:adaption_prompt': does not work with an int8 base: it reads a dtype from"
            " the parameters of projections, and int8 layers have none. Do without it, or use lora",
        ),
        (
            "adaption_prompt",
            Setting(task_type="SEQ_CLS", model={"architectures": ["BertModel"]}),
            "method 'peft:adaption_prompt': does not work on encoder models:",
        ),
        ("xlora", Setting(), "method 'peft:xlora': cannot be used here, because what PEFT saves"),
    ],
)
def test_what_cannot_work_is_refused_before_weights_are_read(name, setting, says):
    needed = {
        **PROMPTS,
        "multitask_prompt_tuning": {"num_virtual_tokens": 3},
        "adaption_prompt": {"adapter_len": 2, "adapter_layers": 1},
        "xlora": {"adapters": {"0": "nowhere"}},
    }
    found = method(name)
    with pytest.raises(UnsupportedError) as caught:
        found(found.Config(**needed[name])).check_setting(setting)
    assert str(caught.value).startswith(says)


def test_prefixes_go_with_loss_terms():
    found = method("prefix_tuning")
    setting = Setting(task_type="CAUSAL_LM", losses=("logit_kl",))
    found(found.Config(num_virtual_tokens=3)).check_setting(setting)
