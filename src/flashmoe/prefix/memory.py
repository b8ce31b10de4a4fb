"""The pieces that are in memory: those of late, and those that wait to be written.

Owns a bound on their bytes and who leaves. What waits to be written stays until it is; whoever
needs room waits with it. Safe for several threads.

Invariant: what is counted, pieces in the making included, never exceeds ``limit_bytes``; a piece
that has left is still whole for whoever is reading it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable

import numpy as np

from flashmoe.quant import Array


class NoRoom(Exception):
    """All memory is in the making, by other threads."""


class Memory:
    """Pieces by name, the least recently touched first to leave."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._pieces: OrderedDict[str, Array] = OrderedDict()
        self._waiting: set[str] = set()
        self._changed = threading.Condition()

    def take(self, nbytes: int) -> Array | None:
        """Room for a piece in the making, (nbytes,) uint8; None where it can never fit.

        Has others leave, and waits for what is being written. Ends with :meth:`keep` or
        :meth:`drop`.
        """
        if nbytes > self.limit_bytes:
            return None
        with self._changed:
            while self.used_bytes + nbytes > self.limit_bytes:
                oldest = next((name for name in self._pieces if name not in self._waiting), None)
                if oldest is not None:
                    self.used_bytes -= len(self._pieces.pop(oldest))
                elif not self._waiting:
                    return None  # it is all in the making, by other threads
                else:
                    self._changed.wait()
            piece = np.empty(nbytes, np.uint8)
            self.used_bytes += nbytes
        return piece

    def keep(self, name: str, piece: Array, *, waiting: bool) -> None:
        """A piece is made; ``waiting``: it stays until :meth:`written`."""
        with self._changed:
            other = self._pieces.pop(name, None)
            if other is not None:
                self.used_bytes -= len(other)
            self._pieces[name] = piece
            if waiting:
                self._waiting.add(name)

    def drop(self, piece: Array) -> None:
        """A piece was not made after all."""
        with self._changed:
            self.used_bytes -= len(piece)
            self._changed.notify_all()

    def written(self, name: str) -> None:
        """A piece waits no longer, be it on disk or not."""
        with self._changed:
            self._waiting.discard(name)
            self._changed.notify_all()

    def get(self, name: str) -> Array | None:
        """A piece, or None."""
        with self._changed:
            return self._pieces.get(name)

    def touch(self, names: Iterable[str]) -> None:
        """These were used, in this order."""
        with self._changed:
            for name in names:
                if name in self._pieces:
                    self._pieces.move_to_end(name)

    def forget(self, name: str) -> None:
        """A piece is of no use."""
        with self._changed:
            piece = self._pieces.pop(name, None)
            if piece is not None:
                self.used_bytes -= len(piece)
            self._waiting.discard(name)
            self._changed.notify_all()

    def names(self) -> list[str]:
        """Of every piece."""
        with self._changed:
            return list(self._pieces)

    def __contains__(self, name: str) -> bool:
        with self._changed:
            return name in self._pieces
