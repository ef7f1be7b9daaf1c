"""README and docs as a whole: what they show runs, what they link to and list is there."""

import re
import tomllib

import doc_pages
import pytest
from doc_pages import REPOSITORY, code_names
from ruamel.yaml import YAML

import ftrt
from ftrt import nn, testing
from ftrt.cli import COMMANDS, run
from ftrt.errors import FtrtError
from ftrt.plugins import discover

README = doc_pages.read("README.md")
PAGES = [
    doc_pages.read(path.relative_to(REPOSITORY).as_posix())
    for path in (*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md"))
]
OWN_METHOD = "A method of your own, in one file"


def test_the_readme_runs_from_top_to_bottom(run_page, desk):
    run_page(README)

    assert (desk / "merged" / "config.json").is_file()


def test_the_method_of_the_readme_passes_the_kit():
    namespace = {"__name__": "docs_example"}
    README.blocks_of("python", section=OWN_METHOD)[0].run(namespace)

    testing.check_method(namespace["GatedLora"])


def test_the_method_of_the_readme_trains_from_a_recipe(plugin_folder, recipe_tree, tmp_path):
    (toml,) = README.blocks_of("toml", section=OWN_METHOD)
    offers = tomllib.loads(toml.text)["project"]["entry-points"]["ftrt"]
    (name, module), *_ = offers.items()
    source = README.blocks_of("python", section=OWN_METHOD)[0].text
    plugin_folder.add("my-package", offers, {module: source})
    tree = {**recipe_tree, "method": {"name": name.partition(".")[2]}}
    tree["training"] = {**tree["training"], "max_steps": 2}

    folder = ftrt.train(tree).run_dir

    assert run(["merge", str(folder), str(tmp_path / "merged")]) == 0
    assert len(source.splitlines()) <= 60


def test_the_table_of_what_is_supported_is_what_is_installed():
    table = README.table("What is supported")
    listed = {
        (kind, name, distribution)
        for kind, names, distribution, _ in table.rows
        for name in code_names(names)
    }
    own = {path.parent.name for path in REPOSITORY.glob("plugins/*/pyproject.toml")}
    offers = {(o.kind, o.name, o.distribution) for o in discover().offers if o.distribution in own}
    promised = {
        (*key.split(".", 1), path.parent.name)
        for path in REPOSITORY.glob("plugins/*/pyproject.toml")
        for key in tomllib.loads(path.read_text())["project"]["entry-points"]["ftrt"]
    }

    assert listed == promised
    assert offers <= promised


def test_the_exit_codes_are_those_of_the_errors():
    listed = {
        int(code)
        for code in re.findall(
            r"(\d+) [a-z]", re.search(r"Exit codes: (.*?)\.\n", README.text, re.S)[1]
        )
    }
    codes = {kind.exit_code for kind in [FtrtError, *FtrtError.__subclasses__()]}

    assert listed == codes | {0}


def test_make_has_the_targets_that_are_named():
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    named = {
        t
        for page in PAGES
        for t in re.findall(r"^make (\w+)|`make (\w+)`", page.text, re.M)
        for t in t
        if t
    }

    assert {"demo", "test"} <= named
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in named)


def test_every_public_name_is_documented():
    text = "\n".join(page.text for page in PAGES)
    names = [f"ftrt.{name}" for name in ftrt.__all__]
    names += [f"ftrt.nn.{name}" for name in nn.__all__]
    hidden = [
        name
        for name in names
        if not re.search(rf"\b{re.escape(name)}\b|`{name.rpartition('.')[2]}\b", text)
    ]

    assert hidden == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page):
    folder = (REPOSITORY / page.name).parent
    broken = []
    for link in page.links:
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = folder / path if path else REPOSITORY / page.name
        if not target.exists():
            broken.append(link)
        elif anchor and anchor not in anchors(target):
            broken.append(link)
    assert broken == []


def anchors(file):
    """What headings of a page are called in links."""
    page = doc_pages.read(file.resolve().relative_to(REPOSITORY).as_posix())
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for _, title in page.headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_text_exist(page):
    named = re.findall(r"`ftrt ([a-z]+)\b", page.text)
    named += [
        words[0] for b in page.blocks_of("console") for words in doc_pages.ftrt_commands(b.text)
    ]

    assert set(named) <= {*COMMANDS, "train"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_of_text_are_short_enough_to_read(page):
    text = "\n".join(line for line in page.text.splitlines() if not line.startswith("|"))

    assert [line for line in text.splitlines() if len(line) > 120] == []


def test_yaml_in_the_readme_says_what_the_ten_lines_say():
    (block,) = README.blocks_of("yaml", section="Ten lines")
    (python,) = README.blocks_of("python", section="Ten lines")
    tree = python.text[python.text.index("train({") + 6 : python.text.rindex("})") + 1]

    assert YAML(typ="safe", pure=True).load(block.text) == eval(tree)


def test_the_chinese_readme_has_the_same_parts():
    chinese = doc_pages.read("README.zh-CN.md")

    assert [level for level, _ in chinese.headings] == [level for level, _ in README.headings]
    assert [(b.language, b.text) for b in chinese.blocks] == [
        (b.language, b.text) for b in README.blocks
    ]
    assert [len(t.rows) for t in chinese.tables] == [len(t.rows) for t in README.tables]
    assert [code_names(" ".join(r)) for t in chinese.tables for r in t.rows] == [
        code_names(" ".join(r)) for t in README.tables for r in t.rows
    ]
    ours, theirs = (
        {link for link in page.links if not link.startswith("README")} for page in (README, chinese)
    )
    assert ours == theirs
