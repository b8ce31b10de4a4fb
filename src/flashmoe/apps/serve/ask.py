"""What a request of any API comes to, and what comes of it: the waist of the server.

Owns the records between the APIs' own forms and the engine. An API is one module that knows its
form and nothing of sockets, threads or engines, and ends with an :class:`Endpoint` for each of its
paths, which ``endpoints`` lists. What such a module has, all of it pure:

- ``read(body) -> Ask``: a JSON object to a :class:`~flashmoe.turn.Turn` (or
  :class:`~flashmoe.turn.Plain`) and overrides of the store's sampling. It raises
  :class:`BadRequest`, which names the parameter, for what is unknown, unsupported or out of range;
  ``fields`` does most of that from a table. What needs the store (the template's refusal, a
  prompt that is too long, a schema that cannot be held to, a model of another name) is checked
  later, by others.
- ``whole(ask, head, outcome) -> dict``: the body of a reply that is not streamed.
- a class of :class:`Events`, made for one streamed reply: ``begin`` once the prompt's size is
  known, ``push`` for what each token has brought, then ``finish`` or ``fail``. What keeps an idle
  connection open, the place in the queue and the progress of a prompt are comments that the
  server writes between events.
- ``refused(refusal) -> dict``: the API's own shape of an error.

Invariant: a request is refused, or every parameter of it has had its effect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from flashmoe.text.pieces import Call, Content, Piece, Reasoning
from flashmoe.turn import FinishReason, Plain, Turn, Usage


class Refusal(Exception):
    """A request that is not answered; ``status`` is HTTP's.

    ``param`` is the parameter at fault, as ``messages[2].content``; ``code`` a word for programs,
    of OpenAI's where that has one. ``retry_after`` are seconds.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after = retry_after


