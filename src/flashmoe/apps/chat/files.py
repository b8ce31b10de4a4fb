"""A file-reader for the model: text below one directory, some lines at a time.

Owns what may be read and how much of it. Invariant: nothing outside the directory is opened,
links followed, and nothing that could block or is no plain file; a read takes bounded memory.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flashmoe.apps.chat.tools import Refusal, Tool, text_of
from flashmoe.errors import reason
from flashmoe.stream.units import format_bytes

READ_BYTES = 16_000
"""Of one call, some 4,000 tokens."""

SCANNED_BYTES = 64 << 20
"""A line further into a file than this is not looked for."""

ENTRIES = 200
"""Of a directory."""


def read_file(directory: Path, name: str, first_line: int = 1) -> str:
    """Lines of a text file from ``first_line`` on, or the names in a directory.

    Raises:
        Refusal: outside the directory, missing, no plain file, or not text.
    """
    root = directory.resolve()
    try:
        path = (root / Path(name).expanduser()).resolve()
        if not path.is_relative_to(root):
            raise Refusal(f"{name} is outside {root}: only files below it may be read")
        if path.is_dir():
            return _listing(path, name)
        return _lines(path, name, first_line)
    except (OSError, RuntimeError, ValueError) as error:  # loops of links, NUL in a name
        raise Refusal(f"{name} cannot be read: {reason(error)}") from error


def _listing(path: Path, name: str) -> str:
    with os.scandir(path) as found:
        entries = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in found)
    more = f"\n[{len(entries) - ENTRIES} more]" if len(entries) > ENTRIES else ""
    listed = "\n".join(entries[:ENTRIES])
    return f"{name} is a directory of {len(entries)}:\n{listed}{more}"


def _lines(path: Path, name: str, first_line: int) -> str:
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
    with open(os.open(path, flags), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise Refusal(f"{name} is not a plain file")
        if b"\0" in file.read(READ_BYTES):
            raise Refusal(f"{name} is binary, of {format_bytes(found.st_size)}: there is no text")
        file.seek(0)
        for _ in range(first_line - 1):
            line = file.readline(SCANNED_BYTES)
            if not line or file.tell() > SCANNED_BYTES:
                raise Refusal(f"{name} has fewer than {first_line} lines")
        start = file.tell()
        raw = file.read(READ_BYTES)
    return _told(raw, first_line, left=found.st_size - start - len(raw))


def _told(raw: bytes, first_line: int, left: int) -> str:
    """The text of whole lines, and where to go on."""
    if left > 0 and b"\n" in raw:
        raw, _, cut = raw.rpartition(b"\n")
        left += len(cut)
    text = raw.decode("utf-8", errors="replace")
    if left <= 0:
        return text or "[the file is empty]"
    following = first_line + text.count("\n") + 1
    return f"{text}\n[{left} bytes are left: go on with first_line {following}]"


def file_reader(directory: Path) -> Tool:
    """The tool, for what is below a directory."""

    def use(arguments: Mapping[str, Any]) -> str:
        first = arguments.get("first_line", 1)
        if not isinstance(first, int) or isinstance(first, bool) or first < 1:
            raise Refusal(f"first_line is {first!r}; it has to be a whole number from 1 on")
        return read_file(directory, text_of(arguments, "path"), first)

    return Tool.of(
        "read_file",
        "Read a text file, or list a directory, below the working directory.",
        {
            "path": {"type": "string", "description": "relative to the working directory"},
            "first_line": {"type": "integer", "description": "where to begin; 1 if left out"},
        },
        use=use,
        optional=("first_line",),
        note=f"what is below {directory}",
    )
