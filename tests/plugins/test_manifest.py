"""Discovery reads metadata only, and nothing in anybody's metadata can break it."""

import sys

import pytest

from ftrt.errors import PluginError
from ftrt.manifest import Manifest, Offer, discover
from ftrt.plugins import PluginManager


def mine(manifest, *distributions):
    return [offer for offer in manifest.offers if offer.distribution in distributions]


def test_discovery_reads_kind_name_module_distribution_and_version(plugin_folder):
    plugin_folder.add("zz-one", {"method.shiny": "zz_one.core", "head.tall": "zz_one.heads"})

    assert mine(discover(), "zz-one") == [
        Offer("head", "tall", "zz_one.heads", "zz-one", "1.0"),
        Offer("method", "shiny", "zz_one.core", "zz-one", "1.0"),
    ]


def test_discovery_imports_nothing(plugin_folder):
    plugin_folder.add("zz-one", {"method.shiny": "zz_one"}, {"zz_one": "raise RuntimeError"})

    discover()

    assert "zz_one" not in sys.modules


@pytest.mark.parametrize(
    ("point", "says"),
    [
        ("shiny = zz", "entry point 'shiny' must read KIND.NAME with KIND one of method, head"),
        ("methd.shiny = zz", "'methd.shiny' must read KIND.NAME .*; did you mean 'method'?"),
        ("method. = zz", "'method.' must read KIND.NAME with NAME of letters, .*; got ''"),
        ("method.a b = zz", "'method.a b' must read KIND.NAME with NAME .*; got 'a b'"),
        ("method.a.b = zz", "'method.a.b' must read KIND.NAME with NAME .*; got 'a.b'"),
        ("method.* = zz", "'method.\\*' must read KIND.NAME with NAME .*; got '\\*'"),
        ("method.a* = zz", "'method.a\\*' must read KIND.NAME with NAME .*; got 'a\\*'"),
        ('"method.a:*" = zz', "'\"method.a:\\*\"' must read KIND.NAME"),
        ("method.x = zz:Shiny", "'method.x' must name a module, package.module; got 'zz:Shiny'"),
        ("method.x = zz..core", "'method.x' must name a module, package.module; got 'zz..core'"),
        ("method.x = a b c", "'method.x' must name a module, package.module; got 'a b c'"),
        ("method.x = ", "'method.x' must name a module, package.module; got ''"),
    ],
)
def test_malformed_entry_points_are_listed_and_break_nothing(plugin_folder, point, says):
    plugin_folder.add("zz-bad", {}, entry_points=f"[ftrt]\n{point}\nmethod.shiny = zz_bad\n")

    manifest = discover()

    assert [offer.name for offer in mine(manifest, "zz-bad")] == ["shiny"]
    (text,) = [text for text in manifest.malformed if text.startswith("zz-bad 1.0: ")]
    assert __import__("re").search(says, text), text


@pytest.mark.parametrize(
    "content",
    [b"[ftrt]\nmethod.x\n", b"[ftrt]\nmethod.x = \xff\xfe\n", b"[other]\nno equals sign\n"],
)
def test_unreadable_entry_points_hide_no_other_plugin(plugin_folder, content):
    plugin_folder.add("zz-broken", {}, entry_points=content)
    plugin_folder.add("zz-one", {"method.shiny": "zz_one"})

    manifest = discover()

    assert [offer.name for offer in mine(manifest, "zz-one")] == ["shiny"]
    (text,) = [text for text in manifest.malformed if "zz-broken" in text]
    assert text.startswith("zz-broken 1.0: entry_points.txt must be readable; ")
    assert text.endswith("reinstall it: pip install --force-reinstall zz-broken")


@pytest.mark.parametrize("metadata", ["", "Metadata-Version: 2.1\n"])
def test_metadata_without_name_is_named_unknown(plugin_folder, metadata):
    plugin_folder.add("zz-nameless", {"method.zz_nameless": "zz_nameless"}, metadata=metadata)

    assert discover().find("method", "zz_nameless").distribution == "unknown"


def test_the_same_distribution_twice_is_one_offer(plugin_folder, tmp_path, monkeypatch):
    plugin_folder.add("zz-one", {"method.shiny": "zz_one"}, version="1.0")
    plugin_folder.add("ZZ_one", {"method.shiny": "zz_one"}, version="0.9")
    monkeypatch.setattr(sys, "path", [*sys.path, str(plugin_folder.path)])

    assert len([offer for offer in discover().offers if offer.name == "shiny"]) == 1


def test_the_same_distribution_twice_is_one_offer_beside_unreadable_metadata(plugin_folder):
    plugin_folder.add("zz-broken", {}, entry_points=b"[ftrt]\nx\n")
    plugin_folder.add("zz-one", {"method.shiny": "zz_one"}, version="1.0")
    plugin_folder.add("ZZ_one", {"method.shiny": "zz_one"}, version="0.9")

    assert len([offer for offer in discover().offers if offer.name == "shiny"]) == 1


def test_two_distributions_with_one_name_are_both_named():
    manifest = Manifest(
        (
            Offer("method", "x", "b.core", "dist-b", "2.1"),
            Offer("method", "x", "a", "dist-a", "1.0"),
        )
    )

    with pytest.raises(PluginError) as caught:
        manifest.find("method", "x")

    assert str(caught.value) == (
        "method 'x': one plugin may offer it; got dist-a 1.0 (a) and dist-b 2.1 (b.core);"
        " uninstall one, say: pip uninstall dist-b"
    )
    assert set(manifest.duplicates()) == {("method", "x")}


def test_a_duplicate_name_breaks_only_that_name(plugin_folder):
    plugin_folder.add("zz-one", {"method.shiny": "zz_one"}, {"zz_one": plugin_folder.METHOD})
    plugin_folder.add("zz-two", {"method.twice": "zz_two"})
    plugin_folder.add("zz-three", {"method.twice": "zz_three"})

    assert PluginManager().get("method", "shiny").name == "shiny"


def test_one_distribution_that_offers_a_name_twice_is_its_authors_fault():
    manifest = Manifest((Offer("loss", "x", "a", "d", "1"), Offer("loss", "x", "b", "d", "1")))

    with pytest.raises(
        PluginError, match=r"d 1 .a. and d 1 .b.; its entry points name it more than"
    ):
        manifest.find("loss", "x")


def test_unknown_name_suggests_the_nearest():
    manifest = Manifest((Offer("method", "lora", "m", "d", "1"),))

    with pytest.raises(PluginError) as caught:
        manifest.find("method", "lroa")

    assert str(caught.value) == (
        "method 'lroa': an installed plugin must offer it; none does; did you mean 'lora'?"
        " (`ftrt plugins list` shows what is installed)"
    )


def test_name_of_another_kind_says_so():
    manifest = Manifest((Offer("method", "lora", "m", "d", "1"),))

    with pytest.raises(PluginError, match=r"head 'lora': .*; a method has that name"):
        manifest.find("head", "lora")


def test_nothing_installed_says_none_is_known():
    with pytest.raises(PluginError, match=r"head 'x': .*none does; none is known"):
        Manifest(()).find("head", "x")


def test_a_malformed_entry_point_of_that_name_is_shown(plugin_folder):
    plugin_folder.add("zz-bad", {"method.zz_shiny": "zz:Shiny"})

    with pytest.raises(PluginError, match=r"an entry point is malformed: zz-bad 1.0: .*'zz:Shiny'"):
        discover().find("method", "zz_shiny")
