"""What a directory of kept prefixes has, whoever wrote it: looked at, and cleared.

Owns the view from outside, without an engine: pieces by model, and what is wrong with any. Where
they lie and who may remove them is ``directory``'s, what is in one ``entry``'s.

Invariant: nothing but pieces, and files that began as one, is ever removed; looking takes no lock
and changes nothing.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import xxhash

from flashmoe.errors import InputError, reason
from flashmoe.prefix import directory, entry
from flashmoe.store.lock import alone
from flashmoe.store.writer import PARTIAL
from flashmoe.stream.kept import read_kept

ABOUT_LIMIT_BYTES = 1 << 16

_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Piece:
    """A file: ``tokens`` of a timeline up to its end, used last at ``used_s`` since the epoch.

    ``blocks`` are the names of those that a state goes with. ``fault`` says why it cannot be used.
    """

    path: Path
    nbytes: int
    used_s: float
    tokens: int = 0
    blocks: tuple[str, ...] = ()
    fault: str | None = None

    @property
    def name(self) -> str:
        """As other pieces name it."""
        return self.path.name.removesuffix(directory.SUFFIX)

    @property
    def is_state(self) -> bool:
        """Whether a prompt can begin at it, or else at a state that it belongs to."""
        return self.path.name.startswith("state")


@dataclass(frozen=True)
class Room:
    """The pieces of one model; ``about`` is what was noted of it, such as its store."""

    path: Path
    about: Mapping[str, str]
    pieces: tuple[Piece, ...]

    @property
    def states(self) -> list[Piece]:
        """The beginnings that are kept whole."""
        return [piece for piece in self.pieces if piece.is_state and piece.fault is None]

    @property
    def faults(self) -> list[Piece]:
        """Those that cannot be used."""
        return [piece for piece in self.pieces if piece.fault is not None]

    @property
    def tokens(self) -> int:
        """Those of the longest beginning."""
        return max((piece.tokens for piece in self.states), default=0)

    @property
    def nbytes(self) -> int:
        """What all of it takes on disk."""
        return sum(piece.nbytes for piece in self.pieces)

    @property
    def used_s(self) -> float:
        """When any of it was used last; 0 where it is empty."""
        return max((piece.used_s for piece in self.pieces), default=0.0)


def survey(path: Path, *, whole: bool = False) -> list[Room]:
    """The models of a directory, as things stand.

    Heads and lengths are read; with ``whole`` everything is, and compared with its checksum.

    Raises:
        InputError: there is no such directory, or it cannot be read.
    """
    try:
        return [_room(place, whole) for place in directory.rooms(path)]
    except OSError as error:
        raise _unusable(path, error) from error


def clear(path: Path, unwanted: Callable[[Room, Piece], bool]) -> list[Piece]:
    """Remove what is unwanted of a directory; returns what has gone.

    Other processes may go on using it: they find what is left, and make a room anew.

    Raises:
        InputError: there is no such directory, another process writes for ever, or the system
            refuses.
    """
    gone: list[Piece] = []
    try:
        with alone(path, directory.PATIENCE_S):
            for place in directory.rooms(path):
                room = _room(place, whole=False)
                leaving = [piece for piece in room.pieces if unwanted(room, piece)]
                # States first: ended in between, no state is left without its blocks.
                for piece in sorted(leaving, key=lambda piece: not piece.is_state):
                    piece.path.unlink(missing_ok=True)
                    gone.append(piece)
                if len(leaving) == len(room.pieces):
                    directory.vacate(place)
    except OSError as error:
        raise _unusable(path, error) from error
    return gone


def _unusable(path: Path, error: OSError) -> InputError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return InputError(f"there is no prefix cache in {path}: name the directory of one")
    if isinstance(error, BlockingIOError):
        return InputError(f"the prefix cache {path} is being written to: try again in a moment")
    at = error.filename or path
    return InputError(f"the prefix cache {path} cannot be used: {at}: {error.strerror}")


def _room(place: Path, whole: bool) -> Room:
    pieces = list(_pieces(place, whole))
    there = {piece.name for piece in pieces if piece.fault is None}
    return Room(place, _about(place), tuple(_joined(piece, there) for piece in pieces))


def _joined(piece: Piece, there: set[str]) -> Piece:
    """A state is of no use without its blocks."""
    missing = [block for block in piece.blocks if block not in there]
    if piece.fault is not None or not missing:
        return piece
    fault = f"it goes with {missing[0]}, which is not there or broken"
    return Piece(piece.path, piece.nbytes, piece.used_s, fault=fault)


def _pieces(place: Path, whole: bool) -> Iterator[Piece]:
    for path in sorted(directory.files(place)):
        try:
            about = path.stat(follow_symlinks=False)
            yield _piece(path, about, whole)
        except FileNotFoundError:
            continue  # another process has removed it


def _piece(path: Path, about: os.stat_result, whole: bool) -> Piece:
    try:
        head = _checked(path, about, whole)
    except (OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        return Piece(path, about.st_size, about.st_mtime, fault=reason(error))
    return Piece(path, about.st_size, about.st_mtime, head.position, head.blocks)


def _checked(path: Path, about: os.stat_result, whole: bool) -> entry.Head:
    """The head of a file that is what its name says.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not; says why.
    """
    if path.name.endswith(PARTIAL):
        raise ValueError("it was never finished, or is being written")
    if not stat.S_ISREG(about.st_mode):
        raise ValueError("it is no file")
    with open(path, "rb") as file:
        start = file.read(entry.START_BYTES)
        text = file.read(entry.head_bytes(start))
        head, size = entry.head(text), entry.size(text)
        if about.st_size != size:
            raise ValueError(f"it has {about.st_size} bytes, and should have {size}")
        kind = path.name.partition("-")[0]
        if (head.kind, head.model) != (kind, path.parent.name):
            raise ValueError("it is of another model or kind than its place says")
        if kind == "state" and head.position != int(path.name.split("-")[1]):
            raise ValueError("it is of another length than its name says")
        if whole:
            digest, left = xxhash.xxh3_64(start + text), size - len(start) - len(text)
            while left > entry.CHECKSUM_BYTES:
                read = file.read(min(left - entry.CHECKSUM_BYTES, _READ_BYTES))
                if not read:
                    raise ValueError("it was cut short while it was read")
                digest.update(read)
                left -= len(read)
            if digest.intdigest() != int.from_bytes(file.read(), "little"):
                raise ValueError("it does not match its checksum")
    return head


def _about(place: Path) -> dict[str, str]:
    """What was noted of a model; nothing where that cannot be read."""
    try:
        noted = json.loads(read_kept(place / directory.ABOUT, ABOUT_LIMIT_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(noted, dict):
        return {}
    return {str(key): value for key, value in noted.items() if isinstance(value, str)}
