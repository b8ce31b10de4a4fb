"""Session: one timeline over a loaded engine.

Owns the tokens; their state is the model's. A pass that fails (a read error, an interrupt) leaves
the timeline as it was before the chunk that failed: earlier chunks and every token that was
yielded stay.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flashmoe import snapshot as snapshots
from flashmoe.errors import InputError
from flashmoe.model.state import State
from flashmoe.options import Sampling
from flashmoe.prefix.trail import Trail
from flashmoe.quant import Array
from flashmoe.sampler import Choice, Sampler
from flashmoe.snapshot import Snapshot
from flashmoe.step import Finish, Step
from flashmoe.stream.counters import Counters
from flashmoe.stream.direct import busy_ms
from flashmoe.text.detokenizer import Detokenizer

if TYPE_CHECKING:
    from flashmoe.engine import Engine


class Session:
    """A timeline: the tokens so far and the model's state after them.

    The last generated token is part of the timeline at once, and passes through the model with
    the next call. One thread uses a session at a time.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        context = engine.plan.context_tokens
        self._state = State(engine.shape, context, engine.kernels.dtype, engine.kv)
        self._trail = Trail(engine.prefixes, self._state)
        self._ids: list[int] = []
        self._turn = 0  # of the latest use, so that an older reply cannot go on by mistake

    @property
    def ids(self) -> tuple[int, ...]:
        """Every token of the timeline, generated ones included."""
        return tuple(self._ids)

    def logits(self, ids: Sequence[int]) -> Array:
        """Append ids (T,) and return the logits after each, (T, vocabulary).

        The array belongs to the caller; the engine's budget does not count it. All of ids pass,
        as the logits of each are wanted; a prefix cache keeps them, and only serves the tokens
        before.

        Raises:
            InputError: no ids, or one outside the vocabulary.
            ContextError: the planned context is too short.
            ReadError: an expert could not be read; the timeline keeps the chunks before.
        """
        count = len(ids)
        if not count:
            raise InputError("there are no ids to pass")
        kept = self._append(ids)
        waiting = len(self._ids) - self._state.position
        out = np.empty((waiting, self._engine.shape.vocabulary), self._engine.kernels.dtype)
        done = 0
        for hidden, _ in self._passes(kept, len(self._ids) - count):
            out[done : done + len(hidden)] = self._engine.head(hidden)
            done += len(hidden)
        self._trail.ended(self._ids)
        return out[done - count : done]

    def generate(
        self,
        ids: Sequence[int] = (),
        sampling: Sampling | None = None,
        *,
        marks: Sequence[int] = (),
    ) -> Iterator[Step]:
        """Append ids and generate, a :class:`Step` a token; close the iterator to stop early.

        ``sampling`` None takes the store's own defaults. Without ids the reply goes on where
        the timeline ends. Using the session for something else ends the reply. ``marks`` are
        numbers of ids after which other timelines may go on differently (the end of a system
        prompt, of turns), for a prefix cache to keep the state there.

        Raises:
            InputError, ContextError: at once; as for :meth:`logits`.
            ReadError: from the iterator; as for :meth:`logits`.
        """
        sampling = sampling or self._engine.sampling()
        if not len(ids) and not self._ids:
            raise InputError("there is nothing to go on from: the prompt is empty")
        words = self._engine.detokenizer(sampling.stop)
        kept = self._append(ids)
        self._trail.mark(kept + mark for mark in marks)
        sampler = self._engine.sampler(sampling, self._ids)
        return self._reply(kept, len(ids), sampling, sampler, words)

    def _reply(
        self,
        kept: int,
        prompt_tokens: int,
        sampling: Sampling,
        sampler: Sampler,
        words: Detokenizer | None,
    ) -> Iterator[Step]:
        turn, made, trail = self._turn, 0, self._trail
        handed = trail.handed_bytes
        while True:
            if turn != self._turn:
                raise InputError("the session was used for something else: this reply has ended")
            began, busy = time.perf_counter(), busy_ms()
            cost = [spent for _, spent in self._passes(kept, len(self._ids))]
            cached = trail.cached
            choice = sampler(self._engine.head(self._state.last)[0])
            self._ids.append(choice.id)
            kept, made = len(self._ids), made + 1
            text, finish = self._finish(choice, words, made, sampling)
            if finish:
                trail.ended(self._ids)
            kept_apart = cached, trail.handed_bytes - handed
            handed = trail.handed_bytes
            try:
                yield _step(choice, text, finish, prompt_tokens, kept_apart, cost, began, busy)
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
        self._state.assign(snapshot.position, snapshot.arrays)
        self._ids = list(snapshot.ids)

    def save(self, path: str | Path) -> None:
        """Write the timeline to a file.

        Raises:
            SessionError: the file cannot be written.
        """
        state = self._state
        held = Snapshot(self._engine.key, self.ids, state.position, state.arrays())
        snapshots.save(Path(path), held)

    def load(self, path: str | Path) -> None:
        """Go on from a file that :meth:`save` wrote, here or in another process.

        Raises:
            SessionError: missing, damaged, or of another model; the session stays as it was.
            ContextError: it is longer than the planned context.
        """
        with snapshots.opened(Path(path), self._engine.key) as stored:
            self.restore(stored)

    def rewind(self, tokens: int) -> None:
        """Go back to the first ``tokens`` of the timeline.

        Their state cannot be taken apart: with the next call it comes from the longest prefix that
        a prefix cache has kept, and what that lacks passes again.

        Raises:
            InputError: the timeline is not so long.
        """
        if not 0 <= tokens <= len(self._ids):
            raise InputError(f"the timeline has {len(self._ids)} tokens: it has no first {tokens}")
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

    def _passes(self, kept: int, most: int) -> Iterator[tuple[Array, Counters]]:
        """Pass what waits, in chunks; yields hidden states (T, hidden) and cost of each.

        Of an empty timeline up to ``most`` tokens may come from the prefix cache instead.

        Chunks end at multiples of the chunk size, counted from the timeline's start, so that the
        same tokens pass in the same chunks whatever calls brought them. After a failure the
        first ``kept`` tokens stay, and all that have passed.
        """
        size, state = self._engine.runtime.chunk_tokens, self._state
        self._trail.begin(self._ids, most)
        while state.position < len(self._ids):
            end = min((state.position // size + 1) * size, len(self._ids))
            end = self._trail.cut(end)
            chunk = np.array(self._ids[state.position : end], np.int64)
            try:
                passed = self._engine.run(chunk, state)
            except BaseException:
                del self._ids[max(state.position, kept) :]
                self._trail.broke_off(self._ids)
                raise
            self._trail.passed(self._ids)
            yield passed


def _step(
    choice: Choice,
    text: str,
    finish: Finish | None,
    prompt_tokens: int,
    kept_apart: tuple[int, int],
    cost: list[Counters],
    began: float,
    busy: float,
) -> Step:
    total = (time.perf_counter() - began) * 1e3
    return Step(
        id=choice.id,
        text=text,
        logprob=choice.logprob,
        top_logprobs=choice.top,
        finish_reason=finish,
        prompt_tokens=prompt_tokens,
        hits=sum(spent.hits for spent in cost),
        misses=sum(spent.misses for spent in cost),
        bytes_read=sum(spent.bytes_read for spent in cost),
        ms_read_wait=sum(spent.wait_ms for spent in cost),
        ms_total=total,
        ms_python=max(total - (busy_ms() - busy), 0.0),
        cached_tokens=kept_apart[0],
        bytes_written=kept_apart[1],
    )
