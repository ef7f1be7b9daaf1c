"""Who may import whom, walked over the syntax tree, imports inside functions included."""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "ftrt"

# A module, or a package as a whole, imports only what stands before it.
ORDER = (
    "errors",
    "config",
    "kernels",
    "ops",
    "quantization",
    "nn",
    "setting",
    "api",
    "hookspecs",
    "manifest",
    "plugin_faults",
    "plugin_kernels",
    "plugins",
    "sections",
    "validation",
    "recipe",
    "contracts",
    "registry",
    "losses",
    "memory",
    "checkpoint",
    "data",
    "integrations",
    "runtime",
    "testing",
    "cli",
    "__main__",
)

# library -> the modules under ftrt/ that may import it, by the start of their path
BRIDGES = {"peft": "integrations/peft", "transformers": "integrations/transformers"}

PUBLIC = {
    "ftrt",
    "ftrt.api",
    "ftrt.nn",
    "ftrt.kernels",
    "ftrt.testing",
    "ftrt.errors",
    "ftrt.hookspecs",
}

MODULES = sorted(
    path.relative_to(PACKAGE).as_posix()
    for path in PACKAGE.rglob("*.py")
    if "templates" not in path.parts
)
PLUGIN_FILES = sorted(
    path.relative_to(REPOSITORY).as_posix() for path in REPOSITORY.glob("plugins/*/src/**/*.py")
)


def imports(path, package, *, type_checking=True):
    """(line, dotted name) of everything a file imports, `from a import b` as a.b."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = set()
    if not type_checking:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
                skipped.update(id(inner) for part in node.body for inner in ast.walk(part))
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            source = ".".join([*above, node.module or ""]) if node.level else node.module
            yield from ((node.lineno, f"{source.strip('.')}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            name = node.args[0]
            if isinstance(name, ast.Constant):
                yield node.lineno, str(name.value)


def layer(module):
    """The layer of a path under ftrt/, or of a dotted name under ftrt; None for ftrt itself."""
    return module.split("/")[0].split(".")[0]


def test_every_module_has_a_layer():
    assert {layer(module) for module in MODULES} - set(ORDER) - {"__init__"} == set()


@pytest.mark.parametrize("module", [m for m in MODULES if m != "__init__.py"])
def test_a_module_imports_only_layers_before_its_own(module):
    own = layer(module)
    path = PACKAGE / module
    wrong = []
    for line, name in imports(path, ".".join(["ftrt", *Path(module).parent.parts])):
        parts = name.split(".")
        if parts[0] != "ftrt" or len(parts) < 2 or parts[1] not in ORDER:
            continue
        if parts[1] != own and ORDER.index(parts[1]) >= ORDER.index(own):
            wrong.append(f"{path}:{line}: {own} imports {name}, which stands above it")
    assert wrong == []


@pytest.mark.parametrize("module", MODULES)
def test_only_its_bridge_imports_a_library(module):
    path = PACKAGE / module
    wrong = [
        f"{path}:{line}: only ftrt/{bridge}*.py may import {library}"
        for line, name in imports(path, "ftrt", type_checking=False)
        for library, bridge in BRIDGES.items()
        if name.split(".")[0] == library and not module.startswith(bridge)
    ]
    assert wrong == []


@pytest.mark.parametrize("path", PLUGIN_FILES)
def test_a_plugin_imports_public_names_and_no_other_plugin(path):
    file = REPOSITORY / path
    own = file.relative_to(REPOSITORY).parts[3]
    others = {Path(other).parts[3] for other in PLUGIN_FILES} - {own}
    wrong = []
    for line, name in imports(file, own):
        source = name.rpartition(".")[0] or name
        if name.split(".")[0] == "ftrt" and not {name, source} & PUBLIC:
            wrong.append(f"{file}:{line}: {name} is not a public name of ftrt")
        if name.split(".")[0] in others:
            wrong.append(f"{file}:{line}: {name} belongs to another plugin")
    assert wrong == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import peft", ["peft"]),
        ("def f():\n    from peft.tuners import lora", ["peft.tuners.lora"]),
        ("from ..nn import x", ["ftrt.nn.x"]),
        ("from . import x", ["ftrt.ops.x"]),
        ("import importlib\nimportlib.import_module('peft')", ["importlib", "peft"]),
        ("if TYPE_CHECKING:\n    import peft\nelse:\n    import torch", ["torch"]),
    ],
)
def test_the_walk_sees_every_kind_of_import(tmp_path, source, found):
    file = tmp_path / "m.py"
    file.write_text(source)

    assert sorted(n for _, n in imports(file, "ftrt.ops", type_checking=False)) == sorted(found)
