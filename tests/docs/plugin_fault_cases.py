"""Broken plugins, with what a user sees when a recipe names them.

`FTRT_WRITE_DOCS=1 python -m pytest tests/docs/test_docs_plugin_faults.py` writes the table in
docs/plugins.md from what really happens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from textwrap import dedent
from typing import Any

METHOD = """
    import ftrt, torch
    ftrt_hookspec = 1

    class Adapter(ftrt.LinearAdapter):
        def __init__(self, linear):
            super().__init__()
            self.shift = torch.nn.Parameter(torch.zeros(linear.out_features))
        def forward(self, base, x):
            return base(x) + self.shift

    class Shiny(ftrt.LinearMethod):
        name = "shiny"
        source = "Shine 2020"
        class Config(ftrt.PluginConfig):
            strength: float = 1.0
        def adapter(self, linear):
            return Adapter(linear)

    @ftrt.hookimpl
    def register_methods():
        return [Shiny]
"""

OTHER = """
    import ftrt
    ftrt_hookspec = 1

    class Other(ftrt.{contract}):
        name = "shiny"
        class Config(ftrt.PluginConfig):
            pass
        def __call__(self, row):
            {body}

    @ftrt.hookimpl
    def register_{hook}():
        return [Other]
"""

NAMED = """
    import ftrt
    ftrt_hookspec = 1

    class Named:
        name = "shiny"
        class Config(ftrt.PluginConfig):
            pass
        @staticmethod
        def expand(config):
            {body}

    @ftrt.hookimpl
    def register_recipes():
        return [Named]
