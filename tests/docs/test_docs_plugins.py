"""docs/plugins.md: its examples run, train and pass the kit, and its lists are complete."""

import importlib
import inspect
import re
import sys
import tomllib

import doc_pages
import pytest
import torch
from ruamel.yaml import YAML

from ftrt import api, hookspecs, kernels, testing
from ftrt.cli import COMMANDS, run
from ftrt.errors import UnsupportedError
from ftrt.kernels.backend import use_backend
from ftrt.kernels.cubin import read_resources
from ftrt.kernels.cubins import compile_kernel
from ftrt.registry import Registry, merge

sys.path.insert(0, str(doc_pages.REPOSITORY / "tests" / "csrc" / "cuda"))
from emulated import EmulatedBackend

PAGE = doc_pages.read("docs/plugins.md")
KERNELS = "CUDA kernels: `Kernel`"
# the examples that run without being installed; a kernel's needs its source beside it
SECTIONS = sorted({block.section for block in PAGE.blocks_of("python")} - {KERNELS})
HOOK_NAMES = [name for _, name in PAGE.headings if name.startswith("`")]
CONTRACTS = {
    "Methods that adapt linear layers: `LinearMethod`": (
        api.Method,
        api.LinearMethod,
        api.LinearAdapter,
        api.Setting,
    ),
    "Methods that PEFT has: `PeftMethod`": (api.PeftMethod,),
    "Methods that train the model's own weights: `ModelMethod`": (api.ModelMethod,),
    "Task heads: `Head`": (api.Head, api.Encoded),
    "Loss terms: `LossTerm`": (api.LossTerm,),
    "Teacher signals: `SignalSource`": (api.SignalSource,),
    "Row transforms: `Transform`": (api.Transform,),
    "Named recipes": (),
}
# the examples that no `check_*` call beside them has tried
WITHOUT_CHECK = [
    section
    for section in CONTRACTS
    if not any("check_" in block.text for block in PAGE.blocks_of("python", section=section))
]


@pytest.mark.parametrize("section", SECTIONS)
def test_the_examples_run(section):
    namespace = {"__name__": "docs_example"}
    for block in PAGE.blocks_of("python", section=section):
        block.run(namespace)


def plugin_of(section):
    """(entry points, source) of the example plugin in a section."""
    (toml,) = PAGE.blocks_of("toml", section=section)
    offers = tomllib.loads(toml.text)["project"]["entry-points"]["ftrt"]
    source = PAGE.blocks_of("python", section=section)[0].text
    return offers, source


@pytest.mark.parametrize("section", CONTRACTS)
def test_the_example_trains_from_a_recipe(section, plugin_folder, recipe_tree, tmp_path):
    offers, source = plugin_of(section)
    (module,) = set(offers.values())
    plugin_folder.add("my-package", offers, {module: source})
    (fragment,) = PAGE.blocks_of("yaml", section=section)
    tree = merge(recipe_tree, YAML(typ="safe", pure=True).load(fragment.text))
    tree["training"] = {**tree["training"], "max_steps": 2, "eval_strategy": "no"}
    file = tmp_path / "recipe.yaml"
    with file.open("w", encoding="utf-8") as stream:
        YAML(typ="safe", pure=True).dump(tree, stream)

    assert run(["train", str(file)]) == 0
    assert run(["predict", tree["output"], "--text", "good plot"]) == 0


@pytest.mark.parametrize("section", WITHOUT_CHECK)
def test_the_example_passes_plugins_check(section, plugin_folder, capsys):
    offers, source = plugin_of(section)
    (module,) = set(offers.values())
    plugin_folder.add("my-package", offers, {module: source})

    assert run(["plugins", "check", module]) == 0, capsys.readouterr().out


@pytest.fixture
def kernel_package(plugin_folder):
    """Installs the example kernel, and imports its module."""
    offers, source = plugin_of(KERNELS)
    (module,) = set(offers.values())
    plugin_folder.add("my-package", offers, {module: source})
    (cuda,) = PAGE.blocks_of("cuda", section=KERNELS)
    folder = plugin_folder.path / module.partition(".")[0]
    (folder / f"{module.rpartition('.')[2]}.cu").write_text(cuda.text, encoding="utf-8")
    return importlib.import_module(module)


