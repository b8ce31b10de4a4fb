"""Files that appear whole or not at all, and stay after a power cut.

Owns the one way in which a conversion writes: under another name, then fsync, then rename, then
fsync of the directory. Knows nothing of what it writes.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

PARTIAL = ".partial"
"""Ends the name of a file that is being written."""


class PartialFile:
    """``directory/name`` in the making; it gets its name when the ``with`` block succeeds.

    Any failure removes what was written. All methods raise OSError as the system does.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self.path = directory / name
        self.partial = directory / (name + PARTIAL)
        self._descriptor = -1

    def __enter__(self) -> Self:
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | getattr(os, "O_CLOEXEC", 0)
        self._descriptor = os.open(self.partial, flags, 0o644)
        return self

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Write all of the data at an offset."""
        view = memoryview(data).cast("B")
        while view:
            count = os.pwrite(self._descriptor, view, offset)
            view, offset = view[count:], offset + count

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                os.fsync(self._descriptor)
                if hasattr(os, "posix_fadvise"):  # nothing reads it soon: leave the cache to others
                    os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                os.replace(self.partial, self.path)
                sync_directory(self.path.parent)
        finally:
            os.close(self._descriptor)
            with suppress(FileNotFoundError):
                self.partial.unlink()


def sync_directory(directory: Path) -> None:
    """Make the names in a directory last."""
    if os.name != "posix":  # elsewhere a directory cannot be opened, and its names need no sync
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
