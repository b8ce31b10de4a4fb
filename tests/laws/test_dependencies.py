"""A law that hides where everything is installed: what the package imports, it declares."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions

from tests.laws.sources import ROOT, python_files

OPTIONAL = {
    "matplotlib": "plot",
    "jsonschema": "eval",
    "cupy": "cuda",
}  # imported where it is used, with an error that names the extra


def declared(entries: list[str]) -> set[str]:
    return {re.split(r"[<>=\[!~ ]", entry)[0].lower().replace("-", "_") for entry in entries}


def imported() -> set[str]:
    """Top-level packages that any file of the package imports, the standard library's apart."""
    names = set()
    for path in python_files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {"flashmoe"}


def test_every_import_is_a_dependency_and_every_dependency_is_imported():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    homes = packages_distributions()
    used = {homes[name][0].lower().replace("-", "_") for name in imported() - OPTIONAL.keys()}
    assert used == declared(project["dependencies"])
    packages = {"cupy": "cupy_cuda13x"}
    for name, extra in OPTIONAL.items():
        assert packages.get(name, name) in declared(project["optional-dependencies"][extra])
