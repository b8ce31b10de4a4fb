"""Session: one timeline over a loaded engine.

Owns the tokens; their state is the model's. A pass that ends early (a read error, an interrupt, a
cancel) leaves the timeline as it was before the chunk at hand: earlier chunks and every token that
was yielded stay.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flashmoe import snapshot as snapshots
from flashmoe.errors import CancelledError, InputError
from flashmoe.model.decoder import Between
from flashmoe.options import Sampling, check_types
from flashmoe.prefix.trail import Trail
from flashmoe.progress import Journey, OnProgress
from flashmoe.quant import Array
from flashmoe.sampler import Choice, Sampler
from flashmoe.snapshot import Snapshot
from flashmoe.step import Finish, Step, step_of
from flashmoe.stream.counters import Counters
from flashmoe.stream.direct import busy_ms
from flashmoe.text.detokenizer import Detokenizer
from flashmoe.text.guide import Guide

if TYPE_CHECKING:
    from flashmoe.engine import Engine


HEAD_TOKENS = 12
"""Tokens whose logits are computed at once: what drawing a token takes holds as many numbers a
word (``sizes.SAMPLER_FLOATS``), and a whole chunk's would be gigabytes."""


class Session:
    """A timeline: the tokens so far and the model's state after them.

    The last generated token is part of the timeline at once, and passes through the model with
    the next call. One thread uses a session at a time; :meth:`cancel` may come from any other.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        context = engine.plan.context_tokens
        self._state = engine.decoder.state(context, engine.kv)
        self._trail = Trail(engine.prefixes, self._state)
        self._ids: list[int] = []
        self._turn = 0  # of the latest use, so that an older reply cannot go on by mistake
        self._cancelled: int | None = None  # the turn that cancel() ended

    @property
    def ids(self) -> tuple[int, ...]:
        """Every token of the timeline, generated ones included.

        After a call that ended early (ReadError, CancelledError, an interrupt): what was there
        before it, and those of its ids whose chunks had passed. So the rest of a new session's
        prompt is ``prompt[len(session.ids):]``; sent again, it goes on from there.
        """
        return tuple(self._ids)

    def cancel(self) -> None:
        """End the :meth:`logits` or :meth:`generate` at hand; to be called from any thread.

        It raises CancelledError where the next layer would begin, or the next pass where none is
        under way; :attr:`ids` says what stays. A later call is not affected, nor is anything where
        no call is at hand. A reply is at hand from the call of :meth:`generate` to its last step.
        """
        self._cancelled = self._turn

    def logits(self, ids: Sequence[int], *, on_progress: OnProgress | None = None) -> Array:
        """Append ids (T,) and return the logits after each, (T, vocabulary).

        The array belongs to the caller; the engine's budget does not count it. All of ids pass,
        as the logits of each are wanted; a prefix cache keeps them, and only serves the tokens
        before. ``on_progress`` is called at once, after every layer, and when all ids have passed;
        what it raises cancels.

        Raises:
            InputError: no ids, or one outside the vocabulary.
            ContextError: the planned context is too short.
            ReadError: an expert could not be read; the timeline keeps the chunks before.
            CancelledError: by :meth:`cancel` or ``on_progress``; the same.
        """
        vocabulary, dtype = self._engine.shape.vocabulary, self._engine.kernels.dtype
        out, done = np.empty((len(ids), vocabulary), dtype), 0  # where it fails, nothing passes
        for hidden in self.hidden(ids, on_progress=on_progress):
            for rows in range(0, len(hidden), HEAD_TOKENS):
                some = self._engine.head(hidden[rows : rows + HEAD_TOKENS])
                out[done : done + len(some)] = some
                done += len(some)
        return out

    def hidden(
        self, ids: Sequence[int], *, on_progress: OnProgress | None = None
    ) -> Iterator[Array]:
        """Append ids (T,) and pass them, as :meth:`logits` does; yields the final hidden states
        of each in order, (t, hidden) a chunk, of which ``Engine.head`` makes logits.

        For whoever wants something of every token's logits and not all of them at once: those of
        a window are gigabytes. Closing the iterator early cancels what has not passed; using the
        session for something else ends it.

        Raises:
            InputError, ContextError: at once; as for :meth:`logits`.
            ReadError, CancelledError: from the iterator; as for :meth:`logits`.
        """
        if not len(ids):
            raise InputError("there are no ids to pass")
        return self._hidden(self._append(ids), len(ids), self._turn, on_progress)

    def _hidden(
        self, kept: int, count: int, turn: int, on_progress: OnProgress | None
    ) -> Iterator[Array]:
        self._check_turn(turn)
        most = len(self._ids) - count
        for hidden, _ in self._passes(kept, most, turn, on_progress):
            earlier = most - (self._state.position - len(hidden))  # a token that had still to pass
            if earlier < len(hidden):
                yield hidden[max(earlier, 0) :]
            self._check_turn(turn)
        self._trail.ended(self._ids)

    def _check_turn(self, turn: int) -> None:
        if turn != self._turn:
            raise InputError("the session was used for something else: this reply has ended")

    def generate(
        self,
        ids: Sequence[int] = (),
        sampling: Sampling | None = None,
        *,
        marks: Sequence[int] = (),
        guide: Guide | None = None,
        on_progress: OnProgress | None = None,
    ) -> Iterator[Step]:
        """Append ids and generate, a :class:`Step` a token; close the iterator to stop early.

        ``sampling`` None takes the store's own defaults. Without ids the reply goes on where
        the timeline ends. Using the session for something else ends the reply. ``marks`` are
        numbers of ids after which other timelines may go on differently (the end of a system
        prompt, of turns), for a prefix cache to keep the state there. ``guide``
        (``engine.grammars.guide``) says which tokens may come; it serves one reply.
        ``on_progress`` hears of the prompt, as for :meth:`logits`.

        Raises:
            InputError, ContextError: at once; as for :meth:`logits`.
            ReadError, CancelledError: from the iterator; as for :meth:`logits`.
            InputError: from the iterator, where a grammar turns out to be too complex.
        """
        sampling = self._engine.sampling() if sampling is None else sampling
        check_types(sampling=(sampling, Sampling))
        if not len(ids) and not self._ids:
            raise InputError("there is nothing to go on from: the prompt is empty")
        words = self._engine.detokenizer(sampling.stop)
        marked = [_whole("a mark", mark, len(ids)) for mark in marks]
        if guide is not None:
            guide.take()
        kept = self._append(ids)
        self._trail.mark([kept + mark for mark in marked])
        choosing = _Choosing(self._engine.sampler(sampling, self._ids), guide)
        return self._reply(self._turn, kept, len(ids), sampling, choosing, words, on_progress)

    def _reply(
        self,
        turn: int,
        kept: int,
        prompt_tokens: int,
        sampling: Sampling,
        choosing: _Choosing,
        words: Detokenizer | None,
        on_progress: OnProgress | None,
    ) -> Iterator[Step]:
        made, trail = 0, self._trail
        handed = trail.handed_bytes
        while True:
            self._check_turn(turn)
            began, busy = time.perf_counter(), busy_ms()
            passes = self._passes(kept, len(self._ids), turn, on_progress)
            cost = [spent for _, spent in passes]
            cached = trail.cached
            on_progress = None  # the prompt is done
            choice = choosing(self._engine.head(self._state.last)[0])
            self._ids.append(choice.id)
            kept, made = len(self._ids), made + 1
            text, finish = self._finish(choice, words, made, sampling)
            if finish:
                trail.ended(self._ids)
            kept_apart = cached, trail.handed_bytes - handed
            handed = trail.handed_bytes
            try:
                yield step_of(choice, text, finish, prompt_tokens, kept_apart, cost, began, busy)
            except GeneratorExit:
                if turn == self._turn:
                    trail.ended(self._ids)
                raise
            if finish:
                return
            if made == 1 and turn == self._turn:  # not before its first token is out
                trail.ended(self._ids)
            prompt_tokens = 0

    def _finish(
        self, choice: Choice, words: Detokenizer | None, made: int, sampling: Sampling
    ) -> tuple[str, Finish | None]:
        """The text that a token completes, and why the reply ends with it, if it does."""
        finish: Finish | None = None
        text = ""
        if choice.id in self._engine.stop_ids:
            finish = "stop"
        elif words:
            text = words.push(choice.id)
            finish = "stop" if words.stopped is not None else None
        full = self._state.position >= self._state.context_tokens
        if finish is None and (made == sampling.max_tokens or full):
            finish = "length"
        if finish and words and words.stopped is None:
            text += words.finish(cut=finish == "length")
        return text, finish

    def snapshot(self) -> Snapshot:
        """A copy of the timeline, to come back to with :meth:`restore`."""
        state = self._state
        return snapshots.copied(self._engine.key, self._ids, state.position, state.arrays())

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot of this or another session of the same model.

        Raises:
            SessionError: it belongs to another model.
            ContextError: it is longer than the planned context.
        """
        snapshots.check_model("the snapshot", snapshot.model, self._engine.key)
        self._turn += 1
        self._trail.forget()
        self._state.check_length(snapshot.position)  # before room is made for it
        self._engine.reserve(self._state, snapshot.position)
        self._state.assign(snapshot.position, snapshot.arrays)
        self._ids = list(snapshot.ids)

    def save(self, path: str | Path) -> None:
        """Write the timeline to a file.

        Raises:
            SessionError: the file cannot be written.
        """
        state = self._state
        held = Snapshot(self._engine.key, self.ids, state.position, state.arrays())
        with self._engine.lending(self._engine.outlay.copied_bytes(state.position)):
            snapshots.save(Path(path), held)

    def load(self, path: str | Path) -> None:
        """Go on from a file that :meth:`save` wrote, here or in another process.

        Raises:
            SessionError: missing, damaged, or of another model; the session stays as it was.
            ContextError: it is longer than the planned context.
        """
        copied = self._engine.outlay.copied_bytes(self._state.context_tokens)
        with (
            self._engine.lending(copied),
            snapshots.opened(Path(path), self._engine.key) as stored,
        ):
            self.restore(stored)

    def rewind(self, tokens: int) -> None:
        """Go back to the first ``tokens`` of the timeline.

        Their state cannot be taken apart: with the next call it comes from the longest prefix that
        a prefix cache has kept, and what that lacks passes again.

        Raises:
            InputError: no whole number, or the timeline is not so long.
        """
        tokens = _whole("the number of tokens to go back to", tokens, len(self._ids))
        self._turn += 1
        del self._ids[tokens:]
        if tokens < self._state.position:
            self._trail.forget()
            self._state.clear()

    def _append(self, ids: Sequence[int]) -> int:
        """Check ids and append them; returns how many tokens a failure must leave."""
        vocabulary, checked = self._engine.shape.vocabulary, []
        for given in ids:
            try:
                number = operator.index(given)
            except TypeError:
                raise InputError(f"token id {given!r} is not a whole number") from None
            if not 0 <= number < vocabulary:
                raise InputError(f"token id {number} is outside the vocabulary of {vocabulary}")
            checked.append(number)
        kept = len(self._ids)
        self._state.reserve(kept - self._state.position + len(checked))
        self._turn += 1
        self._ids.extend(checked)
        return kept

    def _passes(
        self, kept: int, most: int, turn: int, on_progress: OnProgress | None
    ) -> Iterator[tuple[Array, Counters]]:
        """Pass what waits, in chunks; yields hidden states (T, hidden) and cost of each.

        Of an empty timeline up to ``most`` tokens may come from the prefix cache instead.

        Where chunks end is the ledger's choice (``stream.chunks``), or the trail's where it ends
        them earlier, so that the same tokens give the same answer whatever calls brought them.
        After a failure the first ``kept`` tokens stay, and all that have passed.
        """
        state, trail = self._state, self._trail
        with self._keeping(kept, turn):
            trail.begin(self._ids, most)
            waiting = len(self._ids) - state.position
            layers = self._engine.shape.layers
            journey = Journey(waiting + trail.cached, layers, on_progress, trail.cached)
            between = self._between(turn, journey)
            journey.begin()
            while state.position < len(self._ids):
                end = trail.cut(len(self._ids))
                chunk = np.array(self._ids[state.position : end], np.int64)
                passed = self._engine.run(chunk, state, between)
                journey.chunk(len(passed[0]))
                trail.passed(self._ids)
                yield passed

    @contextmanager
    def _keeping(self, kept: int, turn: int) -> Iterator[None]:
        try:
            yield
        except BaseException:
            if turn == self._turn:  # else what lies there by now is another call's
                del self._ids[max(self._state.position, kept) :]
                self._trail.broke_off(self._ids)
            raise

    def _between(self, turn: int, journey: Journey) -> Between:
        """What a chunk does before each layer."""

        def between(tokens: int, layers_done: int) -> None:
            journey.layer(tokens, layers_done)
            if self._cancelled == turn:
                raise CancelledError(
                    f"cancelled after {self._state.position} tokens of the timeline, which stay: "
                    "send those that are not in Session.ids to go on"
                )

        return between


class _Choosing:
    """Draws the tokens of one reply: a sampler, with a guide where there is one."""

    def __init__(self, sampler: Sampler, guide: Guide | None) -> None:
        self._sampler, self._guide = sampler, guide

    def __call__(self, logits: Array) -> Choice:
        if self._guide is None:
            return self._sampler(logits)
        choice = self._sampler(logits, self._guide.mask())
        self._guide.accept(choice.id)
        return choice


def _whole(name: str, given: object, most: int) -> int:
    try:
        number = operator.index(given)  # type: ignore[arg-type]
    except TypeError:
        number = -1
    if not 0 <= number <= most:
        raise InputError(f"{name} is {given!r}; it must be a whole number from 0 to {most}")
    return number
