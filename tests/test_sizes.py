"""Files and functions stay readable; to go over a limit, split (nobody raises it)."""

import ast
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
PYTHON_FILE_LINES = 400
PYTHON_FUNCTION_LINES = 60
CPP_FILE_LINES = 500
FOLDERS = ("ftrt", "plugins", "benchmarks", "tests", "recipes")


def python_files():
    return sorted(path for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*.py"))


def body_lines(function):
    """Lines of a function without its docstring and decorators."""
    lines = function.end_lineno - function.lineno + 1
    first = function.body[0]
    is_text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    if is_text and isinstance(first.value.value, str):
        lines -= first.end_lineno - first.lineno + 1
    return lines


def test_python_files_are_short_enough():
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in python_files()}

    assert {str(p): n for p, n in lengths.items() if n > PYTHON_FILE_LINES} == {}


def test_python_functions_are_short_enough():
    long = {}
    for path in python_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = body_lines(node)
                if lines > PYTHON_FUNCTION_LINES:
                    long[f"{path}:{node.lineno} {node.name}"] = lines

    assert long == {}


def test_cpp_files_are_short_enough():
    sources = [
        path
        for pattern in ("*.h", "*.cpp", "*.cu", "*.cuh")
        for path in (REPOSITORY / "csrc").rglob(pattern)
    ]
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in sources}

    assert {str(p): n for p, n in lengths.items() if n > CPP_FILE_LINES} == {}


def test_the_docstring_does_not_count():
    text = "def f():\n    '''One.\n\n    Two.\n    '''\n    return 1\n"
    (function,) = ast.parse(text).body

    assert body_lines(function) == 2
