"""Every method of the installed PEFT is there, by PEFT's name and with PEFT's options."""

import dataclasses
from importlib.metadata import entry_points

import peft
import pytest
from ftrt_peft.catalog import FACTS, peft_configs
from ftrt_peft.methods import method_class, register_methods
from ftrt_peft.options import OURS, options_of
from ftrt_peft.record import Tested
from ftrt_peft.trial import OPTIONS
from pydantic import ValidationError

from ftrt.errors import ConfigError, PluginError
from ftrt.recipe import PluginSection
from ftrt.registry import Registry

CLASSES = {found.name: found for found in register_methods()}
NAMES = sorted(peft_configs())


@pytest.fixture(scope="module")
def registry():
    return Registry()


def test_every_method_of_peft_is_offered_and_nothing_else():
    expected = {f"peft:{kind.value.lower()}" for kind in peft.PeftType}

    assert set(CLASSES) == expected
    assert {f"peft:{name}" for name in FACTS} <= expected
    assert {f"peft:{name}" for name in OPTIONS} <= expected


def test_the_installed_plugin_offers_a_family(registry):
    (point,) = entry_points(group="ftrt", name="method.peft:*")
    assert point.value == "ftrt_peft.methods"
    assert registry.find("method", "peft:adalora").name == "peft:adalora"


def test_lora_stays_the_one_of_ftrt_lowrank(registry):
    assert registry.find("method", "lora").__module__ == "ftrt_lowrank.lora"
    assert registry.find("method", "peft:lora").__module__ == "ftrt_peft.methods"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("peft:adalroa", r"did you mean 'peft:adalora'\?"),
        ("adalora", r"or 'peft:adalora'\?"),
    ],
)
def test_a_near_name_is_found(registry, name, says):
    with pytest.raises(PluginError, match=says):
        registry.find("method", name)


@pytest.mark.parametrize("name", NAMES)
def test_the_contract_and_the_card_facts(registry, name):
    found = registry.find("method", f"peft:{name}")

    assert found.source.startswith("https://") and " " not in found.source
    assert len(found.__doc__) > 10 and found.__doc__.endswith(".")


@pytest.mark.parametrize("name", NAMES)
def test_options_are_peft_s_fields_with_their_defaults(name):
    config_class, options = peft_configs()[name], CLASSES[f"peft:{name}"].Config
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    hidden = OURS | FACTS[name].hidden if name in FACTS else OURS

    expected = {n for n in fields if n not in hidden}
    assert {"target_modules" if n == "targets" else n for n in options.model_fields} == expected
    for option, info in options.model_fields.items():
        field = fields["target_modules" if option == "targets" else option]
        if option != "targets" and not info.is_required() and info.default is not None:
            default = field.default
            same = info.default_factory is not None or info.default == getattr(
                default, "value", default
            )
            assert same, (option, info.default, default)
    options.model_json_schema()


@pytest.mark.parametrize("name", NAMES)
def test_no_option_is_one_that_ftrt_sets(name):
    options = CLASSES[f"peft:{name}"].Config
    assert not OURS & set(options.model_fields)


def refused(registry, **section):
    with pytest.raises(ConfigError) as caught:
        registry.method(PluginSection(**section))
    return str(caught.value)


@pytest.mark.parametrize(
    ("section", "says"),
    [
        (
            {"name": "peft:vera", "vera_dropuot": 0.1},
            "method 'peft:vera': unknown key 'vera_dropuot'; did you mean 'vera_dropout'?",
        ),
        (
            {"name": "peft:vera", "target_modules": ["q"]},
            "method 'peft:vera': unknown key 'target_modules'; did you mean 'targets'?",
        ),
        (
            {"name": "peft:vera", "r": "many"},
            "method 'peft:vera': r: must be an integer; got 'many'",
        ),
        (
            {"name": "peft:vera", "task_type": "CAUSAL_LM"},
            "method 'peft:vera': unknown key 'task_type'",
        ),
        (
            {"name": "peft:prompt_tuning"},
            "method 'peft:prompt_tuning': num_virtual_tokens: must be given",
        ),
        (
            {"name": "peft:lora", "eva_config": {"rh": 1}},
            "method 'peft:lora': unknown key 'eva_config.rh'; did you mean 'rho'?",
        ),
        (
            {"name": "peft:prompt_tuning", "num_virtual_tokens": 4, "prompt_tuning_init": "TXT"},
            "prompt_tuning_init: must be 'TEXT', 'SAMPLE_VOCAB' or 'RANDOM'; got 'TXT'",
        ),
        (
            {"name": "peft:boft", "boft_block_size": 4, "boft_block_num": 2},
            "You can only specify either boft_block_size (4) or boft_block_num (2)",
        ),
    ],
)
def test_wrong_options_are_refused_in_words(registry, section, says):
    assert says in refused(registry, **section)


def test_what_is_not_given_is_left_to_peft():
    config = CLASSES["peft:lora"].Config(
        r=4, init_lora_weights="pissa_niter_16", eva_config={"rho": 3.0}, use_rslora=True
    )
    built = config.peft(target_modules=["q"])

    assert built == peft.LoraConfig(
        r=4,
        init_lora_weights="pissa_niter_16",
        eva_config=peft.EvaConfig(rho=3.0),
        use_rslora=True,
        target_modules=["q"],
    )


@dataclasses.dataclass
class OfTheFuture(peft.PeftConfig):
    strength: float = dataclasses.field(default=0.5, metadata={"help": "How   much."})
    target_modules: list[str] | str | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.strength > 1:
            raise ValueError("strength must be at most 1")


def test_a_method_that_nobody_has_tried_is_offered_and_claims_nothing(monkeypatch):
    monkeypatch.setattr("ftrt_peft.methods.tested", lambda name: Tested())
    found = method_class("hra", OfTheFuture)

    assert found.Config().targets == "all-linear"
    assert found.Config.model_fields["strength"].description == "How much."
    assert not (found.supports_quantized_base or found.mergeable or found.starts_as_base)
    with pytest.raises(ValidationError, match="strength must be at most 1"):
        found.Config(strength=2)


def test_enums_are_closed_and_literal_patterns_are_patterns():
    options = options_of(peft.LoraConfig, targets=None)

    assert options(init_lora_weights="pissa_niter_4").init_lora_weights == "pissa_niter_4"
    for wrong in ("pissa_niter_", "pissa_niter_[number of iters]", "xpissa_niter_4", "pisa"):
        with pytest.raises(ValidationError):
            options(init_lora_weights=wrong)
