"""An exception at work is blamed on the plugin whose line is the deepest, and on no other code."""

import os

import pytest

from ftrt import plugin_faults
from ftrt.plugins import PluginManager

SOURCE = """
    import json
    import ftrt

    ftrt_hookspec = 1

    def fail(text):
        return json.loads(text)

    def call(function):
        return function()

    class Shiny(ftrt.Transform):
        name = "shiny"
        class Config(ftrt.PluginConfig):
            pass
        def __call__(self, row):
            return row

    @ftrt.hookimpl
    def register_transforms():
        return [Shiny]
"""


@pytest.fixture
def plugin(plugin_folder):
    """A loaded plugin module, and the manager that loaded it."""
    plugin_folder.add("zz-one", {"transform.shiny": "zz_one.core"}, {"zz_one.core": SOURCE})
    manager = PluginManager()
    manager.get("transform", "shiny")
    return manager._modules["zz_one.core"], manager


def blamed(manager, function, *arguments):
    """What is said of the exception that a call raises."""
    with pytest.raises(Exception) as caught:
        function(*arguments)
    return plugin_faults.runtime_fault(caught.value, manager.manifest.offers)


def test_a_plugins_line_is_named_below_which_only_other_libraries_stand(plugin, plugin_folder):
    module, manager = plugin

    assert blamed(manager, module.fail, "{") == (
        "plugin zz-one 1.0 (zz_one.core): must not fail at work;"
        f" {plugin_folder.path}/zz_one/core.py:8 raised JSONDecodeError: Expecting property name"
        " enclosed in double quotes: line 1 column 2 (char 1); `ftrt plugins check zz_one.core`"
        " tries it; --debug shows the traceback, for a report to its author"
    )


def test_what_ftrt_raises_inside_a_plugins_call_is_ftrts(plugin):
    module, manager = plugin
    file = os.path.join(os.path.dirname(plugin_faults.__file__), "ops", "made_up.py")
    namespace = {}
    exec(compile("def broken():\n    return 1 / 0\n", file, "exec"), namespace)

    assert blamed(manager, module.call, namespace["broken"]) is None


def test_a_plugin_that_took_no_part_is_not_blamed(plugin):
    assert blamed(plugin[1], int, "x") is None
