"""A plugin that cannot be used says which distribution, version and file, and what to do."""

import re
import sys
from textwrap import dedent

import pytest

from ftrt.errors import ConfigError, PluginError
from ftrt.plugins import PluginManager

HEAD = "from ftrt import hookimpl\nftrt_hookspec = 1\n"


def refused(plugin_folder, source, *, module="zz_one.core", kind="method", name="shiny"):
    """The message with which a plugin made of `source` is refused."""
    plugin_folder.add("zz-one", {f"{kind}.{name}": module}, {module: source} if source else None)
    with pytest.raises(PluginError) as caught:
        PluginManager().get(kind, name)
    return str(caught.value).replace(str(plugin_folder.path), "SITE")


def test_a_named_plugin_is_imported_and_its_class_returned(plugin_folder):
    plugin_folder.add(
        "zz-one", {"method.shiny": "zz_one.core"}, {"zz_one.core": plugin_folder.METHOD}
    )

    manager = PluginManager()
    found = manager.get("method", "shiny")

    assert (found.name, found.__module__) == ("shiny", "zz_one.core")
    assert manager.get("method", "shiny") is found
    assert manager.distributions == {"zz-one": "1.0"}


def test_a_plugin_nobody_named_is_never_imported(plugin_folder):
    plugin_folder.add("zz-one", {"method.shiny": "zz_one"}, {"zz_one": plugin_folder.METHOD})
    plugin_folder.add("zz-bomb", {"method.bomb": "zz_bomb"}, {"zz_bomb": "raise SystemExit(3)"})

    manager = PluginManager()
    manager.get("method", "shiny")

    assert "zz_bomb" not in sys.modules
    assert manager.distributions == {"zz-one": "1.0"}


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("raise RuntimeError('no\\nluck')", "RuntimeError: no luck at SITE/zz_one/core.py:1"),
        ("import sys\nsys.exit(3)", "SystemExit: 3 at SITE/zz_one/core.py:2"),
        ("def broken(:\n  pass", "SyntaxError: invalid syntax .*at SITE/zz_one/core.py:1"),
        ("x = {}\n\nx['a']", "KeyError: 'a' at SITE/zz_one/core.py:3"),
        (
            "class Panic(BaseException): pass\nraise Panic('rust')",
            "Panic: rust at SITE/zz_one/core.py:2",
        ),
        ("import json\njson.loads('{')", "JSONDecodeError: .* at SITE/zz_one/core.py:2"),
    ],
)
def test_an_import_that_raises_says_where(plugin_folder, source, says):
    message = refused(plugin_folder, source)

    assert re.fullmatch(
        r"plugin zz-one 1\.0 \(zz_one\.core\): its import must succeed; it raised "
        + says
        + "; mend it, or uninstall it: pip uninstall zz-one",
        message,
    ), message


def test_an_import_that_exits_ends_neither_process_nor_run(plugin_folder):
    plugin_folder.add("zz-one", {"method.shiny": "zz_one"}, {"zz_one": "raise SystemExit(0)"})

    result = plugin_folder.ftrt("plugins", "info", "shiny")

    assert result.returncode == 6
    assert (
        "plugin zz-one 1.0 (zz_one): its import must succeed; it raised SystemExit: 0"
        in result.stderr
    )
    assert "Traceback" not in result.stderr


def test_keyboard_interrupt_while_importing_goes_through(plugin_folder):
    plugin_folder.add("zz-one", {"method.shiny": "zz_one"}, {"zz_one": "raise KeyboardInterrupt"})

    with pytest.raises(KeyboardInterrupt):
        PluginManager().get("method", "shiny")


def test_an_ftrt_error_while_importing_is_not_the_plugins_fault(plugin_folder):
    source = "from ftrt.errors import ConfigError\nraise ConfigError('FTRT_CPU_ISA: wrong')"
    plugin_folder.add("zz-one", {"method.shiny": "zz_one"}, {"zz_one": source})

    with pytest.raises(ConfigError, match=r"^FTRT_CPU_ISA: wrong$"):
        PluginManager().get("method", "shiny")


def test_a_missing_dependency_is_named(plugin_folder):
    message = refused(plugin_folder, "import zz_nowhere.deep")

    assert message == (
        "plugin zz-one 1.0 (zz_one.core): what it imports must be installed; SITE/zz_one/core.py:1"
        " raised ModuleNotFoundError: No module named 'zz_nowhere'; install the package that has"
        " the module 'zz_nowhere'"
    )


def test_a_plugin_for_another_ftrt_says_so(plugin_folder):
    message = refused(plugin_folder, "import ftrt.of_the_future")

    assert "it must be written for this ftrt" in message
    assert message.endswith("pip install -U ftrt zz-one")


@pytest.mark.parametrize("module", ["zz_absent", "zz_absent.core"])
def test_metadata_that_names_no_module_says_reinstall(plugin_folder, module):
    message = refused(plugin_folder, None, module=module)

    assert message == (
        f"plugin zz-one 1.0 ({module}): its metadata names the module {module}, which must exist;"
        " got ModuleNotFoundError: No module named 'zz_absent'; reinstall it:"
        " pip install --force-reinstall zz-one"
    )