class BadRequest(Refusal):
    """A parameter that is unknown, unsupported or out of range."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(400, message, param=param, code=code)


@dataclass(frozen=True)
class Places:
    """Where a request has the parts of its turn, as paths: what a refusal of one of them names.

    ``schema`` is that of the tool numbered ``{}``. An API that has no such part has no place.
    """

    prompt: str
    schema: str | None = None
    form: str | None = None
    thinking: str | None = None


@dataclass(frozen=True)
class Ask:
    """What is asked of the model.

    ``given`` is the body, checked; some APIs' replies repeat it. ``sampling`` replaces fields of
    the store's own (``Engine.sampling``), ``stop`` and ``logprobs`` among them; what is not given
    is not in it. ``include_usage`` wants the figures in a stream too, where the API leaves that to
    the caller. ``echo`` wants the prompt in :attr:`Outcome.echo`, and ``generates`` False nothing
    besides.
    """

    turn: Turn | Plain
    given: Mapping[str, Any]
    places: Places
    sampling: Mapping[str, Any] = field(default_factory=dict)
    include_usage: bool = True
    echo: bool = False
    generates: bool = True

    @property
    def model(self) -> str:
        """The name of the model that is to reply."""
        return str(self.given["model"])

    @property
    def stream(self) -> bool:
        """Whether the reply is wanted as events."""
        return bool(self.given.get("stream", False))


@dataclass(frozen=True)
class Head:
    """What names a reply: ``id`` is letters and digits that no other reply has, for the API to
    put its prefix before; ``created`` is in seconds since 1970; ``model`` is what serves it."""

    id: str
    created: int
    model: str

    def part(self, index: int) -> str:
        """Letters and digits for a part of the reply (a call, an item), the same every time."""
        return f"{self.id}{index:02}"


@dataclass(frozen=True)
class Token:
    """A token of the content, with its natural logarithm of probability; ``top`` has
    alternatives in falling order, themselves without any. ``data`` are its bytes, which need not be
    whole characters; ``text`` is what they spell, U+FFFD for what is none."""

    id: int
    text: str
    data: bytes
    logprob: float
    top: tuple[Token, ...] = ()


@dataclass(frozen=True)
class Spoken:
    """What one token has brought, or several: pieces in order, none of them empty, and, where
    ``logprobs`` was asked for, the tokens that the content of them is made of."""

    pieces: tuple[Piece, ...]
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True)
class Echo:
    """A prompt as text and, where ``logprobs`` was asked for, its tokens. Before the first there
    is nothing that it could follow from: its ``logprob`` is NaN, and it has no ``top``."""

    text: str
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """A whole reply: its pieces in order, neighbours of one kind joined; why it ended, and by
    which stop string; what it cost; ``tokens`` of the content, where ``logprobs`` asked for it;
    the prompt, where it is wanted back."""

    pieces: tuple[Piece, ...]
    finish_reason: FinishReason
    stop_sequence: str | None
    usage: Usage
    tokens: tuple[Token, ...] = ()
    echo: Echo | None = None

    @property
    def reasoning(self) -> str:
        """All reasoning."""
        return "".join(one.text for one in self.pieces if isinstance(one, Reasoning))

    @property
    def content(self) -> str:
        """All content."""
        return "".join(one.text for one in self.pieces if isinstance(one, Content))

    @property
    def calls(self) -> tuple[Call, ...]:
        """All calls."""
        return tuple(one for one in self.pieces if isinstance(one, Call))


def joined(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    """The pieces with neighbouring reasoning, and neighbouring content, put together."""
    whole: list[Piece] = []
    for piece in pieces:
        last = whole[-1] if whole else None
        if isinstance(piece, Reasoning) and isinstance(last, Reasoning):
            whole[-1] = Reasoning(last.text + piece.text)
        elif isinstance(piece, Content) and isinstance(last, Content):
            whole[-1] = Content(last.text + piece.text)
        else:
            whole.append(piece)
    return tuple(whole)


@dataclass(frozen=True)
class Event:
    """One event of a stream: its data, a JSON object or a word as it stands, and its name."""

    data: Mapping[str, Any] | str
    name: str | None = None


class Events(Protocol):
    """A streamed reply in an API's own events; one object a reply, called from one thread.

    ``begin`` is called once, ``push`` any number of times, then ``finish`` or ``fail`` once;
    ``fail`` may come before ``begin``.
    """

    def __init__(self, ask: Ask, head: Head) -> None: ...

    def begin(self, prompt_tokens: int, cached_tokens: int) -> list[Event]: ...

    def push(self, spoken: Spoken) -> list[Event]: ...

    def finish(self, outcome: Outcome) -> list[Event]: ...

    def fail(self, refusal: Refusal) -> list[Event]: ...


@dataclass(frozen=True)
class Endpoint:
    """A path to which a request is POSTed, and how its API is spoken.

    ``schema`` is the JSON Schema of the body, for the OpenAPI document. ``counted``, where it is
    there, makes the reply from the number of the prompt's tokens, and nothing is generated.
    ``ping`` goes out with the comments that keep a stream open, once it has begun, where an API
    has an event for that. ``versions`` are a header and what it may say, where an API names its
    version in one; a request without it is taken.
    """

    path: str
    schema: Mapping[str, Any]
    read: Callable[[Mapping[str, Any]], Ask]
    refused: Callable[[Refusal], dict[str, Any]]
    whole: Callable[[Ask, Head, Outcome], dict[str, Any]] | None = None
    events: type[Events] | None = None
    counted: Callable[[int], dict[str, Any]] | None = None
    ping: Event | None = None
    versions: tuple[str, tuple[str, ...]] | None = None


EFFORTS: Mapping[str, tuple[bool, int | None]] = {
    "none": (False, None),
    "minimal": (True, 256),
    "low": (True, 1024),
    "medium": (True, 4096),
    "high": (True, None),
    "xhigh": (True, None),
    "max": (True, None),
}
"""What a reasoning effort comes to: ``Turn.thinking`` and ``Turn.thinking_budget``."""
