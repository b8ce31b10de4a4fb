"""What the law tests read: the repository's own source files and their syntax trees."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "flashmoe"


def python_files() -> list[Path]:
    """Every Python source of the package."""
    return sorted(PACKAGE.rglob("*.py"))


def native_files() -> list[Path]:
    """Every C++ source."""
    return sorted(path for path in (ROOT / "native").iterdir() if path.suffix in (".cpp", ".h"))


def in_apps(path: Path) -> bool:
    """Whether a source is one of the hosts, which may print, exit and read the environment."""
    return path.is_relative_to(PACKAGE / "apps")


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names of all that is imported anywhere in a file, lazily or not."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def dotted(node: ast.AST) -> str:
    """``a.b.c`` for such an expression, else an empty string."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        head = dotted(node.value)
        return f"{head}.{node.attr}" if head else ""
    return ""
