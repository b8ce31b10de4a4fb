"""Pieces on their way from memory to disk, in a thread of their own.

Owns the order: the blocks of a state before it, one file after the other. A disk that refuses
ends the writing, with a line in the log, and nothing else: replies go on.

Invariant: whatever was given is written, or let go of, before :meth:`Writing.close` returns.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence

from flashmoe.prefix.directory import Directory
from flashmoe.prefix.memory import Memory

_log = logging.getLogger(__name__)


class Writing:
    """The way to a directory."""

    def __init__(self, memory: Memory, directory: Directory) -> None:
        self._memory = memory
        self._directory = directory
        self._jobs: deque[tuple[str, tuple[str, ...]]] = deque()
        self._changed = threading.Condition()
        self._busy = self._closed = False
        self.refused = False
        """The disk has refused; nothing more is written."""
        self._thread: threading.Thread | None = None  # from the first piece on

    def add(self, name: str, blocks: Sequence[str]) -> None:
        """Write a piece that waits in memory; ``blocks`` are those that it belongs with."""
        with self._changed:
            if not self._closed:
                if self._thread is None:
                    self._thread = threading.Thread(
                        target=self._work, name="prefix-writer", daemon=True
                    )
                    self._thread.start()
                self._jobs.append((name, tuple(blocks)))
                self._changed.notify_all()
                return
        self._memory.written(name)  # nobody will: it must not be waited for

    def flush(self) -> None:
        """Wait until all is written."""
        with self._changed:
            while self._jobs or self._busy:
                self._changed.wait()

    def close(self) -> None:
        """Wait until all is written, and end the thread. Repeating it is fine."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                while not self._jobs and not self._closed:
                    self._changed.wait()
                if not self._jobs:
                    return
                name, blocks = self._jobs.popleft()
                self._busy = True
            try:
                self._write(name, blocks)
            except Exception:
                # Whatever it is, who waits for the memory must not wait for ever.
                self.refused = True
                _log.exception("the prefix cache stops writing: %s failed", name)
            self._memory.written(name)

    def _write(self, name: str, blocks: tuple[str, ...]) -> None:
        piece = self._memory.get(name)
        if piece is None or self.refused:
            return
        try:
            self._directory.write(name, piece, frozenset(blocks))
        except OSError as error:
            self.refused = True
            _log.warning(
                "the prefix cache stops writing to %s: %s; replies go on without",
                self._directory.path,
                error.strerror or error,
            )
            return
        if name.startswith("state"):
            self._directory.touch(name, blocks)
