"""A conversation: what the user says, the replies, and the tools used between.

Owns the rounds of a turn (reply, calls, results, reply, …), what an interrupt or a failure leaves
of it, and what it has all cost. Knows no terminal: that is the face's.

Invariant: after every turn the transcript is one that can go on. A turn that fails, or is stopped
before a word of it was said, is taken back, and can be asked again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Protocol

from flashmoe.apps.chat.face import Face, Listener
from flashmoe.apps.chat.interrupts import Stop, stopping
from flashmoe.apps.chat.tools import Toolbox
from flashmoe.apps.chat.transcript import Message, Transcript, reply_of, result_of
from flashmoe.apps.plurals import counted
from flashmoe.errors import CancelledError, InputError
from flashmoe.progress import OnProgress
from flashmoe.session import Session
from flashmoe.step import Step, Totals
from flashmoe.text.pieces import Call, Content, Piece
from flashmoe.turn import Beat, ToolChoice, Turn

ROUNDS = 8
"""After so many rounds of calls the model has to answer without one."""

NOT_RUN = "not run: stopped by the user"
"""What a call of a turn that was stopped is answered, so that the conversation can go on."""

BROKEN_OFF = "broken off: stopped by the user before it had ended"
"""What one is answered that was under way."""


class Spoken(Protocol):
    """The reply to one turn, as :class:`flashmoe.turn.Reply`."""

    @property
    def withholding(self) -> bool: ...

    @property
    def finish_reason(self) -> str | None: ...

    def __iter__(self) -> Iterator[Beat]: ...

    def close(self) -> None: ...


Begin = Callable[[Turn, OnProgress], Spoken]
"""Begins the reply to a turn."""

Figures = Callable[[list[Step], str], str]
"""The line of what a reply has cost, from its steps and why it ended."""


@dataclass
class Heard:
    """What has come of a reply."""

    pieces: list[Piece] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    finish: str = "interrupt"

    @property
    def calls(self) -> list[Call]:
        return [piece for piece in self.pieces if isinstance(piece, Call)]

    @property
    def says_anything(self) -> bool:
        """Whether a person sees more of it than its reasoning."""
        said = (piece.text for piece in self.pieces if isinstance(piece, Content))
        return bool(self.calls or "".join(said).strip())


@dataclass
class Spent:
    """What the conversation has cost in this process: the replies' totals, one by one."""

    replies: list[Totals] = field(default_factory=list)

    def total(self, name: str) -> float:
        """The sum of a field of them."""
        return float(sum(getattr(one, name) for one in self.replies))


