"""A reply to pieces: reasoning, content and calls, id by id.

Owns what each mark means where it stands, and which white space is markup; not the finding of marks
(``text.scanner``) nor the form of a call's body (``text.call_xml``, ``text.call_json``). Invariant:
however ids cut a text, the pieces, joined, are the same; nothing but marks, the white space around
them, what follows a stop string and half a call at the end of a cut reply is lost: what is no call
comes out as it was written.

Which marks count:

- ``</think>`` ends open reasoning. ``<think>`` begins some before there is any content, and is
  dropped where the reply already began inside.
- ``<tool_call>`` begins a call where tools were given; without tools it is text. In open reasoning
  it ends that, unless what follows turns out to be no call.
- A call ends with its closing mark, with the next call's opening one, or with the reply. Without
  its closing mark its body must be complete. By id a mark is one wherever it stands; by text it
  is none inside a value of the call.
- A call that the bound of the reply cuts short is left out, unless its body can be none: half a
  call is no use to anybody, and its markup no content.
- A call of a tool that was not offered is a call all the same: hosts answer it.
- White space around marks is markup; between content before and content after a call, what stood
  before the call stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

from flashmoe.text import call_json, call_xml
from flashmoe.text.arguments import schemas_of
from flashmoe.text.detokenizer import Vocabulary
from flashmoe.text.pieces import Call, Content, Piece, Reasoning
from flashmoe.text.scanner import Atom, Scanner
from flashmoe.text.stops import Stops
from flashmoe.text.syntax import CallForm, Mark, Syntax


class _Openness(Protocol):
    inside: bool

    def read(self, text: str) -> None: ...


@dataclass(frozen=True)
class _Form:
    """How the body of a call is read."""

    read_calls: Callable[..., tuple[list[Call], str]]
    is_begun: Callable[[str], bool]
    openness: type[_Openness]


_FORMS: dict[CallForm, _Form] = {
    "xml": _Form(call_xml.read_calls, call_xml.is_begun, call_xml.Openness),
    "json": _Form(call_json.read_calls, call_json.is_begun, call_json.Openness),
}


class _Body:
    """What was written of a call; ``in_reasoning``: its opening mark stood in open reasoning."""

    def __init__(self, openness: _Openness, *, in_reasoning: bool) -> None:
        self.parts: list[str] = []
        self.in_reasoning = in_reasoning
        self._openness = openness
        self._known = 0  # parts that openness has read

    def inside_value(self) -> bool:
        """Whether what was written so far ends inside a value."""
        self._openness.read("".join(self.parts[self._known :]))
        self._known = len(self.parts)
        return self._openness.inside


class _Prose:
    """Reasoning or content without the white space that is markup.

    ``bare``: markup was the last that stood here, so that white space is markup too.
    ``holds``: a call may follow, which makes markup of white space before it.
    """

    def __init__(self, *, bare: bool, holds: bool) -> None:
        self.begun = False
        self.bare = bare
        self._holds = holds
        self._gap = ""  # white space after the text so far, which is text if more follows
        self._after = ""  # white space after markup, for where none stood before it

    def push(self, text: str) -> str:
        """What of the text so far is certain to be text."""
        body = text.lstrip()
        lead = text[: len(text) - len(body)]
        if self.bare:
            self._after += lead
        else:
            self._gap += lead
        if not body:
            return "" if self._holds or self.bare or not self.begun else self._given()
        before = (self._gap or self._after) if self.begun or not self.bare else ""
        self.begun, self.bare = True, False
        kept = body.rstrip()
        self._gap, self._after = body[len(kept) :], ""
        return before + kept + ("" if self._holds else self._given())

    def interrupt(self) -> None:
        """A mark stands here."""
        self.bare, self._after = True, ""
        if not self.begun:
            self._gap = ""

    def finish(self) -> str:
        """What was held back: no more follows."""
        return "" if self.bare else self._given()

    def _given(self) -> str:
        gap, self._gap = self._gap, ""
        return gap


class ReplyParser:
    """The pieces of one reply.

    ``thinking``: the reply begins inside reasoning (:meth:`Syntax.starts_thinking`). ``tools`` are
    those of the prompt, by whose schemas arguments are typed. ``stop`` strings count in content
    alone; ``stopped`` is the one met, after which nothing comes any more.
    """

    def __init__(
        self,
        tokenizer: Vocabulary,
        syntax: Syntax,
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        thinking: bool,
        stop: Sequence[str] = (),
    ) -> None:
        """Raises InputError for an empty stop string."""
        calls = syntax.calls if tools else None
        marks = [syntax.think_open, syntax.think_close]
        marks += [syntax.call_open, syntax.call_close] if calls else []
        self._scanner = Scanner(tokenizer, [mark for mark in marks if mark is not None])
        self._syntax = syntax
        self._form = _FORMS[calls or "json"]
        self._schemas = schemas_of(tools)
        self._stops = Stops(stop)
        self._thought = _Prose(bare=True, holds=True)
        self._answer = _Prose(bare=False, holds=calls is not None)
        self._thinking = thinking and syntax.think_close is not None
        self._unclosed = False  # a call ended reasoning: its closing tag may follow
        self._call: _Body | None = None
        self._made: list[Piece] = []

    @property
    def stopped(self) -> str | None:
        """The stop string met in the content."""
        return self._stops.met

    @property
    def thinking(self) -> bool:
        """Whether the reply is inside reasoning."""
        return self._thinking

    @property
    def withholding(self) -> bool:
        """Whether a call is under way: nothing comes until it is whole."""
        return self._call is not None

    def push(self, id: int) -> list[Piece]:
        """The pieces that this id makes final; [] after a stop string."""
        return self._read(self._scanner.push(id))

    def finish(self, *, cut: bool = False) -> list[Piece]:
        """What was held back: the reply ends here.

        Half a character or half a call at the end of a reply that was ``cut`` short is left out.
        """
        pieces = self._read(self._scanner.finish(cut=cut))
        if self._call is not None:
            self._end_call(self._call, None, cut=cut)
        self._answered(self._answer.finish())
        self._made.append(Content(self._stops.flush()))
        return pieces + self._taken()

    def _read(self, atoms: list[Atom]) -> list[Piece]:
        for atom in atoms:
            if self.stopped is None:
                self._meet(atom)
        return self._taken()

    def _meet(self, atom: Atom) -> None:
        if self._call is not None:
            self._in_call(self._call, atom)
        elif isinstance(atom, str):
            self._say(atom)
        elif atom == self._syntax.call_open:
            self._call = _Body(self._form.openness(), in_reasoning=self._thinking)
            self._thinking = False
        elif self._thinking:
            self._in_reasoning(atom)
        else:
            self._in_content(atom)

    def _in_reasoning(self, mark: Mark) -> None:
        if mark == self._syntax.think_close:
            self._thinking = False
            self._thought.interrupt()
            self._answer.interrupt()
        elif mark != self._syntax.think_open or self._thought.begun:
            self._say(mark.text)

    def _in_content(self, mark: Mark) -> None:
        if mark == self._syntax.think_open and not self._answer.begun:
            self._thinking = True
            self._answer.interrupt()
        elif mark == self._syntax.think_close and self._unclosed and self._answer.bare:
            self._unclosed = False
        else:
            self._say(mark.text)

    def _in_call(self, call: _Body, atom: Atom) -> None:
        if isinstance(atom, str):
            call.parts.append(atom)
            return
        ends = atom in (self._syntax.call_open, self._syntax.call_close)
        ends = ends or (call.in_reasoning and atom == self._syntax.think_close)
        if ends and (atom.id is not None or not call.inside_value()):
            self._end_call(call, atom)
        else:
            call.parts.append(atom.text)

    def _end_call(self, call: _Body, mark: Mark | None, *, cut: bool = False) -> None:
        """The call under way ends with a mark, its own or another's, or with the reply, which may
        be ``cut``."""
        self._call = None
        closed = mark is not None and mark == self._syntax.call_close
        calls, rest = self._form.read_calls("".join(call.parts), self._schemas, closed=closed)
        half = cut and self._is_half(rest)
        if calls or half:
            self._unclosed = self._unclosed or call.in_reasoning
            self._thought.interrupt()
            self._made += [Content(self._stops.flush()), *calls]
            self._answer.interrupt()
            self._say("" if half else rest.strip())
        else:
            self._thinking = call.in_reasoning
            opening, closing = self._syntax.call_open, mark if closed else None
            self._say((opening.text if opening else "") + rest + (closing.text if closing else ""))
        if mark is not None and not closed and self.stopped is None:
            self._meet(mark)

    def _is_half(self, rest: str) -> bool:
        """Whether what a reply was cut in is a call that was begun, or the mark that ends one."""
        closing = self._syntax.call_close
        ends = closing is not None and closing.text.startswith(rest.strip())
        return ends or self._form.is_begun(rest)

    def _say(self, text: str) -> None:
        """Text that is no markup, white space at its ends aside."""
        if self._thinking:
            self._made.append(Reasoning(self._thought.push(text)))
        else:
            self._answered(self._answer.push(text))

    def _answered(self, text: str) -> None:
        self._made.append(Content(self._stops.push(text)))

    def _taken(self) -> list[Piece]:
        """What was made since the last time, neighbours of one kind joined."""
        made, self._made = self._made, []
        pieces: list[Piece] = []
        for kind, alike in groupby(filter(_says, made), key=type):
            if kind is Call:
                pieces += alike
            else:
                text = "".join(piece.text for piece in alike if not isinstance(piece, Call))
                pieces.append(Reasoning(text) if kind is Reasoning else Content(text))
        return pieces


def _says(piece: Piece) -> bool:
    return isinstance(piece, Call) or bool(piece.text)
