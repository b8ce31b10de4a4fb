"""The chat without a terminal: a line in is a turn, its reply is plain text out.

Owns what goes where: replies on standard output and nothing else, all the rest on standard error.
Nobody is there to say yes, so nothing that needs one is ever done.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from rich.console import RenderableType

from flashmoe.apps import progress
from flashmoe.apps.chat.commands import Names
from flashmoe.apps.chat.tools import Refusal
from flashmoe.apps.terminal import note, show_aside, write
from flashmoe.apps.visible import one_line
from flashmoe.errors import InputError
from flashmoe.progress import OnProgress
from flashmoe.text.pieces import Call, Content, Piece

NOTED_CHARACTERS = 160
"""Of a call or its result, on standard error."""


class Plain:
    """Standard input, output and error, whatever they are."""

    def line(self, status: str, names: Names) -> str | None:
        """The next line that is not empty; those that end with a backslash go on."""
        said = ""
        while True:
            line = self._read()
            if line is None:
                return said or None
            if line.endswith("\\"):
                said += line[:-1] + "\n"
            elif said or line.strip():
                return said + line

    def _read(self) -> str | None:
        if sys.stdin is None:
            return None
        raw = sys.stdin.buffer.readline()
        if not raw:
            return None
        try:
            return raw.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InputError("standard input is not UTF-8: send it as that") from error

    @contextmanager
    def reading(self) -> Iterator[OnProgress]:
        with progress.prompt_shown(plain=True) as told:
            yield told

    def hearing(self) -> AbstractContextManager[Spoken]:
        return speaking()

    def recalled(self, said: str, replied: str) -> None:
        """Whoever reads the output has it already, or wants what is new alone."""

    def called(self, call: Call) -> None:
        note(one_line(f"{call.name} {call.arguments}", NOTED_CHARACTERS))

    def answered(self, call: Call, result: str) -> None:
        note(one_line(f"{call.name}: {result}", NOTED_CHARACTERS))

    def confirm(self, command: str) -> bool:
        """Nobody has said yes."""
        return False

    def supply(self, call: Call) -> str:
        raise Refusal(f"nobody is there to answer {call.name}")

    def show(self, *parts: RenderableType) -> None:
        for part in parts:
            show_aside(part)

    def note(self, text: str) -> None:
        note(text)

    def figures(self, line: str) -> None:
        note(line)


@contextmanager
def speaking() -> Iterator[Spoken]:
    """A reply's text as it comes, ended by a line break."""
    spoken = Spoken()
    try:
        yield spoken
    finally:
        if spoken.last not in ("", "\n"):
            write("\n")


class Spoken:
    """Writes the content of a reply."""

    def __init__(self) -> None:
        self.last = ""
        """The last character written."""

    def heard(self, pieces: tuple[Piece, ...], *, withheld: bool = False) -> None:
        text = "".join(piece.text for piece in pieces if isinstance(piece, Content))
        if text:
            write(text)
            self.last = text[-1]
