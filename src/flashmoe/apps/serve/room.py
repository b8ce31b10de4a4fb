"""What requests and their replies may take of memory, beside the engine.

Owns the division (:class:`Sizes`, from the limits and the context alone) and the count of what is
taken. The budget sets aside :attr:`Sizes.total_bytes`; who finds no room is refused, by whoever
asks for it.

Invariant: what all shares of a room have together never exceeds it, and a share that was closed
has nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from flashmoe.apps.serve.ask import Token
from flashmoe.text.pieces import Call, Piece

if TYPE_CHECKING:
    from flashmoe.apps.serve.limits import Limits

CONNECTION_BYTES = 144 << 10
"""A connection at its fullest: the head of a request, what has come of its body and was not
taken yet, what was written and not sent yet (measured: 111 KiB)."""

SPARE_CONNECTIONS = 32
"""So many more are told that there is no place; further ones are cut off without a word."""

ENCODING_BYTES, ENCODING_TOKEN_BYTES = 32 << 20, 1 << 10
"""What the tokenizer takes while it encodes: a text that is encoded whatever its length
(``text.length.WHOLE``), and each token of a longer one (measured: 815 bytes of prose)."""

TOKEN_BYTES = 1 << 10
"""A token with its probability, from the worker to the wire: as an object, in JSON's form, as
text and as bytes (measured: 1001 at the most). Each alternative is one too."""

LETTER_BYTES = 8
"""The same of a letter of a reply."""

GUIDE_BYTES, GUIDE_FACTOR = 160 << 10, 128
"""What binds a reply, and waits with it: at the least, and for each byte of schemas and patterns
(measured: 140 KiB for a tool with five parameters, 120 bytes a byte of larger ones)."""

ID_BYTES = 48
"""A token of a prompt, as an integer in a tuple."""


@dataclass(frozen=True)
class Sizes:
    """How much there is for what, in bytes.

    ``bodies`` are being read, or wait to be understood; ``parsed`` is the most that one of them
    may become, and ``preparing`` what that takes at the worst, one request at a time;
    ``turns`` are understood and wait, or are replied to; ``reply`` is the most of one reply,
    ``replies`` of the one under way and of those that were not read yet.
    """

    connections_bytes: int
    bodies_bytes: int
    parsed_bytes: int
    preparing_bytes: int
    turns_bytes: int
    reply_bytes: int
    replies_bytes: int

    @classmethod
    def of(cls, limits: Limits, context_tokens: int) -> Sizes:
        """Of a server with these limits whose prompts and replies have so many tokens at most."""
        parsed = 8 * limits.body_bytes + (1 << 20)
        # The tokens of the longest prompt, each with one alternative: what evaluations ask for.
        reply = max(32 << 20, context_tokens * 5 // 2 * TOKEN_BYTES)
        return cls(
            connections_bytes=(limits.connections + SPARE_CONNECTIONS) * CONNECTION_BYTES,
            bodies_bytes=4 * limits.body_bytes,
            parsed_bytes=parsed,
            preparing_bytes=limits.body_bytes
            + parsed
            + ENCODING_BYTES
            + context_tokens * ENCODING_TOKEN_BYTES,
            turns_bytes=parsed + (16 << 20),
            reply_bytes=reply,
            replies_bytes=reply * 3 // 2,
        )

    @property
    def total_bytes(self) -> int:
        """What the budget sets aside."""
        return (
            self.connections_bytes
            + self.bodies_bytes
            + self.preparing_bytes
            + self.turns_bytes
            + self.replies_bytes
        )

    @property
    def reply_tokens(self) -> int:
        """So many tokens with their probabilities, alternatives counted, are in a reply at most;
        an eighth is left for its text."""
        return self.reply_bytes * 7 // 8 // TOKEN_BYTES


class Room:
    """So many bytes, to be shared. Safe for several threads."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._used = 0
        self._lock = threading.Lock()

    @property
    def used_bytes(self) -> int:
        """What all shares have."""
        return self._used

    def take(self, size: int) -> bool:
        """Whether there was so much; then it is taken."""
        with self._lock:
            if self._used + size > self.most_bytes:
                return False
            self._used += size
            return True

    def give(self, size: int) -> None:
        """Give back what was taken."""
        with self._lock:
            self._used -= size


class Share:
    """What one request has of a room, ``most_bytes`` at most. Safe for several threads."""

    def __init__(self, room: Room, most_bytes: int | None = None) -> None:
        self._room = room
        self._most = room.most_bytes if most_bytes is None else most_bytes
        self._size = 0
        self._closed = False
        self._lock = threading.Lock()

    def grow(self, size: int) -> bool:
        """Whether there was so much more. A closed share takes nothing, and says yes: nobody
        waits for what it would be for."""
        with self._lock:
            if self._closed:
                return True
            if self._size + size > self._most or not self._room.take(size):
                return False
            self._size += size
            return True

    def close(self) -> None:
        """Give all of it back."""
        with self._lock:
            self._closed = True
            self._room.give(self._size)
            self._size = 0

    def __enter__(self) -> Share:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def spoken_bytes(pieces: Sequence[Piece], tokens: Sequence[Token]) -> int:
    """What pieces of a reply and their tokens take until they are sent."""
    letters = sum(
        len(one.name) + len(one.arguments) if isinstance(one, Call) else len(one.text)
        for one in pieces
    )
    return LETTER_BYTES * letters + TOKEN_BYTES * sum(1 + len(token.top) for token in tokens)
