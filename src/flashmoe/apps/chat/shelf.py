"""Where conversations are kept: a directory each, with what was said and the model's state.

Owns names, files and locks; what is in the files is ``transcript``'s and ``snapshot``'s. The
directories are for this user alone, since they say what was said.

Invariant: one process at a time has a conversation open; a file is there whole or not at all, and
either of the two may be lost without the other (without the state everything is read anew).
"""

from __future__ import annotations

import fcntl
import os
import re
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from flashmoe.apps.chat.transcript import Transcript
from flashmoe.errors import InputError, SessionError
from flashmoe.store.writer import PartialFile
from flashmoe.stream.kept import read_kept

CONVERSATION, TIMELINE, LOCK = "conversation.json", "timeline.safetensors", "lock"

MOST_BYTES = 64 << 20
"""Of a conversation's text; a longer file is none of ours."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Entry:
    """A kept conversation as a list shows it; ``about`` is None where its file is damaged."""

    name: str
    changed: float
    state_bytes: int
    about: Transcript | None


class Shelf:
    """The kept conversations below a directory, which need not be there yet."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def names(self) -> list[str]:
        """Those that have something in them, in order."""
        try:
            found = [
                entry.name for entry in os.scandir(self.directory) if _NAME.fullmatch(entry.name)
            ]
        except OSError:
            return []
        return sorted(name for name in found if (self.directory / name / CONVERSATION).is_file())

    def entries(self) -> list[Entry]:
        """All of them, the one used last first."""
        found = [self._entry(name) for name in self.names()]
        return sorted(found, key=lambda entry: entry.changed, reverse=True)

    def _entry(self, name: str) -> Entry:
        place = self.directory / name
        about, changed = None, 0.0
        try:
            changed = (place / CONVERSATION).stat().st_mtime
            about = _read(place / CONVERSATION)
        except (OSError, SessionError):
            pass  # a list shows the rest all the same
        try:
            state_bytes = (place / TIMELINE).stat().st_size
        except OSError:
            state_bytes = 0
        return Entry(name, changed, state_bytes, about)

    def open(self, name: str) -> Kept:
        """Have a conversation to oneself, made if need be, until it is closed.

        Raises:
            InputError: no such name is possible.
            SessionError: another process has it, or the system refuses.
        """
        if not _NAME.fullmatch(name):
            raise InputError(
                f"{name!r} cannot name a conversation: use letters, digits, '.', '_' and '-', "
                "64 at most, a letter or digit first"
            )
        place = self.directory / name
        try:
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            lock = os.open(place / LOCK, flags, 0o600)
        except OSError as error:
            raise SessionError(f"{place} cannot be used: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            if isinstance(error, BlockingIOError):
                raise SessionError(
                    f"the conversation {name} is open in another process: leave it there, or "
                    "take another name"
                ) from error
            raise SessionError(f"{place / LOCK} cannot be locked: {error.strerror}") from error
        return Kept(name, place, lock)


class Kept:
    """A conversation of the shelf, locked for this process."""

    def __init__(self, name: str, place: Path, lock: int) -> None:
        self.name = name
        self._place = place
        self._lock = lock

    @property
    def timeline(self) -> Path:
        """The file of the model's state."""
        return self._place / TIMELINE

    def read(self) -> Transcript | None:
        """What was said; None where nothing is kept yet.

        Raises:
            SessionError: the file is damaged or cannot be read.
        """
        try:
            return _read(self._place / CONVERSATION)
        except FileNotFoundError:
            return None
        except OSError as error:
            told = error.strerror
            raise SessionError(f"{self._place / CONVERSATION} cannot be read: {told}") from error

    def write(self, transcript: Transcript) -> None:
        """Keep what was said.

        Raises:
            SessionError: the system refuses.
        """
        try:
            with PartialFile(self._place, CONVERSATION) as file:
                file.write(transcript.to_json().encode("utf-8", errors="replace"), 0)
        except OSError as error:
            told = error.strerror
            raise SessionError(f"{self._place / CONVERSATION} cannot be written: {told}") from error

    def close(self) -> None:
        """Let others have it. Repeating it is fine."""
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _read(path: Path) -> Transcript:
    try:
        return Transcript.from_json(read_kept(path, MOST_BYTES), str(path))
    except ValueError as error:
        raise SessionError(f"{path} cannot be read: {error}; remove it to begin anew") from error
