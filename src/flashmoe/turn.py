"""A turn of a conversation: what is asked of the model, and the reply as it comes.

Owns the way from messages to ids and from ids to pieces, the same for every face; does not own
any face's own form of messages (``apps``), nor the timeline (``session``), the markup
(``text.syntax``) or what may be written (``text.grammar``).

    reply = Reply(engine, session, Turn(messages), engine.sampling(max_tokens=512))
    for beat in reply:
        show(beat.pieces)
    reply.finish_reason, reply.usage

Invariant: a reply is the same whatever the session held before. What the session has of the
prompt already does not pass again.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from flashmoe.errors import ContextError, InputError, TemplateError
from flashmoe.options import Sampling
from flashmoe.text.explained import explained
from flashmoe.text.forms import Form as Form
from flashmoe.text.forms import JsonSchema as JsonSchema
from flashmoe.text.forms import Named as Named
from flashmoe.text.forms import Regex as Regex
from flashmoe.text.forms import ToolChoice as ToolChoice
from flashmoe.text.guide import Guide
from flashmoe.text.length import check_length
from flashmoe.text.parser import ReplyParser
from flashmoe.text.pieces import Call, Piece
from flashmoe.text.syntax import Syntax
from flashmoe.text.template import Segment

if TYPE_CHECKING:
    from flashmoe.engine import Engine
    from flashmoe.progress import OnProgress, Progress
    from flashmoe.session import Session
    from flashmoe.step import Step


@dataclass(frozen=True)
class Turn:
    """What is asked: a conversation, and what the reply to it may be.

    ``messages`` are in the form that chat templates take (``text.template``): role, content,
    reasoning_content, tool_calls with ``arguments`` as objects, tool_call_id. ``tools`` are
    ``{"type": "function", "function": {name, description, parameters}}``. ``thinking`` None
    leaves the template's own default. ``thinking_budget``: after so many tokens of reasoning it is
    closed; None lets it take as many as it wants. ``form`` binds the answer; reasoning before it
    and calls instead of it stay free. ``constrained`` False lets the model write calls as it
    will: what is none then becomes content. ``continues``: the last message is the beginning of
    the reply, which goes on from its last character; white space at its end does not count.
    """

    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    tool_choice: ToolChoice = "auto"
    parallel_calls: bool = True
    thinking: bool | None = None
    thinking_budget: int | None = None
    form: Form | None = None
    constrained: bool = True
    continues: bool = False


@dataclass(frozen=True)
class Plain:
    """A text, or ids, to be continued as they stand: no template, nothing read into the reply."""

    text: str | tuple[int, ...]


FinishReason: TypeAlias = Literal["stop", "length", "tool_calls"]
"""The reply came to its end or to a stop string, to its bound, or to calls that want results."""


@dataclass(frozen=True)
class Usage:
    """Tokens of a turn: of the prompt, those of it that were known already, of the reply with its
    markup, and those of it that are reasoning."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int


@dataclass(frozen=True)
class Beat:
    """One token of a reply: what it cost, and the pieces that it has completed, often none."""

    step: Step
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Opening:
    """A turn as ids, checked against the engine that is to reply.

    ``marks`` are numbers of ids after which other conversations are likely to go on differently;
    ``thinking`` says that the reply begins inside reasoning. The ``guide`` of what is bound serves
    one reply, and so does the opening then.
    """

    turn: Turn | Plain
    ids: tuple[int, ...]
    marks: tuple[int, ...] = ()
    thinking: bool = False
    guide: Guide | None = None

    @classmethod
    def of(cls, engine: Engine, turn: Turn | Plain) -> Opening:
        """Render, encode and compile; nothing passes through the model. Safe in any thread.

        Raises:
            InputError: the turn contradicts itself, or asks for what the store cannot do.
            TemplateError: the template rejects the conversation.
            ContextError: the prompt leaves no room for a reply.
            BudgetError: the memory has no room for what binds replies.
        """
        opening = _plain(engine, turn) if isinstance(turn, Plain) else _rendered(engine, turn)
        room = engine.plan.context_tokens
        if len(opening.ids) > room:
            raise ContextError(
                f"the prompt has {len(opening.ids)} tokens and the context {room}: shorten it, or "
                "plan a longer context with --context"
            )
        return opening


def _plain(engine: Engine, turn: Plain) -> Opening:
    if isinstance(turn.text, str):
        check_length(
            engine.tokenizer, [Segment(turn.text, markup=True)], engine.plan.context_tokens
        )
        ids = tuple(engine.tokenizer.encode(turn.text))
    else:
        ids, size = turn.text, engine.shape.vocabulary
        for number in ids:
            if not 0 <= number < size:
                raise InputError(f"token id {number} is outside the vocabulary of {size}")
    if not ids:
        raise InputError("the prompt is empty: give some text")
    return Opening(turn, ids)