"""


@dataclass(frozen=True)
class Fault:
    """One broken plugin.

    Attributes:
        title: what is wrong with it.
        source: its module, or None where there is none.
        exit_code: what the command ends with.
        offers: its entry points.
        recipe: what the recipe says about it.
        more: a second distribution, name and entry points.
    """

    title: str
    source: str | None
    exit_code: int = 6
    offers: tuple[tuple[str, str], ...] = (("method.shiny", "ftrt_shiny"),)
    recipe: tuple[tuple[str, Any], ...] = (("method", {"name": "shiny"}),)
    more: tuple[str, tuple[tuple[str, str], ...]] | None = None


def method(*changes: tuple[str, str]) -> str:
    """The good method with text replaced; each replacement must apply."""
    text = dedent(METHOD)
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    return text


def hook(returned: str) -> str:
    """The good method whose hook returns something else."""
    return method(("return [Shiny]", returned))


def transform(body: str) -> str:
    """A transform with another body."""
    return dedent(OTHER).format(contract="Transform", hook="transforms", body=body)


def named(body: str) -> str:
    """A named recipe with another body of `expand`."""
    return dedent(NAMED).format(body=body)


def fault(title: str, source: str | None, exit_code: int = 6, **rest: Any) -> Fault:
    """A `Fault`, its mappings given as dicts."""
    tuples = {key: tuple(rest[key].items()) for key in ("offers", "recipe") if key in rest}
    return Fault(title, source, exit_code, **{**rest, **tuples})


GOOD = method()
TRANSFORM = {
    "offers": {"transform.shiny": "ftrt_shiny"},
    "recipe": {"data.transforms": [{"name": "shiny"}]},
}
NAMED_RECIPE = {"offers": {"recipe.shiny": "ftrt_shiny"}, "recipe": {"recipe": {"name": "shiny"}}}

FAULTS = (
    # ---- the metadata
    fault("a name that nobody offers", GOOD, recipe={"method": {"name": "shinny"}}),
    fault("a name of another kind", GOOD, recipe={"head": {"name": "shiny"}}),
    fault(
        "two distributions offer one name",
        GOOD,
        more=("ftrt-glow", (("method.shiny", "ftrt_glow"),)),
    ),
    fault("an unknown kind in an entry point", GOOD, offers={"methods.shiny": "ftrt_shiny"}),
    fault("an entry point that names no module", GOOD, offers={"method.shiny": "ftrt-shiny"}),
    fault("a module that is not there", None),
    fault(
        "a name in the metadata that the module does not return",
        GOOD,
        offers={"method.glossy": "ftrt_shiny"},
        recipe={"method": {"name": "glossy"}},
    ),
    # ---- the import
    fault("an import that raises", "x = {}\nx['a']\n"),
    fault("an import that exits", "import sys\nsys.exit(0)\n"),
    fault("a syntax error", "def broken(:\n    pass\n"),
    fault("a dependency that is not installed", "import nowhere\n"),
    fault("a name that this ftrt does not have", "from ftrt import Future\n"),
    fault("a module that this ftrt does not have", "import ftrt.future\n"),
    # ---- the hooks
    fault("no `ftrt_hookspec`", method(("ftrt_hookspec = 1", ""))),
    fault("written for older hooks", method(("ftrt_hookspec = 1", "ftrt_hookspec = 0"))),
    fault("written for newer hooks", method(("ftrt_hookspec = 1", "ftrt_hookspec = 2"))),
    fault("`ftrt_hookspec` is no integer", method(("ftrt_hookspec = 1", "ftrt_hookspec = '1'"))),
    fault("a hook without `@ftrt.hookimpl`", method(("@ftrt.hookimpl", ""))),
    fault("a misspelt hook", method(("def register_methods", "def register_method"))),
    fault(
        "a hook with an argument too many",
        method(("register_methods()", "register_methods(model)")),
    ),
    fault("a hook that raises", hook("return Shiny.nothing")),
    fault("a hook that returns no list", hook("return Shiny")),
    fault("a hook that returns something else than classes", hook("return ['shiny']")),
    fault("a class without a name", method(('name = "shiny"', ""))),
    fault("one name twice in a hook", hook("return [Shiny, Shiny]")),
    fault(
        "`after_attach` that raises",
        GOOD + "\n@ftrt.hookimpl\ndef after_attach(run):\n    run.nothing\n",
    ),
    # ---- the contracts
    fault("a class that derives from no contract", method(("ftrt.LinearMethod", "object"))),
    fault(
        "a method that derives from `Method` itself", method(("ftrt.LinearMethod", "ftrt.Method"))
    ),
    fault("a required function is missing", method(("def adapter", "def adaptor"))),
    fault("a `Config` that is no `PluginConfig`", method(("ftrt.PluginConfig", "object"))),
    fault(
        "a `Config` that lets unknown keys pass",
        method(
            ("strength: float = 1.0", "strength: float = 1.0; model_config = {'extra': 'allow'}")
        ),
    ),
    fault(
        "a `Config` field with a name of ftrt's",
        method(("strength: float", "name: str"), ("1.0", "'x'")),
    ),
    fault("a method without a source", method(('source = "Shine 2020"', ""))),
    fault(
        "a constructor that raises",
        method(
            ("def adapter", "def __init__(self, config): self.x = config.nothing\n    def adapter")
        ),
    ),
    fault(
        "a class that cannot be called as its contract says",
        transform("return row").replace("(self, row)", "(self, row, more)"),
        4,
        **TRANSFORM,
    ),
    # ---- the options
    fault(
        "an option that the plugin does not have",
        GOOD,
        3,
        recipe={"method": {"name": "shiny", "strenght": 2}},
    ),
    fault(
        "an option of the wrong type",
        GOOD,
        3,
        recipe={"method": {"name": "shiny", "strength": "high"}},
    ),
    # ---- at work
    fault("`adapter` that returns no adapter", method(("return Adapter(linear)", "return linear"))),
    fault(
        "an adapter that keeps its base",
        method(("self.shift =", "self.base = linear; self.shift =")),
    ),
    fault("an adapter without `forward`", method(("def forward", "def forwards"))),
    fault("`adapter` that raises", method(("return Adapter(linear)", "return linear.nothing"))),
    fault(
        "`forward` that raises",
        method(("return base(x) + self.shift", "return base(x) + self.nothing")),
    ),
    fault(
        "`on_step` that raises",
        method(
            (
                "def adapter",
                "def on_step(self, model, step, total): raise ValueError(step)\n    def adapter",
            )
        ),
    ),
    fault("a transform that raises", transform("return row['nothing']"), 4, **TRANSFORM),
    fault("a transform that returns no row", transform("return list(row)"), 4, **TRANSFORM),
    fault("a named recipe that raises", named("return config.nothing"), **NAMED_RECIPE),
    fault("a named recipe that returns no sections", named("return ['lora']"), **NAMED_RECIPE),
    fault("a named recipe with an unknown key", named("return {'methods': {}}"), 3, **NAMED_RECIPE),
    fault(
        "a named recipe that names another",
        named("return {'recipe': {'name': 'x'}}"),
        **NAMED_RECIPE,
    ),
    fault("`ftrt plugins new` with a name that is taken", GOOD),
)


def arguments(one: Fault, train: Callable[[], list[str]]) -> list[str]:
    """The command line that shows the fault."""
    if one.title.startswith("`ftrt plugins new`"):
        return ["plugins", "new", "shiny"]
    return train()
