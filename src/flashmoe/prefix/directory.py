"""The pieces on disk: one directory for every model, one size limit, any number of processes.

Owns the files: names, room, and whose turn it is to leave (docs/FORMAT.md, "The prefix cache").
What is in a file is ``entry``'s; who writes and when is ``writing``'s.

A file's time of change says when it was last used. A state and its blocks are touched together,
the state as the older, so that the least recently used file to leave is a state before its blocks.
One process at a time writes or removes, by a lock that a killed one lets go of; reading takes
none. So what is half written while the lock is held is a killed process's, and goes.

Invariant: all pieces together stay within ``limit_bytes``; a file has its name when it is whole.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from flashmoe.errors import InputError
from flashmoe.prefix import entry
from flashmoe.quant import Array
from flashmoe.store.lock import alone
from flashmoe.store.writer import PARTIAL, PartialFile

_log = logging.getLogger(__name__)

SUFFIX = ".prefix"
ABOUT = "about.json"
"""Of a room: what store and kernels it is for, for a person who looks."""

PATIENCE_S = 10.0
"""How long a writer waits for those of other processes, each of which writes one file."""

_ROOM = re.compile(r"[0-9a-f]{16}-[a-z0-9]+\Z")
_FILE = re.compile(r"(?:state-[0-9]+-[0-9a-f]{32}|block-[0-9a-f]{32})\.prefix\Z")


class Directory:
    """Files of one model, in a room of its own of a directory that many may share."""

    def __init__(
        self, path: Path, model: str, limit_bytes: int, about: Mapping[str, str] | None = None
    ) -> None:
        """Make the directory, for this user alone: it will hold what was said.

        ``about`` is noted in the room, for whoever looks into it; nothing depends on it.

        Raises:
            InputError: it cannot be made or written to.
        """
        self.path, self.room, self.limit_bytes = path, path / model, limit_bytes
        self.written_bytes = 0
        self._about = dict(about or {})
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.room.mkdir(mode=0o700, exist_ok=True)
            with alone(path, PATIENCE_S):
                self._note()
                self._make_room(0, frozenset())
        except BlockingIOError as error:
            _log.warning("the prefix cache %s is read only for now: %s", path, error.strerror)
        except OSError as error:
            raise InputError(
                f"the prefix cache cannot be kept in {path}: {error.strerror}; give a directory "
                "that can be written to (--prefix-cache)"
            ) from error

    def names(self) -> list[str]:
        """Of every piece of this model, as things stand."""
        try:
            found = os.listdir(self.room)
        except OSError as error:
            _log.warning("the prefix cache %s cannot be read: %s", self.room, error.strerror)
            return []
        return [name.removesuffix(SUFFIX) for name in found if _FILE.match(name)]

    def size(self, name: str) -> int:
        """Bytes of a piece.

        Raises:
            OSError: it is not there.
        """
        return os.stat(self._file(name)).st_size

    def read(self, name: str, out: Array) -> bool:
        """Fill ``out`` with a piece; False where its file is not of that size.

        Raises:
            OSError: it is not there, or cannot be read.
        """
        with open(self._file(name), "rb", buffering=0) as file:
            view, done = memoryview(out.data), 0
            while done < len(view):
                count = file.readinto(view[done:])
                if not count:
                    return False
                done += count
            return not file.read(1)

    def head(self, name: str) -> entry.Head:
        """What a piece says of itself; nothing vouches for it but its form.

        Raises:
            OSError: it is not there, or cannot be read.
            ValueError: it is no piece.
        """
        with open(self._file(name), "rb", buffering=0) as file:
            return entry.head(file.read(entry.head_bytes(file.read(entry.START_BYTES))))

    def touch(self, state: str | None, blocks: Iterable[str]) -> list[str]:
        """A state and its blocks were used; those that are not there."""
        now, missing = time.time_ns(), []
        for name, stamp in [(state, now), *((block, now + 1000) for block in blocks)]:
            try:
                if name is not None:
                    os.utime(self._file(name), ns=(stamp, stamp))
            except OSError:
                missing.append(name or "")
        return missing

    def write(self, name: str, piece: Array, spared: frozenset[str]) -> None:
        """Write a piece, in the room of those used longest ago, ``spared`` ones excepted.

        Raises:
            OSError: the system refuses, or other processes write for ever.
        """
        with alone(self.path, PATIENCE_S):
            if self._file(name).exists():  # another process was first
                return
            self._note()
            if not self._make_room(len(piece), spared):
                return
            with PartialFile(self.room, name + SUFFIX) as file:
                file.write(piece.data, 0)
            self.written_bytes += len(piece)

    def remove(self, name: str) -> None:
        """A piece is of no use."""
        with suppress(OSError):
            self._file(name).unlink()

    def _file(self, name: str) -> Path:
        return self.room / (name + SUFFIX)

    def _note(self) -> None:
        """Have the room, which may have been cleared away, and in it what it is for."""
        self.room.mkdir(mode=0o700, exist_ok=True)
        if self._about and not (self.room / ABOUT).exists():
            with PartialFile(self.room, ABOUT) as file:
                file.write(json.dumps(self._about, indent=1).encode(), 0)

    def _make_room(self, nbytes: int, spared: frozenset[str]) -> bool:
        """Have pieces of any model leave until so many bytes more fit; whether they do."""
        kept, total = [], nbytes
        for path in [path for room in rooms(self.path) for path in files(room)]:
            if path.name.endswith(PARTIAL):
                path.unlink(missing_ok=True)
                continue
            with suppress(FileNotFoundError):
                about = path.stat(follow_symlinks=False)
                total += about.st_size
                kept.append((about.st_mtime_ns, path.name.startswith("block"), path, about.st_size))
        for _, _, path, size in sorted(kept, key=lambda file: file[:2]):
            if total <= self.limit_bytes:
                break
            if path.name.removesuffix(SUFFIX) not in spared:
                path.unlink(missing_ok=True)
                total -= size
        return total <= self.limit_bytes


def rooms(path: Path) -> list[Path]:
    """The places of the models of a directory, by name.

    Raises:
        OSError: it is not there, or cannot be read.
    """
    found = [each for each in os.scandir(path) if _ROOM.match(each.name)]
    return sorted(Path(each.path) for each in found if each.is_dir(follow_symlinks=False))


def files(room: Path) -> list[Path]:
    """The pieces of a model, finished or not; no other file that lies there.

    Raises:
        OSError: the room cannot be read.
    """
    try:
        found = os.listdir(room)
    except FileNotFoundError:
        return []  # it has been cleared away
    return [room / name for name in found if _FILE.match(name.removesuffix(PARTIAL))]


def vacate(room: Path) -> None:
    """Remove a room without pieces, unless somebody's file lies there."""
    for name in (ABOUT, ABOUT + PARTIAL):
        (room / name).unlink(missing_ok=True)
    with suppress(OSError):
        room.rmdir()
