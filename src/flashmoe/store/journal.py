"""What an unfinished conversion has achieved, and who may work on it.

Owns convert.journal: JSON lines, the first saying what is converted and how, each later one a
finished file with its checksums, the last one the manifest's checksum. Its lock keeps a second
conversion out of the directory.

Invariant: a line is appended only after the file it speaks of is on disk under its name. A torn
last line is as good as none. The journal is empty only until its first line is on disk, and
nothing in the directory is touched before that.
"""

from __future__ import annotations

import json
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from flashmoe.errors import ConversionError
from flashmoe.store.layout import JOURNAL
from flashmoe.store.writer import PARTIAL, sync_directory

try:
    import fcntl
except ImportError:  # not a POSIX system: two conversions at once are the user's to avoid
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger("flashmoe.store.journal")

LIMIT_BYTES = 256 << 20


class Journal:
    """The journal of a directory, open and locked. ``header`` is None until :meth:`begin`."""

    def __init__(self, directory: Path) -> None:
        """Lock the journal, making an empty one where there is none, and read it.

        Raises:
            ConversionError: another conversion holds it, or it is not a journal.
            OSError: the directory cannot be written.
        """
        self.path = directory / JOURNAL
        self._descriptor = _lock(self.path)
        try:
            self.header, self.entries = self._read()
        except BaseException:
            os.close(self._descriptor)
            raise

    def begin(self, header: dict[str, Any]) -> None:
        """Replace whatever the journal says by a first line; all or nothing."""
        partial = self.path.with_name(self.path.name + PARTIAL)
        descriptor = _lock(partial)
        try:
            os.ftruncate(descriptor, 0)
            _write_line(descriptor, header)
            os.replace(partial, self.path)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(self._descriptor)
        self._descriptor = descriptor
        self.header, self.entries = header, []
        sync_directory(self.path.parent)

    def append(self, entry: dict[str, Any]) -> None:
        """Add a line and make it last."""
        _write_line(self._descriptor, entry)
        self.entries.append(entry)

    def finish(self) -> None:
        """Remove the journal: the store is complete."""
        self.path.unlink()
        sync_directory(self.path.parent)

    def close(self) -> None:
        """Let go of the lock; an empty journal that nothing came of disappears."""
        if self.header is None:
            with suppress(FileNotFoundError):
                self.path.unlink()
        os.close(self._descriptor)

    def _read(self) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
        """The first line and the others; leaves the file at the end of its last whole line."""
        size = os.fstat(self._descriptor).st_size
        if size > LIMIT_BYTES:
            raise self._foreign()
        raw = os.pread(self._descriptor, size, 0)
        whole = raw[: raw.rfind(b"\n") + 1]
        if raw and not whole:
            raise self._foreign()
        try:
            lines = [json.loads(line) for line in whole.splitlines()]
        except (ValueError, RecursionError) as error:
            raise self._foreign() from error
        if not all(isinstance(line, dict) for line in lines):
            raise self._foreign()
        if lines and "flashmoe" not in lines[0]:
            raise self._foreign()
        os.ftruncate(self._descriptor, len(whole))
        os.lseek(self._descriptor, 0, os.SEEK_END)
        return (lines[0], lines[1:]) if lines else (None, [])

    def _foreign(self) -> ConversionError:
        return ConversionError(
            f"{self.path} is not the journal of a conversion: remove this directory yourself, or "
            "choose another destination"
        )


def _line(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry, separators=(",", ":")).encode() + b"\n"


def _write_line(descriptor: int, entry: dict[str, Any]) -> None:
    """Append a line and make it last."""
    line = memoryview(_line(entry))
    while line:
        line = line[os.write(descriptor, line) :]
    os.fsync(descriptor)


def _lock(path: Path) -> int:
    """Open and lock a file, and make sure that it still is the one of that name."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
        try:
            _take_lock(descriptor, path)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _take_lock(descriptor: int, path: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConversionError(
            f"another conversion is writing to {path.parent}: wait for it, or choose another "
            "destination"
        ) from error
    except OSError as error:
        log.warning("%s cannot be locked (%s): start only one conversion", path, error.strerror)
