"""From sections to plugin objects: contracts are checked, options validated, recipes expanded."""

import sys
from types import ModuleType

import pytest
from pydantic import ConfigDict, Field, model_validator

from ftrt.api import Encoded, Head, LinearMethod, LossTerm, Method, PluginConfig, Transform
from ftrt.errors import ConfigError, PluginError, UnsupportedError
from ftrt.hookspecs import KINDS, hookimpl
from ftrt.manifest import Manifest, Offer
from ftrt.plugins import PluginManager
from ftrt.recipe import LossSection, PluginSection, parse
from ftrt.registry import Registry, contract_fault, merge


class Options(PluginConfig):
    rank: int = Field(8, ge=1)
    targets: list[str] = Field([])


class Lora(LinearMethod):
    name = "lora"
    source = "paper"
    Config = Options

    def adapter(self, linear):
        raise NotImplementedError


@pytest.fixture
def registry_of(monkeypatch):
    """A registry over one plugin module that registers the given classes of one kind."""

    def build(kind, *classes):
        module = ModuleType("zz_registry_plugin")
        module.ftrt_hookspec = 1
        module.hook = hookimpl(lambda: list(classes), specname=KINDS[kind])
        monkeypatch.setitem(sys.modules, module.__name__, module)
        offers = (Offer(kind, cls.name, module.__name__, "zz", "1") for cls in classes)
        return Registry(PluginManager(Manifest(tuple(offers))))

    return build


def test_a_section_becomes_an_object_with_its_options(registry_of):
    method = registry_of("method", Lora).method(PluginSection(name="lora", rank=3))

    assert (type(method), method.config) == (Lora, Options(rank=3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rnak": 4}, "method 'lora': unknown key 'rnak'; did you mean 'rank'?"),
        ({"zz": 4}, "method 'lora': unknown key 'zz'; known: rank, targets"),
        ({"rank": 0}, "method 'lora': rank: must be >= 1; got 0"),
        ({"rank": "many"}, "method 'lora': rank: must be an integer; got 'many'"),
        ({"targets": ["q", 3]}, "method 'lora': targets.1: must be a string; got 3"),
        (
            {"rank": -1, "targets": 1},
            "method 'lora': rank: must be >= 1; got -1\nmethod 'lora': targets: must be a"
            " list; got 1",
        ),
    ],
)
def test_a_wrong_option_names_the_plugin(registry_of, options, message):
    with pytest.raises(ConfigError) as caught:
        registry_of("method", Lora).method(PluginSection(name="lora", **options))

    assert str(caught.value) == message


def subclass(base, name="x", **attributes):
    return type("Made", (base,), {"name": name, **attributes})


class Score(Head):
    name = "score"
    Config = Options
    auto_class = "AutoModel"
    task_type = "SEQ_CLS"
    columns = {"text": "the text"}  # noqa: RUF012

    def encode(self, row, tokenizer, max_length, *, labelled=True):
        return Encoded({})

    def collate(self, features, tokenizer):
        return {}

    def predict(self, model, tokenizer, rows, *, max_length):
        return []


class Term(LossTerm):
    name = "term"
    source = "paper"
    Config = Options

    def __call__(self, student, signal, batch):
        return 0, 1


class Loose(PluginConfig):
    model_config = ConfigDict(extra="allow")


class Named(PluginConfig):
    name: str = "x"


class Weighted(PluginConfig):
    weight: float = 1
    how: str = Field("a", alias="schedule")


@pytest.mark.parametrize(
    ("kind", "found", "fault"),
    [
        ("method", Lora, None),
        ("head", Score, None),
        ("loss", Term, None),
        ("method", Term, "must derive from ftrt.api.Method"),
        ("head", int, "must derive from ftrt.api.Head"),
        (
            "method",
            subclass(Method, Config=Options, source="s"),
            "must derive from ftrt.api.LinearMethod, PeftMethod or ModelMethod",
        ),
        ("method", subclass(LinearMethod, Config=Options, source="s"), "must define adapter"),
        ("head", subclass(Head), "must define collate, encode, predict"),
        ("loss", subclass(LossTerm), "must define __call__"),
        (
            "method",
            subclass(Lora, Config=dict),
            "must have a class Config that derives from ftrt.api.PluginConfig",
        ),
        (
            "method",
            subclass(Lora, Config=Options()),
            "must have a class Config that derives from ftrt.api.PluginConfig",
        ),
        (
            "method",
            subclass(Lora, Config=Loose),
            'must have a Config with extra="forbid", as ftrt.api.PluginConfig has it;'
            " got extra='allow'",
        ),
        (
            "method",
            subclass(Lora, Config=Named),
            "must not have Config fields that the recipe's section uses itself; got name;"
            " rename them",
        ),
        (
            "loss",
            subclass(Term, Config=Weighted),
            "must not have Config fields that the recipe's section uses itself; got"
            " schedule, weight;"
            " rename them",
        ),
        ("method", subclass(Lora, Config=Weighted), None),
        ("method", subclass(Lora, source=""), "must set source to a string; got ''"),
        ("loss", subclass(Term, source=None), "must set source to a string; got none"),
        ("head", subclass(Score, columns=["text"]), "must set columns to a mapping; got ['text']"),
        ("head", subclass(Score, auto_class=None), "must set auto_class to a string; got none"),
        ("recipe", subclass(object, Config=Options), "must define expand(config) -> dict"),
    ],
)
def test_contract_fault(kind, found, fault):
    assert contract_fault(kind, found) == fault


def test_a_broken_contract_names_distribution_and_class(registry_of):
    with pytest.raises(PluginError) as caught:
        registry_of("loss", subclass(Term, source="")).loss(LossSection(name="x"))

    assert str(caught.value) == (
        "loss 'x' of zz 1 (zz_registry_plugin): Made must set source to a string; got ''"
    )