def test_a_missing_submodule_of_its_own_is_no_missing_dependency(plugin_folder):
    message = refused(plugin_folder, "import zz_one.absent")

    assert (
        "its import must succeed; it raised ModuleNotFoundError: No module named 'zz_one.absent'"
        in message
    )


def test_missing_hook_version(plugin_folder):
    assert refused(plugin_folder, "x = 1") == (
        "plugin zz-one 1.0 (zz_one.core): must state the hook version it is written for;"
        " SITE/zz_one/core.py has no ftrt_hookspec; add the line ftrt_hookspec = 1"
    )


@pytest.mark.parametrize(("version", "newer"), [(0, "zz-one"), (2, "ftrt")])
def test_other_hook_version_says_what_to_upgrade(plugin_folder, version, newer):
    assert refused(plugin_folder, f"ftrt_hookspec = {version}") == (
        "plugin zz-one 1.0 (zz_one.core): must be written for hook version 1, which this ftrt"
        f" speaks; SITE/zz_one/core.py has ftrt_hookspec = {version}; get a newer one:"
        f" pip install -U {newer}"
    )


@pytest.mark.parametrize("version", ["'1'", "True", "1.0", "(1,)"])
def test_hook_version_must_be_an_integer(plugin_folder, version):
    assert refused(plugin_folder, f"ftrt_hookspec = {version}") == (
        "plugin zz-one 1.0 (zz_one.core): ftrt_hookspec must be an integer; SITE/zz_one/core.py has"
        f" {version}; write ftrt_hookspec = 1"
    )


def test_missing_promise_lists_what_there_is(plugin_folder):
    message = refused(plugin_folder, plugin_folder.METHOD, name="glossy")

    assert message == (
        "method 'glossy': zz-one 1.0 (zz_one.core) promises it in its metadata, so"
        " register_methods() in SITE/zz_one/core.py must return it; it returns shiny; mend the"
        " plugin, or the entry points in its pyproject.toml"
    )


def test_missing_promise_of_a_kind_without_hook(plugin_folder):
    message = refused(plugin_folder, plugin_folder.METHOD, kind="head", name="tall")

    assert (
        "so register_heads() in SITE/zz_one/core.py must return it; it returns nothing" in message
    )


def test_forgotten_hookimpl(plugin_folder):
    source = dedent(plugin_folder.METHOD).replace("@hookimpl\n", "")

    message = refused(plugin_folder, source)

    assert re.fullmatch(
        r"plugin zz-one 1\.0 \(zz_one\.core\): SITE/zz_one/core\.py:\d+: register_methods\(\) must"
        r" be marked; put @ftrt\.hookimpl above it",
        message,
    ), message


def test_forgotten_hookimpl_of_another_hook(plugin_folder):
    source = dedent(plugin_folder.METHOD) + "\ndef after_attach(run):\n    pass\n"

    assert "after_attach() must be marked; put @ftrt.hookimpl above it" in refused(
        plugin_folder, source
    )


def test_misspelt_hook(plugin_folder):
    message = refused(plugin_folder, HEAD + "@hookimpl\ndef register_method():\n    return []\n")

    assert message == (
        "plugin zz-one 1.0 (zz_one.core): SITE/zz_one/core.py:3: a function marked"
        " @hookimpl must be"
        " named like a hook; got 'register_method'; did you mean 'register_methods'?"
    )


def test_misspelt_specname(plugin_folder):
    source = HEAD + "@hookimpl(specname='register_losss')\ndef losses():\n    return []\n"

    assert "got 'register_losss'; did you mean 'register_losses'?" in refused(plugin_folder, source)


def test_specname_is_honoured(plugin_folder):
    source = dedent(plugin_folder.METHOD).replace(
        "@hookimpl\ndef register_methods", "@hookimpl(specname='register_methods')\ndef offer"
    )
    plugin_folder.add("zz-one", {"method.shiny": "zz_one"}, {"zz_one": source})

    assert PluginManager().get("method", "shiny").name == "shiny"


def test_wrong_signature(plugin_folder):
    message = refused(
        plugin_folder, HEAD + "@hookimpl\ndef register_methods(model):\n    return []\n"
    )

    assert message.endswith(
        "SITE/zz_one/core.py:3: register_methods() must take no arguments; got also model"
    )