class Talk:
    """One conversation at a time over one session."""

    def __init__(
        self,
        session: Session,
        begin: Begin,
        toolbox: Toolbox,
        figures: Figures,
        transcript: Transcript,
        thinking_budget: int | None = None,
        context_tokens: int | None = None,
    ) -> None:
        self.session = session
        self.toolbox = toolbox
        self.transcript = transcript
        self.spent = Spent()
        self.unanswered: str | None = None
        """What the user said last, where it was taken back."""
        self._begin = begin
        self._figures = figures
        self._budget = thinking_budget
        self._context = context_tokens

    def say(self, text: str, face: Face) -> str:
        """A turn: the user's words, and all rounds of the reply; returns why the last one ended
        (as ``Step.finish_reason``, or ``tool_calls``, or ``interrupt``).

        Raises:
            FlashMoeError: it has failed, and was taken back.
        """
        messages = self.transcript.messages
        before = len(messages)
        messages.append({"role": "user", "content": text})
        self.unanswered = None
        try:
            finish = self._rounds(face)
        except BaseException:  # whatever it is: the transcript is written next
            del messages[before:]
            self.unanswered = text
            raise
        if len(messages) == before + 1:
            del messages[before:]
            self.unanswered = text
            face.note("stopped before a word was said: the turn is taken back, /retry asks again")
        return finish

    def retry(self, face: Face) -> str:
        """The last turn once more.

        Raises:
            InputError: there is none.
            FlashMoeError: as for :meth:`say`.
        """
        said = self.unanswered if self.unanswered is not None else self.transcript.take_back()
        if said is None:
            raise InputError("there is nothing to ask again: nothing has been said yet")
        return self.say(said, face)

    def begin_anew(self, transcript: Transcript | None = None) -> None:
        """Leave the conversation for another one; None begins one under the same conditions."""
        old = self.transcript
        self.transcript = transcript or Transcript(old.store, old.system, old.thinking, old.tools)
        self.unanswered = None
        self.spent = Spent()

    def turn(self, *extra: Message, tool_choice: ToolChoice = "auto") -> Turn:
        """What is asked of the model now, with ``extra`` messages at the end."""
        return Turn(
            messages=(*self.transcript.asked(), *extra),
            tools=self.toolbox.definitions,
            tool_choice=tool_choice,
            thinking=self.transcript.thinking,
            thinking_budget=None if self.transcript.thinking is False else self._budget,
        )

    def last_reasoning(self) -> str:
        """What the last reply that reasoned was reasoned from; empty where none did."""
        for message in reversed(self.transcript.messages):
            if message["role"] == "user":
                break
            if message.get("reasoning_content"):
                return str(message["reasoning_content"])
        return ""

    def _rounds(self, face: Face) -> str:
        for left in range(ROUNDS, -1, -1):
            if not left:
                face.note(f"{ROUNDS} rounds of calls: the model has to answer now")
            heard = self._hear(face, "auto" if left else "none")
            if not heard.pieces and heard.finish == "interrupt":
                return heard.finish
            self._keep(heard)
            if not self._use(heard, face):
                return heard.finish
        return heard.finish

    def _hear(self, face: Face, tool_choice: ToolChoice) -> Heard:
        """One reply, shown as it comes."""
        heard = Heard()
        choice = tool_choice if self.toolbox.on else "auto"
        with stopping(self.session) as stop, face.hearing() as listener:
            try:
                self._listen(choice, heard, face, listener, stop)
            except CancelledError:
                if not stop.asked:
                    raise
            except KeyboardInterrupt:
                pass  # the second: what has come stays all the same
        if heard.pieces and heard.finish == "interrupt":
            face.note("stopped here; /retry asks again")
        elif heard.steps and heard.finish != "interrupt" and not heard.says_anything:
            face.note("the reply has no text; /retry asks again")
        if heard.steps:
            self.spent.replies.append(Totals.of(heard.steps))
            face.figures(self._figures(heard.steps, heard.finish))
        return heard

    def _listen(
        self, choice: ToolChoice, heard: Heard, face: Face, listener: Listener, stop: Stop
    ) -> None:
        """Have the reply come, to its end or until it is stopped."""
        with ExitStack() as reading:
            told = reading.enter_context(face.reading())
            spoken = self._begin(self.turn(tool_choice=choice), told)
            try:
                if stop.asked:  # before the session had a reply that could be cancelled
                    return
                for beat in spoken:
                    reading.close()  # the prompt is done
                    heard.steps.append(beat.step)
                    heard.pieces += beat.pieces
                    listener.heard(beat.pieces, withheld=spoken.withholding)
                    if stop.asked:
                        return
                heard.finish = spoken.finish_reason or "stop"
            finally:
                spoken.close()

    def _keep(self, heard: Heard) -> None:
        """Put the reply into the transcript."""
        numbers = self._numbers(len(heard.calls))
        message = reply_of(heard.pieces, numbers, cut=heard.finish == "interrupt")
        self.transcript.messages.append(message)

    def _use(self, heard: Heard, face: Face) -> bool:
        """Answer every call; returns whether the model is to go on from there."""
        stopped = heard.finish == "interrupt"
        for number, call in zip(self._numbers(len(heard.calls)), heard.calls, strict=True):
            result = NOT_RUN
            try:
                if not stopped:
                    face.called(call)
                    result = self.toolbox.answer(call)
                    face.answered(call, result)
            except KeyboardInterrupt:
                stopped, heard.finish, result = True, "interrupt", BROKEN_OFF
                face.note(f"{call.name} is {BROKEN_OFF}")
            self.transcript.messages.append(result_of(number, call, result))
        if heard.finish == "length":
            face.note(self._cut_short())
        return bool(heard.calls) and not stopped

    def _cut_short(self) -> str:
        """Why a reply ended before its end."""
        if self._context is not None and len(self.session.ids) >= self._context:
            return (
                f"the reply was cut: the context of {counted(self._context, 'token')} is full; "
                "/clear begins anew, and a start with --context plans a longer one"
            )
        return "the reply was cut: it has as many tokens as --max-tokens allows"

    def _numbers(self, count: int) -> list[str]:
        """Names for the next calls."""
        answered = sum(message["role"] == "tool" for message in self.transcript.messages)
        return [f"call_{answered + n + 1}" for n in range(count)]