def raiser(error):
    def init(self, config):
        raise error

    return init


def test_a_constructor_that_raises_is_the_plugins_fault(registry_of):
    registry = registry_of("method", subclass(Lora, __init__=raiser(KeyError("k"))))

    with pytest.raises(PluginError) as caught:
        registry.method(PluginSection(name="x"))

    assert str(caught.value).startswith(
        f"method 'x' of zz 1 (zz_registry_plugin): Made(config) must not raise; it raised"
        " KeyError: 'k'"
        f" at {__file__}:"
    )


def test_a_constructor_may_refuse_with_an_ftrt_error(registry_of):
    registry = registry_of("method", subclass(Lora, __init__=raiser(UnsupportedError("no GPU"))))

    with pytest.raises(UnsupportedError, match=r"^no GPU$"):
        registry.method(PluginSection(name="x"))


def test_a_config_that_raises_is_the_plugins_fault(registry_of):
    class Broken(PluginConfig):
        @model_validator(mode="before")
        @classmethod
        def _look(cls, value):
            return value["gone"]

    with pytest.raises(PluginError, match=r"Config must not raise; it raised KeyError: 'gone' at "):
        registry_of("method", subclass(Lora, Config=Broken)).method(PluginSection(name="x"))


def test_a_value_error_of_a_config_is_the_users_fault(registry_of):
    class Odd(PluginConfig):
        rank: int = 1

        @model_validator(mode="after")
        def _odd(self):
            if self.rank % 2 == 0:
                raise ValueError("rank must be odd")
            return self

    with pytest.raises(ConfigError, match=r"^method 'x': rank must be odd$"):
        registry_of("method", subclass(Lora, Config=Odd)).method(PluginSection(name="x", rank=2))


def test_a_transform_is_built(registry_of):
    lower = subclass(Transform, Config=PluginConfig, __call__=lambda self, row: row)

    assert registry_of("transform", lower).transform(PluginSection(name="x"))({"a": 1}) == {"a": 1}


def expanded(registry_of, expand, **own):
    named = type("Named", (), {"name": "x", "Config": Options, "expand": staticmethod(expand)})
    return registry_of("recipe", named).expand(parse({"recipe": {"name": "x", "rank": 4}, **own}))


def test_a_recipe_without_a_name_is_returned_as_it_is():
    recipe = parse({"seed": 3})

    assert Registry(PluginManager(Manifest(()))).expand(recipe) is recipe


def test_a_named_recipe_expands_and_the_users_keys_win(registry_of):
    found = expanded(
        registry_of,
        lambda config: {
            "method": {"name": "lora", "rank": config.rank, "alpha": 1},
            "losses": [{"name": "a"}],
            "seed": 1,
        },
        method={"name": "lora", "alpha": 2},
        seed=5,
    )

    assert found == parse(
        {"method": {"name": "lora", "rank": 4, "alpha": 2}, "losses": [{"name": "a"}], "seed": 5}
    )


@pytest.mark.parametrize(
    ("expand", "says"),
    [
        (
            lambda config: [],
            "recipe 'x' of zz 1 (zz_registry_plugin): expand() must return a dict of"
            " sections; got list",
        ),
        (
            lambda config: {"recipe": {"name": "y"}},
            "recipe 'x' of zz 1 (zz_registry_plugin): expand() must not name a recipe"
            " again; got 'recipe'",
        ),
        (
            lambda config: config.gone,
            "recipe 'x' of zz 1 (zz_registry_plugin): expand() must not raise; it raised"
            " AttributeError",
        ),
    ],
)
def test_a_named_recipe_that_is_broken_is_the_plugins_fault(registry_of, expand, says):
    with pytest.raises(PluginError) as caught:
        expanded(registry_of, expand)

    assert str(caught.value).startswith(says)


def test_a_named_recipe_that_expands_to_nonsense_names_it(registry_of):
    with pytest.raises(
        ConfigError, match=r"^recipe 'x' of zz 1 .zz_registry_plugin.: unknown key 'modle'"
    ):
        expanded(registry_of, lambda config: {"modle": 1})


def test_an_option_of_a_named_recipe_is_validated(registry_of):
    named = type("Named", (), {"name": "x", "Config": Options, "expand": staticmethod(dict)})

    with pytest.raises(ConfigError, match=r"^recipe 'x': unknown key 'rnak'; did you mean 'rank'"):
        registry_of("recipe", named).expand(parse({"recipe": {"name": "x", "rnak": 1}}))


@pytest.mark.parametrize(
    ("lower", "upper", "result"),
    [
        ({"a": 1, "b": 2}, {"b": 3}, {"a": 1, "b": 3}),
        ({"s": {"a": 1, "b": 2}}, {"s": {"b": 3}}, {"s": {"a": 1, "b": 3}}),
        ({"s": {"a": {"x": 1, "y": 2}}}, {"s": {"a": {"x": 3}}}, {"s": {"a": {"x": 3, "y": 2}}}),
        ({"l": [1, 2]}, {"l": [3]}, {"l": [3]}),
        ({"s": {"a": 1}}, {"s": None}, {"s": None}),
        (
            {"m": {"name": "p", "a": 1}},
            {"m": {"name": "p", "b": 2}},
            {"m": {"name": "p", "a": 1, "b": 2}},
        ),
        ({"m": {"name": "p", "a": 1}}, {"m": {"name": "q", "b": 2}}, {"m": {"name": "q", "b": 2}}),
    ],
)
def test_merge_keeps_options_with_their_plugin(lower, upper, result):
    assert merge(lower, upper) == result