def test_the_example_kernel_agrees_with_its_reference_on_the_emulation(kernel_package):
    with use_backend(EmulatedBackend(seed=1)):
        testing.check_kernel(Registry().kernel("row_norm"), device="cpu")


def test_the_example_kernel_compiles(kernel_package):
    try:
        image, _ = compile_kernel(Registry().kernel("row_norm"), "80")
    except UnsupportedError as error:
        pytest.skip(str(error))

    assert read_resources(image, "row_norm").local_bytes == 0


def test_the_example_without_a_gpu_uses_torch(kernel_package):
    x = torch.tensor([[3.0, 4.0], [0.0, 2.0]])

    assert kernel_package.row_norm(x).tolist() == [5.0, 2.0]


def test_there_is_a_section_for_every_kind_with_an_example():
    sections = (*CONTRACTS, KERNELS)
    offered = {name.partition(".")[0] for section in sections for name in plugin_of(section)[0]}

    assert offered == set(hookspecs.KINDS)


def test_every_hook_has_a_heading_with_its_signature():
    expected = []
    for name in hookspecs.HOOKS:
        signature = str(inspect.signature(getattr(hookspecs, name)))
        expected.append(f"`{name}{signature}`".replace("'", ""))

    assert HOOK_NAMES == expected


def test_the_order_of_the_hooks_is_that_of_the_code():
    (block,) = PAGE.blocks_of("text", section="When each hook fires")
    shown = inspect.getdoc(hookspecs).split("\n\n")[1]

    assert block.text.strip() == inspect.cleandoc(shown)


def test_the_table_of_kinds_is_that_of_the_code():
    table = PAGE.table("How a plugin is found")
    kinds = [cell.strip("`") for cell in table.column("KIND")]
    hooks = [cell.strip("`") for cell in table.column("hook that delivers it")]

    assert dict(zip(kinds, hooks, strict=True)) == hookspecs.KINDS


@pytest.mark.parametrize(
    ("section", "contract"),
    [
        (section, contract)
        for section, contracts in {**CONTRACTS, KERNELS: (kernels.Kernel, kernels.Launch)}.items()
        for contract in contracts
    ],
)
def test_every_member_of_a_contract_is_explained(section, contract):
    named = {
        re.match(r"\w+", name)[0]
        for table in PAGE.tables
        if table.section == section
        for row in table.rows
        for name in doc_pages.code_names(row[0])
    }
    members = {
        name
        for name in {**vars(contract), **contract.__annotations__}
        if not name.startswith("_") or name == "__call__"
    }

    assert members - named - {"config"} == set()


@pytest.mark.parametrize("name", testing.__all__)
def test_the_conformance_kit_is_shown_with_its_signatures(name):
    signature = inspect.signature(getattr(testing, name))
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in signature.parameters.values()
    ]
    bare = str(signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty))

    assert f"`{name}{bare}`".replace("'", '"') in PAGE.section_text("The conformance kit")


def test_the_commands_exist(capsys):
    for cell in PAGE.table("Commands").column("command"):
        # an option's value would be taken for --help
        words = cell.strip("`").partition(" --")[0].split()
        words = [word for word in words if word.islower()]
        assert words[1] in COMMANDS
        assert run([*words[1:], "--help"]) == 0


def test_the_public_modules_are_those_that_the_layering_test_allows():
    text = (doc_pages.REPOSITORY / "tests" / "test_layering.py").read_text(encoding="utf-8")
    allowed = set(re.findall(r'"(ftrt[\w.]*)"', re.search(r"PUBLIC = {(.*?)}", text, re.S)[1]))
    named = re.search(r"A plugin may import (.*?)\. Everything", PAGE.text, re.S)[1]

    assert set(doc_pages.code_names(named)) == allowed