def test_wrong_argument_name(plugin_folder):
    message = refused(plugin_folder, HEAD + "@hookimpl\ndef after_attach(model):\n    pass\n")

    assert message.endswith("after_attach() must take run; got also model")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (
            "raise ValueError('no')",
            "must return a list of classes; it raised ValueError: no at SITE/zz_one/core.py:5",
        ),
        (
            "raise SystemExit(2)",
            "must return a list of classes; it raised SystemExit: 2 at SITE/zz_one/core.py:5",
        ),
        ("return None", "must return a list of classes; got None"),
        ("return 'shiny'", "must return a list of classes; got 'shiny'"),
        ("return int", "must return a list of classes; got the class int; put it in a list"),
        ("yield int", "must return a list of classes; got an instance of generator"),
        ("return [object()]", "must return classes; got an instance of object"),
        ("return [int]", "must return classes with a `name` string; int has none"),
        (
            "return [type('A', (), {'name': 3})]",
            "must return classes with a `name` string; A has 3",
        ),
        (
            "return [type('A', (), {'name': 'a'}), type('B', (), {'name': 'a'})]",
            "must return each name once; it returns 'a' twice",
        ),
    ],
)
def test_a_hook_must_return_classes(plugin_folder, body, says):
    message = refused(plugin_folder, HEAD + f"@hookimpl\ndef register_methods():\n    {body}\n")

    assert message == f"plugin zz-one 1.0 (zz_one.core): register_methods() {says}"


@pytest.mark.parametrize(
    "source", ["raise RuntimeError('no')", "ftrt_hookspec = 9", HEAD + "def after_attach(run): ..."]
)
def test_a_refused_plugin_is_refused_the_same_way_again(plugin_folder, source):
    plugin_folder.add("zz-one", {"method.shiny": "zz_one"}, {"zz_one": source})
    manager = PluginManager()

    texts = []
    for _ in range(2):
        with pytest.raises(PluginError) as caught:
            manager.get("method", "shiny")
        texts.append(str(caught.value))

    assert texts[0] == texts[1]
    assert "zz_one" not in sys.modules
    assert manager.distributions == {}


@pytest.mark.parametrize(
    "source",
    [
        "raise RuntimeError('no')",
        "ftrt_hookspec = 9",
        HEAD + "@hookimpl\ndef register_method(): ...",
    ],
)
def test_a_mended_plugin_works_in_a_new_manager(plugin_folder, source):
    plugin_folder.add("zz-one", {"method.shiny": "zz_one"}, {"zz_one": source})
    with pytest.raises(PluginError):
        PluginManager().get("method", "shiny")

    plugin_folder.module("zz_one", plugin_folder.METHOD)

    assert PluginManager().get("method", "shiny").name == "shiny"


def test_a_refused_plugin_leaves_the_others_of_its_manager_working(plugin_folder):
    plugin_folder.add("zz-one", {"method.shiny": "zz_one"}, {"zz_one": plugin_folder.METHOD})
    bad = HEAD + "@hookimpl\ndef register_method(): ...\n"
    plugin_folder.add("zz-bad", {"method.bad": "zz_bad"}, {"zz_bad": bad})
    manager = PluginManager()
    with pytest.raises(PluginError):
        manager.get("method", "bad")

    assert manager.get("method", "shiny").name == "shiny"
    manager.call("after_attach", run=None)


def test_managers_share_nothing(plugin_folder):
    plugin_folder.add("zz-one", {"method.shiny": "zz_one"}, {"zz_one": plugin_folder.METHOD})
    first, second = PluginManager(), PluginManager()
    first.get("method", "shiny")

    assert (first.distributions, second.distributions) == ({"zz-one": "1.0"}, {})


def after_attach(name, body):
    return (
        HEAD
        + f"@hookimpl\ndef register_losses():\n    return [type('L', (), {{'name': '{name}'}})]\n"
        + f"@hookimpl\ndef after_attach(run):\n    {body}\n"
    )


def test_hooks_fire_in_load_order_in_loaded_plugins_only(plugin_folder):
    for name in ("zz_b", "zz_a", "zz_c"):
        source = after_attach(name, f"run.append('{name}')")
        plugin_folder.add(name, {f"loss.{name}": name}, {name: source})
    manager = PluginManager()
    for name in ("zz_b", "zz_a"):
        manager.get("loss", name)

    calls = []
    manager.call("after_attach", run=calls)

    assert calls == ["zz_b", "zz_a"]


def test_a_hook_that_raises_names_its_plugin(plugin_folder):
    source = after_attach("zz_l", "run.nothing")
    plugin_folder.add("zz-one", {"loss.zz_l": "zz_one"}, {"zz_one": source})
    manager = PluginManager()
    manager.get("loss", "zz_l")

    with pytest.raises(PluginError) as caught:
        manager.call("after_attach", run=[])

    assert str(caught.value) == (
        "plugin zz-one 1.0 (zz_one): after_attach() must not raise; it raised AttributeError:"
        f" 'list' object has no attribute 'nothing' at {plugin_folder.path}/zz_one.py:8"
    )


def test_an_ftrt_error_of_a_hook_is_for_the_user(plugin_folder):
    source = after_attach(
        "zz_l", "from ftrt.errors import ConfigError; raise ConfigError('too big')"
    )
    plugin_folder.add("zz-one", {"loss.zz_l": "zz_one"}, {"zz_one": source})
    manager = PluginManager()
    manager.get("loss", "zz_l")

    with pytest.raises(ConfigError, match=r"^too big$"):
        manager.call("after_attach", run=[])
