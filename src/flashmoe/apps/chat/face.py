"""What a conversation needs of the side that a person is on, with a terminal or without.

Owns the two protocols; ``screen`` and ``plain`` are the faces.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from rich.console import RenderableType

from flashmoe.apps.chat.commands import Names
from flashmoe.progress import OnProgress
from flashmoe.text.pieces import Call, Piece


class Listener(Protocol):
    """Who is told of one reply, token by token."""

    def heard(self, pieces: tuple[Piece, ...], *, withheld: bool = False) -> None:
        """What a token has brought, perhaps nothing; ``withheld``: a call is being written."""


class Face(Protocol):
    """A person's side."""

    def line(self, status: str, names: Names) -> str | None:
        """What is said next; None where there is no more. ``status`` is shown beside it."""

    def reading(self) -> AbstractContextManager[OnProgress]:
        """While a prompt is read."""

    def hearing(self) -> AbstractContextManager[Listener]:
        """While a reply comes; when it is left all of it has been shown."""

    def recalled(self, said: str, replied: str) -> None:
        """The last turn of a conversation that goes on: what was said, and what came of it."""

    def called(self, call: Call) -> None:
        """A tool is about to be used."""

    def answered(self, call: Call, result: str) -> None:
        """What came of it."""

    def confirm(self, command: str) -> bool:
        """Whether a command may run."""

    def supply(self, call: Call) -> str:
        """The result of a call that a person answers."""

    def show(self, *parts: RenderableType) -> None:
        """What a command has to show."""

    def note(self, text: str) -> None:
        """A word beside the conversation."""

    def figures(self, line: str) -> None:
        """What a reply has cost."""
