"""What one reply may say next: which tokens, from its first to its last.

Owns the way of a reply through thinking, answer and calls, a stage at a time, and the thread in
which masks are made; not the grammars (``text.grammar``) nor the choice of a token (``sampler``).
Invariant: a mask never shuts out every token, and a token that may end the reply is in it only
where the reply may end. A reply that is cut for its length ends anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from typing import Protocol

import llguidance
import numpy as np
from numpy.typing import NDArray

from flashmoe.errors import ClosedError, InputError
from flashmoe.text.reasons import plain

Mask = NDArray[np.bool_]
"""(vocabulary,): whether each token may come next."""


class Stage(Protocol):
    """A stretch of a reply. ``ready``: its mask takes no time worth mentioning."""

    @property
    def name(self) -> str: ...  # for messages

    @property
    def ready(self) -> bool: ...

    def mask(self) -> Mask | None: ...

    def accept(self, id: int) -> Stage: ...


class Guide:
    """The guide of one reply, in the hands of one thread.

    Between :meth:`accept` and :meth:`mask` the next mask is made in another thread, while the
    model computes.
    """

    def __init__(self, first: Stage, workers: Executor) -> None:
        self._stage, self._workers = first, workers
        self._made: Future[Mask | None] | None = None
        self._taken = False
        self._make(None)

    def take(self) -> None:
        """Claim the guide for a reply.

        Raises InputError the second time: its state is that of one reply.
        """
        if self._taken:
            raise InputError("this guide has served a reply: make another one for the next")
        self._taken = True

    def mask(self) -> Mask | None:
        """(vocabulary,) of the tokens that may come next; None where all may.

        Raises InputError where the grammar turns out to be too complex, or leaves nothing.
        """
        return self._stage.mask() if self._made is None else self._made.result()

    def accept(self, id: int) -> None:
        """Go on behind this token, which the last mask has to admit."""
        if self._made is not None:
            self._made.result()  # whoever draws without looking must not be in its way
        self._make(id)

    def _make(self, id: int | None) -> None:
        if id is not None and self._stage.ready:
            self._stage, id = self._stage.accept(id), None
        self._made = None
        if id is not None or not self._stage.ready:
            try:
                self._made = self._workers.submit(self._advanced, id)
            except RuntimeError:  # the executor's word for it
                raise ClosedError("the engine of this guide is closed: open it again") from None

    def _advanced(self, id: int | None) -> Mask | None:
        if id is not None:
            self._stage = self._stage.accept(id)
        return self._stage.mask()


@dataclass(frozen=True)
class Free:
    """Anything goes, but for what ``allowed`` lacks. ``opens`` are tokens that begin a stage."""

    name = "text"
    ready = True
    allowed: Mask | None
    opens: Mapping[int, Callable[[], Stage]]

    def mask(self) -> Mask | None:
        return self.allowed

    def accept(self, id: int) -> Stage:
        begin = self.opens.get(id)
        return self if begin is None else begin()


@dataclass(frozen=True)
class Ended:
    """Only the end of the reply may follow."""

    name = "the end"
    ready = True
    stops: Mask

    def mask(self) -> Mask:
        return self.stops

    def accept(self, id: int) -> Stage:
        return self


@dataclass(frozen=True)
class Forced:
    """One token after another is given; then ``after`` begins."""

    name = "text that is given"
    ready = True
    ids: tuple[int, ...]
    size: int
    after: Callable[[], Stage]

    def mask(self) -> Mask:
        return only(self.ids[:1], self.size)

    def accept(self, id: int) -> Stage:
        return replace(self, ids=self.ids[1:]) if self.ids[1:] else self.after()


class Bound:
    """A grammar decides. Behind its end ``after`` begins; without one, the reply may end where
    the grammar may."""

    ready = False

    def __init__(
        self,
        name: str,
        matcher: llguidance.LLMatcher,
        size: int,
        after: Callable[[], Stage] | None = None,
    ) -> None:
        self.name, self._matcher, self._size, self._after = name, matcher, size, after

    def mask(self) -> Mask:
        words = np.zeros(-(-self._size // 32), np.int32)
        self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        self._check()
        bits = np.unpackbits(words.view(np.uint8), count=self._size, bitorder="little")
        found = bits.view(np.bool_)
        if not found.any():
            raise InputError(f"{self.name} cannot go on: no token that may come next is left")
        return found

    def accept(self, id: int) -> Stage:
        self._matcher.consume_token(id)
        self._check()
        if self._after is not None and self._matcher.is_accepting():
            return self._after()
        return self

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = plain(self._matcher.get_error())
            raise InputError(f"{self.name} cannot go on: {reason}")


OVERTIME = 3
"""Tokens that a character takes after its first, at most; bytes that go on are none."""


@dataclass(frozen=True)
class Thought:
    """How thinking may go and end.

    ``ends`` are tokens that end it, with what begins then; ``closed`` tells the same of a token
    where the tag is text. After ``budget`` tokens (None: never) ``closing`` is given instead, or
    up to :data:`OVERTIME` later: not before ``whole`` says that the tokens so far end between two
    characters. ``allowed`` are the tokens of thinking.
    """

    allowed: Mask | None
    ends: Mapping[int, Callable[[], Stage]]
    budget: int | None
    closing: Forced
    closed: Callable[[int], bool] | None
    after: Callable[[], Stage]
    whole: Callable[[int], bool]


@dataclass(frozen=True)
class Thinking:
    """Reasoning, free until it ends or has taken its budget. ``inner`` guards it where its marks
    are text and what follows is bound."""

    name = "reasoning"
    thought: Thought
    tokens: int = 0
    inner: Bound | None = None
    whole: bool = True

    @property
    def ready(self) -> bool:
        return self.inner is None

    def mask(self) -> Mask | None:
        return self.thought.allowed if self.inner is None else self.inner.mask()

    def accept(self, id: int) -> Stage:
        thought = self.thought
        if (begin := thought.ends.get(id)) is not None:
            return begin()
        if self.inner is not None:
            after = self.inner.accept(id)
            if after is not self.inner:
                return after
        elif thought.closed is not None and thought.closed(id):
            return thought.after()
        return replace(self, tokens=self.tokens + 1, whole=thought.whole(id)).begun()

    def begun(self) -> Stage:
        """This stage, or the end of it where the budget is spent."""
        if self.thought.budget is None:
            return self
        over = self.tokens - self.thought.budget
        return self.thought.closing if over >= (0 if self.whole else OVERTIME) else self


def only(ids: tuple[int, ...], size: int) -> Mask:
    """A mask of just these."""
    mask = np.zeros(size, np.bool_)
    mask[list(ids)] = True
    return mask


def all_but(ids: frozenset[int], size: int) -> Mask | None:
    """A mask of all others; None where there is nothing to shut out."""
    barred = [id for id in ids if id < size]
    if not barred:
        return None
    mask = np.ones(size, np.bool_)
    mask[barred] = False
    return mask