def _rendered(engine: Engine, turn: Turn) -> Opening:
    _check(engine, turn)
    segments = _continued(engine, turn) if turn.continues else segments_of(engine, turn)
    tokenizer = engine.tokenizer
    check_length(tokenizer, segments, engine.plan.context_tokens)
    ids = tuple(tokenizer.encode_segments(segments))
    marks = []
    for other in _others(engine, turn):
        shared = _shared(segments, other)
        if 0 < len(shared) < len(segments):
            marks.append(len(tokenizer.encode_segments(shared)))
    thinking = not turn.continues and engine.syntax.starts_thinking(segments)
    guide = _guide(engine, turn, thinking=thinking)
    return Opening(turn, ids, tuple(sorted(set(marks))), thinking, guide)


def _guide(engine: Engine, turn: Turn, *, thinking: bool) -> Guide | None:
    """What binds the reply; None, and no memory for it, where nothing does."""
    binds = turn.tools and (turn.constrained or turn.tool_choice != "auto")
    if not binds and turn.form is None and turn.thinking_budget is None:
        return None
    return engine.grammars.guide(
        tools=turn.tools,
        tool_choice=turn.tool_choice,
        parallel_calls=turn.parallel_calls,
        thinking=thinking,
        thinking_budget=turn.thinking_budget,
        form=turn.form,
        constrained=turn.constrained,
    )


def _check(engine: Engine, turn: Turn) -> None:
    """Refuse what contradicts itself, or what this store has no words for."""
    names = [str(tool.get("function", {}).get("name")) for tool in turn.tools]
    if isinstance(turn.tool_choice, Named) and turn.tool_choice.name not in names:
        raise InputError(
            f"tool_choice names {turn.tool_choice.name!r}, which is not among the tools "
            f"({', '.join(names) or 'there are none'})"
        )
    if turn.tool_choice == "required" and not names:
        raise InputError("tool_choice wants a call, and there are no tools: give some")
    if (turn.thinking or turn.thinking_budget is not None) and not engine.syntax.think_close:
        raise InputError(
            "reasoning is asked for, and the chat template has no mark for it: leave it out"
        )
    if turn.continues and (turn.thinking or turn.form is not None):
        raise InputError(
            "a reply that goes on from a given beginning can neither reason first nor be bound to "
            "a form: leave out the one or the other"
        )


def segments_of(engine: Engine, turn: Turn, **more: Any) -> list[Segment]:
    """The prompt as the store's chat template writes it, with ``more`` variables for that."""
    messages, tools = turn.messages, turn.tools
    if tools and not engine.template.takes_tools:
        messages, tools = explained(messages, tools), ()
    return engine.template.render(
        messages, tools=tools or None, enable_thinking=turn.thinking, **more
    )


def default_thinking(engine: Engine) -> bool:
    """Whether the model reasons before it answers where ``Turn.thinking`` leaves that open.

    A template says so by opening the reasoning, or by closing it only when it is switched off.
    """
    if not engine.syntax.think_close:
        return False
    asked = Turn(({"role": "user", "content": "-"},))
    open_ended, off = (
        segments_of(engine, replace(asked, thinking=value)) for value in (None, False)
    )
    return engine.syntax.starts_thinking(open_ended) or open_ended != off


_MARK = "\ue000"  # a private character: it stands where no text can be mistaken for its place


def _continued(engine: Engine, turn: Turn) -> list[Segment]:
    """The prompt up to the end of its last message."""
    last = turn.messages[-1] if turn.messages else {}
    content = last.get("content")
    if last.get("role") != "assistant" or not isinstance(content, str) or last.get("tool_calls"):
        raise InputError("the reply can go on from an assistant's text alone, as the last message")
    mark = _MARK
    while mark in content:
        mark += _MARK
    marked = replace(turn, messages=(*turn.messages[:-1], {**last, "content": content + mark}))
    segments = segments_of(engine, marked, add_generation_prompt=False)
    for index in range(len(segments) - 1, -1, -1):
        before, found, _ = segments[index].text.rpartition(mark)
        if found and not segments[index].markup:
            kept = before.rstrip()
            return [*segments[:index], *([Segment(kept, markup=False)] if kept else [])]
    raise TemplateError("the chat template leaves out the beginning that the reply should have")


def _others(engine: Engine, turn: Turn) -> Iterator[list[Segment]]:
    """Renderings of conversations that this one is likely to be followed by.

    Another one with the same tools and system message; and this one's next turn, which has the
    reply in the place where a prompt for it stands now.
    """
    fixed = tuple(takewhile(lambda one: one.get("role") in ("system", "developer"), turn.messages))
    opening = replace(turn, messages=(*fixed, {"role": "user", "content": _MARK}), continues=False)
    for other, asks in ((opening, True), (turn, False)):
        if (other is opening and not (fixed or turn.tools)) or turn.continues:
            continue
        try:
            yield segments_of(engine, other, add_generation_prompt=asks)
        except TemplateError:
            continue  # it takes no such conversation, so none will come


