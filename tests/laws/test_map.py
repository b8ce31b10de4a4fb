"""The map in docs/DESIGN.md names every source file, and every file it names exists.

A directory that the map opens no further stands for all that is in it; what is said of a
directory may name files in it. ``__init__.py`` of a room needs no line of its own.
"""

import re
from pathlib import Path, PurePosixPath

from tests.laws.sources import ROOT, native_files, python_files

FILE = re.compile(r"\b\w+\.(?:py|cpp|h)\b")
BRACES = re.compile(r"^(.*)\{([^{}]+)\}(.*)$")


def expand(name: str) -> list[str]:
    """``a.{h,cpp}`` -> ``a.h``, ``a.cpp``."""
    match = BRACES.match(name)
    return [match[1] + part + match[3] for part in match[2].split(",")] if match else [name]


def read_map(text: str) -> list[PurePosixPath]:
    """Every path of the map. Two spaces or more part the names from what is said of them."""
    blocks = text.split("```")[1::2]
    (block,) = [block for block in blocks if "\nsrc/flashmoe/" in block]
    paths: list[PurePosixPath] = []
    open_folders: list[tuple[int, PurePosixPath]] = [(-1, PurePosixPath("."))]
    for line in filter(str.strip, block.splitlines()):
        indent = len(line) - len(line.lstrip())
        while open_folders[-1][0] >= indent:
            open_folders.pop()
        folder = open_folders[-1][1]
        left, *said = re.split(r"\s{2,}", line.strip(), maxsplit=1)
        paths += [folder / part for name in left.split() for part in expand(name)]
        if left.endswith("/"):
            open_folders.append((indent, folder / left))
            paths += [folder / left / name for words in said for name in FILE.findall(words)]
    return paths


def leaves(paths: list[PurePosixPath]) -> set[PurePosixPath]:
    """Paths below which the map lists nothing."""
    parents = {parent for path in paths for parent in path.parents}
    return set(paths) - parents


def unnamed(files: list[PurePosixPath], paths: list[PurePosixPath]) -> list[str]:
    """Files that neither the map nor a directory it leaves unopened stands for."""
    named = leaves(paths)
    return [str(file) for file in files if not named & {file, *file.parents}]


def the_map() -> list[PurePosixPath]:
    return read_map((ROOT / "docs" / "DESIGN.md").read_text(encoding="utf-8"))


def relative(path: Path) -> PurePosixPath:
    return PurePosixPath(path.relative_to(ROOT).as_posix())


def test_every_source_file_is_on_the_map() -> None:
    rooms = {"__init__.py"}
    files = [relative(path) for path in python_files() if path.name not in rooms]
    files += [relative(path) for path in [*native_files(), *sorted((ROOT / "bench").glob("*.py"))]]
    assert not unnamed(files, the_map())


def test_everything_on_the_map_exists() -> None:
    assert not [str(path) for path in the_map() if not (ROOT / path).exists()]


EXAMPLE = """
```
src/flashmoe/
  errors.py     refusals
  store/        bytes at rest
    layout.py  where bytes are
  apps/         faces
native/         C++, of which door.cpp knows Python
  io.{h,cpp} a.h  reads
```
"""


def test_the_map_is_read_as_drawn() -> None:
    paths = [str(path) for path in read_map(EXAMPLE)]
    assert paths == [
        "src/flashmoe", "src/flashmoe/errors.py", "src/flashmoe/store",
        "src/flashmoe/store/layout.py", "src/flashmoe/apps", "native",
        "native/door.cpp", "native/io.h", "native/io.cpp", "native/a.h",
    ]  # fmt: skip


def test_a_file_off_the_map_is_seen() -> None:
    files = [
        "src/flashmoe/errors.py", "src/flashmoe/apps/cli.py", "src/flashmoe/quant.py",
        "src/flashmoe/store/reader.py",
    ]  # fmt: skip
    found = unnamed([PurePosixPath(file) for file in files], read_map(EXAMPLE))
    assert found == ["src/flashmoe/quant.py", "src/flashmoe/store/reader.py"]
