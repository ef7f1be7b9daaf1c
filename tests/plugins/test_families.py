"""A family offers all names of a prefix; they are known once its module is imported."""

import json
import sys

import pytest

from ftrt.cli import run
from ftrt.errors import PluginError
from ftrt.manifest import Manifest, Offer, discover
from ftrt.plugins import PluginManager
from ftrt.registry import Registry

# registers "zz:one", "zz:two" and "stray", which is no member
FAMILY = """
    from ftrt import LinearAdapter, LinearMethod, PluginConfig, hookimpl

    ftrt_hookspec = 1

    class Options(PluginConfig):
        rank: int = 8

    def make(title):
        def adapter(self, linear):
            return LinearAdapter()

        body = {"name": title, "source": "S", "Config": Options, "adapter": adapter}
        return type(title.replace(":", "_"), (LinearMethod,), {**body, "__doc__": f"Is {title}."})

    @hookimpl
    def register_methods():
        return [make(title) for title in ("zz:two", "zz:one", "stray")]
"""


@pytest.fixture
def family(plugin_folder):
    """An installed family `zz:*`."""
    points = "[ftrt]\nmethod.zz:* = zz_family\n"
    plugin_folder.add("zz-family", {}, {"zz_family": FAMILY}, entry_points=points)
    return plugin_folder


def test_discovery_of_a_family_imports_nothing(family):
    (offer,) = [offer for offer in discover().offers if offer.distribution == "zz-family"]

    assert (offer.name, offer.is_family, offer.family) == ("zz:*", True, "zz")
    assert "zz_family" not in sys.modules


def test_a_member_is_found_by_its_whole_name(family):
    assert PluginManager().get("method", "zz:one").name == "zz:one"
    assert Registry().find("method", "zz:two").Config().rank == 8


def test_members_are_those_that_start_with_the_prefix(family):
    manager = PluginManager()
    offer = manager.manifest.find("method", "zz:*")

    assert manager.members(offer, "method") == ["zz:one", "zz:two"]


def test_a_name_without_the_prefix_is_nobodys(family):
    with pytest.raises(PluginError, match="method 'stray': an installed plugin must offer it"):
        PluginManager().get("method", "stray")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "zz:oen",
            "method 'zz:oen': zz-family 1.0 (zz_family) must offer it to be used; it does not; did"
            " you mean 'zz:one'? (`ftrt plugins info 'zz:*'` lists all 2)",
        ),
        (
            "zz:qqqqqqqq",
            "method 'zz:qqqqqqqq': zz-family 1.0 (zz_family) must offer it to be used; it does not;"
            " known: zz:one, zz:two (`ftrt plugins info 'zz:*'` lists all 2)",
        ),
    ],
)
def test_an_unknown_member_suggests_the_nearest(family, name, says):
    with pytest.raises(PluginError) as caught:
        PluginManager().get("method", name)

    assert str(caught.value) == says


def test_a_single_name_that_a_family_may_have_says_so_without_an_import():
    manifest = Manifest(
        (Offer("method", "lora", "m", "d", "1"), Offer("method", "p:*", "f", "e", "1"))
    )

    with pytest.raises(PluginError) as caught:
        manifest.find("method", "lroa")

    assert str(caught.value) == (
        "method 'lroa': an installed plugin must offer it; none does; did you mean 'lora', or"
        " 'p:lroa'? (`ftrt plugins list` shows what is installed)"
    )


def test_an_unknown_family_suggests_the_nearest():
    manifest = Manifest((Offer("method", "peft:*", "f", "e", "1"),))

    with pytest.raises(PluginError, match=r"method 'pfet:lora': .*; did you mean 'peft'\?"):
        manifest.find("method", "pfet:lora")


def test_a_single_name_and_a_family_cannot_clash():
    offers = (Offer("method", "peft", "m", "d", "1"), Offer("method", "peft:*", "f", "e", "1"))
    manifest = Manifest(offers)

    assert manifest.duplicates() == {}
    assert manifest.find("method", "peft") is offers[0]
    assert manifest.find("method", "peft:lora") is offers[1]


def test_two_families_of_one_prefix_are_both_named():
    manifest = Manifest(
        (Offer("method", "p:*", "a", "dist-a", "1"), Offer("method", "p:*", "b", "dist-b", "2"))
    )

    with pytest.raises(PluginError, match=r"got dist-a 1 \(a\) and dist-b 2 \(b\)"):
        manifest.find("method", "p:x")
    assert set(manifest.duplicates()) == {("method", "p:*")}


def test_the_command_line_shows_family_and_members(family, capsys):
    assert run(["plugins", "list", "--json"]) == 0
    names = {row["name"] for row in json.loads(capsys.readouterr().out)["plugins"]}
    assert "zz:*" in names and "zz:one" not in names

    assert run(["plugins", "info", "zz:*", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["members"] == [
        {"name": "zz:one", "summary": "Is zz:one."},
        {"name": "zz:two", "summary": "Is zz:two."},
    ]

    assert run(["plugins", "info", "zz:one"]) == 0
    assert "method zz:one: Is zz:one." in capsys.readouterr().out


def test_the_schema_has_the_members_and_names_a_broken_family(family):
    from ftrt.cli.schema import recipe_schema

    family.add(
        "zz-bad",
        {},
        {"zz_bad": "raise RuntimeError('no')"},
        entry_points="[ftrt]\nmethod.zzbad:* = zz_bad\n",
    )

    tree = recipe_schema()

    titles = {option["title"] for option in tree["$defs"]["method"]["oneOf"]}
    assert {"zz:one", "zz:two"} <= titles and "zz:*" not in titles
    assert "zz-bad 1.0 (zz_bad): its import must succeed" in tree["$comment"]