def _shared(here: Sequence[Segment], there: Sequence[Segment]) -> list[Segment]:
    """What both begin with."""
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(here, there, strict=False))
    return [segment for segment, _ in pairs]


class Reply:
    """The reply to one turn, as the session's next; iterate over it once.

    The session's timeline becomes the prompt's: what it has of it already stays, and what it has
    besides goes. So a session can serve one conversation, or one after the other.
    """

    def __init__(
        self,
        engine: Engine,
        session: Session,
        turn: Turn | Plain | Opening,
        sampling: Sampling,
        on_progress: OnProgress | None = None,
    ) -> None:
        """``sampling.stop`` ends the answer where it says so, and counts nowhere else.

        ``on_progress`` hears of the prompt, as for :meth:`Session.generate`.

        Raises:
            InputError, ContextError: as for :meth:`Opening.of`; before anything passes.
        """
        opening = turn if isinstance(turn, Opening) else Opening.of(engine, turn)
        self.prompt_tokens = len(opening.ids)
        self.finish_reason: FinishReason | None = None
        self.stop_sequence: str | None = None
        self._stop_ids = engine.stop_ids
        self._turn = asked = opening.turn if isinstance(opening.turn, Turn) else None
        self._parser = ReplyParser(
            engine.tokenizer,
            engine.syntax if asked else Syntax(),
            asked.tools if asked else (),
            thinking=opening.thinking,
            stop=sampling.stop,
        )
        self._told = on_progress
        self._cached = self._completion = self._reasoning = self._calls = 0
        kept = _go_back(session, opening.ids)
        steps = session.generate(
            opening.ids[kept:],
            replace(sampling, stop=()),
            marks=[mark - kept for mark in opening.marks if mark > kept],
            guide=opening.guide,
            on_progress=self._progress,
        )
        self._steps = cast("Generator[Step]", steps)

    @property
    def usage(self) -> Usage:
        """What the turn has cost so far."""
        return Usage(self.prompt_tokens, self._cached, self._completion, self._reasoning)

    @property
    def withholding(self) -> bool:
        """Whether a call is being written, of which nothing comes until it is whole."""
        return self._parser.withholding

    def close(self) -> None:
        """End the reply here; what has passed stays in the session."""
        self._steps.close()

    def __iter__(self) -> Iterator[Beat]:
        """A beat a token. :attr:`finish_reason` is there with the last one.

        Raises:
            ReadError, CancelledError: as for :meth:`Session.generate`.
        """
        try:
            for step in self._steps:
                pieces = tuple(self._read(step))
                if self.finish_reason is not None:
                    self.close()  # where it was not the session's own end
                yield Beat(step, pieces)
                if self.finish_reason is not None:
                    return
        finally:
            self.close()

    def _read(self, step: Step) -> list[Piece]:
        self._completion += 1
        parser, pieces = self._parser, []
        if step.id not in self._stop_ids:
            self._reasoning += parser.thinking
            pieces = parser.push(step.id)
        if step.finish_reason is not None and parser.stopped is None:
            pieces += parser.finish(cut=step.finish_reason == "length")
        pieces = self._counted(pieces)
        if parser.stopped is not None:
            self.finish_reason, self.stop_sequence = "stop", parser.stopped
        elif step.finish_reason == "length":
            self.finish_reason = "length"
        elif step.finish_reason is not None or self._is_enough():
            self.finish_reason = "tool_calls" if self._calls else "stop"
        return pieces

    def _counted(self, pieces: list[Piece]) -> list[Piece]:
        """Without what follows the only call that there may be."""
        kept: list[Piece] = []
        for piece in pieces:
            if self._is_enough():
                break
            kept.append(piece)
            self._calls += isinstance(piece, Call)
        return kept

    def _is_enough(self) -> bool:
        return bool(self._calls and self._turn and not self._turn.parallel_calls)

    def _progress(self, progress: Progress) -> None:
        passing = progress.total_tokens - progress.cached_tokens
        self._cached = max(self.prompt_tokens - passing, 0)
        if self._told is not None:
            self._told(progress)


def _go_back(session: Session, ids: Sequence[int]) -> int:
    """Take back what the timeline has besides the prompt; how many ids of it stay.

    All but the last token have gone into the state, which cannot be taken apart: where they
    differ the timeline begins anew, and a prefix cache finds what it has of it.
    """
    held = session.ids
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(held, ids, strict=False)))
    if same == len(held):
        return same
    same = same if same == len(held) - 1 else 0
    session.rewind(same)
    return same
