"""Laws that a source file can break by itself: its imports, its reach and its size.

import-linter checks the order of the layers (`make lint`); ruff checks complexity. Each law here
is a function over source text, and is shown a source that breaks it.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.laws.sources import (
    PACKAGE,
    ROOT,
    dotted,
    imports,
    in_apps,
    native_files,
    python_files,
)

HEAVY = ("torch", "transformers", "mlx", "mlx_lm", "cupy", "triton")
DOORS = {"kernels/cpu.py", "kernels/scores.py", "stream/cache.py", "stream/direct.py"}
REACHES_OUT = {
    "print", "input", "exit", "quit", "sys.exit", "os._exit", "os.abort",
    "os.environ", "os.environb", "os.getenv", "os.putenv", "sys.argv", "sys.stdout", "sys.stderr",
}  # fmt: skip
MODULES_OF_HOSTS = ("argparse", "typer", "click", "rich", "socket", "http.server")
NAMES_NOT_IN_USE = {"manager", "helper", "helpers", "utils", "util", "common", "core", "base",
                    "misc", "fast", "new", "v2"}  # fmt: skip
FILE_LINES, FUNCTION_LINES = 400, 60

library = pytest.mark.parametrize(
    "path",
    [path for path in python_files() if not in_apps(path)],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
everywhere = pytest.mark.parametrize(
    "path", python_files(), ids=lambda path: str(path.relative_to(PACKAGE))
)


def under(name: str, modules: tuple[str, ...]) -> bool:
    return any(name == module or name.startswith(module + ".") for module in modules)


def reaches_out(source: str) -> list[str]:
    """What only a host may do, with its line."""
    tree = ast.parse(source)
    names = [(dotted(node), node) for node in ast.walk(tree) if isinstance(node, ast.expr)]
    found = [f"line {node.lineno}: {name}" for name, node in names if name in REACHES_OUT]
    found += [f"imports {name}" for name in imports(tree) if under(name, MODULES_OF_HOSTS)]
    found += [f"imports {name}" for name in imports(tree) if name in REACHES_OUT]
    return found


def heavy_imports(source: str) -> list[str]:
    return [name for name in imports(ast.parse(source)) if under(name, HEAVY)]


def imports_native(source: str) -> bool:
    return any("_native" in name.split(".") for name in imports(ast.parse(source)))


def long_functions(source: str) -> list[str]:
    return [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= FUNCTION_LINES
    ]


def test_importing_the_package_loads_no_framework() -> None:
    code = (
        "import sys, flashmoe\n"
        f"heavy = sorted({set(HEAVY)!r} & set(sys.modules))\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@library
def test_the_library_neither_prints_nor_exits_nor_reads_the_environment(path: Path) -> None:
    assert not reaches_out(path.read_text(encoding="utf-8"))


@everywhere
def test_no_framework_is_imported_even_lazily(path: Path) -> None:
    """But for the library of a GPU, behind one door, when a GPU is asked for."""
    door = ["cupy"] if path.relative_to(PACKAGE).as_posix() == "kernels/cuda/gpu.py" else []
    assert heavy_imports(path.read_text(encoding="utf-8")) == door


def test_only_the_doors_import_the_native_module() -> None:
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in python_files()
        if imports_native(path.read_text(encoding="utf-8"))
    }
    assert found == DOORS


def test_only_the_bindings_know_python() -> None:
    knowing = {
        path.name
        for path in native_files()
        if "Python.h" in (text := path.read_text(encoding="utf-8")) or "nanobind" in text
    }
    assert {name for name in knowing if not name.startswith("bindings")} == set()
    assert "bindings.cpp" in knowing


@everywhere
def test_functions_fit_a_screen_or_so(path: Path) -> None:
    assert not long_functions(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "path", python_files() + native_files(), ids=lambda path: str(path.relative_to(ROOT))
)
def test_files_own_one_thing(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= FILE_LINES
    assert not NAMES_NOT_IN_USE & {path.stem, path.parent.name}


@everywhere
def test_modules_say_what_they_own(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "source",
    [
        "print('x')",
        "import os\nos.environ['A']",
        "import os\nvalue = os.getenv('A')",
        "from os import environ",
        "import sys\nsys.exit(1)",
        "def f():\n    import argparse",
        "import sys\nsys.stderr.write('x')",
    ],
)
def test_reaching_out_is_seen(source: str) -> None:
    assert reaches_out(source)


@pytest.mark.parametrize(
    "source", ["import torch", "def f():\n    from mlx.core import array", "import torch.nn as n"]
)
def test_a_heavy_import_is_seen(source: str) -> None:
    assert heavy_imports(source)


@pytest.mark.parametrize(
    "source",
    ["from flashmoe import _native", "import flashmoe._native", "from flashmoe._native import x",
     "from . import _native"],
)  # fmt: skip
def test_a_native_import_is_seen(source: str) -> None:
    assert imports_native(source)


def test_a_long_function_is_seen_and_a_full_screen_is_not() -> None:
    body = "    x = 1\n"
    assert not long_functions("def f():\n" + body * (FUNCTION_LINES - 1))
    assert long_functions("def f():\n" + body * FUNCTION_LINES)
