"""A reply that is written down beforehand, and a person who has typed everything already."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import RenderableType

from flashmoe.apps.chat.commands import Names
from flashmoe.progress import OnProgress
from flashmoe.step import Step
from flashmoe.text.pieces import Call, Content, Piece, Reasoning
from flashmoe.turn import Beat, Turn


def step(text: str = "") -> Step:
    return Step(
        id=0,
        text=text,
        logprob=None,
        top_logprobs=(),
        finish_reason=None,
        prompt_tokens=3,
        hits=1,
        misses=1,
        bytes_read=10,
        ms_read_wait=1.0,
        ms_total=2.0,
    )


@dataclass
class Script:
    """Replies in order; each is pieces, or something to do or raise when its token comes."""

    replies: list[Sequence[Piece | BaseException | Callable[[], object]]]
    finish: str | None = None
    asked: list[Turn] = field(default_factory=list)

    def begin(self, turn: Turn, told: OnProgress) -> Scripted:
        self.asked.append(turn)
        return Scripted(self.replies.pop(0), self.finish)


class Scripted:
    """One reply, as ``flashmoe.turn.Reply`` gives it."""

    withholding = False

    def __init__(
        self, pieces: Sequence[Piece | BaseException | Callable[[], object]], finish: str | None
    ) -> None:
        self._pieces = pieces
        calls = any(isinstance(piece, Call) for piece in pieces)
        self._finish = finish or ("tool_calls" if calls else "stop")
        self.finish_reason: str | None = None
        self.closed = False

    def __iter__(self) -> Iterator[Beat]:
        for piece in self._pieces:
            if isinstance(piece, BaseException):
                raise piece
            if isinstance(piece, Content | Reasoning | Call):
                yield Beat(step(), (piece,))
            else:
                piece()
        self.finish_reason = self._finish

    def close(self) -> None:
        self.closed = True


class Person:
    """A face that remembers what it was shown. ``yes`` is the answer to every question."""

    def __init__(self, *lines: str, yes: bool = False, typed: str = "typed") -> None:
        self._lines = list(lines)
        self._yes = yes
        self._typed = typed
        self.pieces: list[Piece] = []
        self.notes: list[str] = []
        self.shown: list[RenderableType] = []
        self.results: list[str] = []
        self.memories: list[tuple[str, str]] = []

    def line(self, status: str, names: Names) -> str | None:
        return self._lines.pop(0) if self._lines else None

    @contextmanager
    def reading(self) -> Iterator[OnProgress]:
        yield lambda progress: None

    @contextmanager
    def hearing(self) -> Iterator[Person]:
        yield self

    def heard(self, pieces: tuple[Piece, ...], *, withheld: bool = False) -> None:
        self.pieces += pieces

    def recalled(self, said: str, replied: str) -> None:
        self.memories.append((said, replied))

    def called(self, call: Call) -> None:
        pass

    def answered(self, call: Call, result: str) -> None:
        self.results.append(result)

    def confirm(self, command: str) -> bool:
        return self._yes

    def supply(self, call: Call) -> str:
        return self._typed

    def show(self, *parts: RenderableType) -> None:
        self.shown += parts

    def note(self, text: str) -> None:
        self.notes.append(text)

    def figures(self, line: str) -> None:
        self.notes.append(line)
