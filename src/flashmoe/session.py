"""Session: one timeline over a loaded engine.

Owns the tokens and their state. A pass that fails (a read error, an interrupt) leaves the
timeline as it was before the chunk that failed; nothing else is lost.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flashmoe.errors import InputError
from flashmoe.model.state import State
from flashmoe.options import Sampling
from flashmoe.quant import Array
from flashmoe.sampler import Choice
from flashmoe.snapshot import Snapshot
from flashmoe.step import Finish, Step
from flashmoe.text.detokenizer import Detokenizer

if TYPE_CHECKING:
    from flashmoe.engine import Engine


class Session:
    """A timeline: the tokens so far and the model's state after them.

    The last generated token is part of the timeline at once, and passes through the model with
    the next call.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._state = State(engine.shape, engine.plan.context_tokens, engine.kernels.dtype)
        self._ids: list[int] = []

    @property
    def ids(self) -> tuple[int, ...]:
        """Every token of the timeline, generated ones included."""
        return tuple(self._ids)

    def logits(self, ids: Sequence[int]) -> Array:
        """Append ids (T,) and return the logits after each, (T, vocabulary).

        Raises:
            InputError: no ids, or one outside the vocabulary.
            ContextError: the planned context is too short.
            ReadError: an expert could not be read; the timeline keeps the chunks before.
        """
        count = len(ids)
        if not count:
            raise InputError("there are no ids to pass")
        pieces = [self._engine.decoder.logits(hidden) for hidden in self._passes(self._append(ids))]
        return np.concatenate(pieces)[-count:]

    def generate(self, ids: Sequence[int] = (), sampling: Sampling | None = None) -> Iterator[Step]:
        """Append ids and generate, a :class:`Step` a token; close the iterator to stop early.

        ``sampling`` None takes the store's own defaults. Without ids the reply goes on where
        the timeline ends.

        Raises:
            InputError, ContextError, ReadError: as for :meth:`logits`.
        """
        sampling = sampling or self._engine.sampling()
        if not ids and self._state.position == len(self._ids):
            raise InputError("there is nothing to go on from: the prompt is empty")
        pending = self._append(ids)
        sampler = self._engine.sampler(sampling, self._ids)
        words = self._engine.detokenizer(sampling.stop)
        prompt_tokens, made = len(ids), 0
        while True:
            began, before = time.perf_counter(), self._engine.counters
            choice = sampler(self._last_logits(pending))
            self._ids.append(choice.id)
            pending, made = 1, made + 1
            text, finish = self._finish(choice, words, made, sampling)
            spent = self._engine.counters.since(before)
            yield Step(
                id=choice.id,
                text=text,
                logprob=choice.logprob,
                top_logprobs=choice.top,
                finish_reason=finish,
                prompt_tokens=prompt_tokens,
                hits=spent.hits,
                misses=spent.misses,
                bytes_read=spent.bytes_read,
                ms_read_wait=spent.wait_ms,
                ms_total=(time.perf_counter() - began) * 1e3,
            )
            if finish:
                return
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
            text += words.finish()
        return text, finish

    def snapshot(self) -> Snapshot:
        """A copy of the timeline, to come back to with :meth:`restore`."""
        arrays = {name: array.copy() for name, array in self._state.arrays().items()}
        return Snapshot(self._engine.key, self.ids, self._state.position, arrays)

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot of this or another session of the same model.

        Raises:
            InputError: it belongs to another model.
            ContextError: it is longer than the planned context.
        """
        if snapshot.model != self._engine.key:
            raise InputError("the snapshot belongs to another store, dtype or experts a token")
        self._state.assign(snapshot.position, snapshot.arrays)
        self._ids = list(snapshot.ids)

    def save(self, path: str | Path) -> None:
        """Write the timeline to a file (see :mod:`flashmoe.snapshot`)."""
        arrays = self._state.arrays()
        snapshot = Snapshot(self._engine.key, self.ids, self._state.position, arrays)
        snapshot.save(Path(path))

    def load(self, path: str | Path) -> None:
        """Go on from a file that :meth:`save` wrote, here or in another process."""
        self.restore(Snapshot.load(Path(path), self._engine.key))

    def _append(self, ids: Sequence[int]) -> int:
        """Check ids and append them; returns how many tokens wait to be passed."""
        vocabulary = self._engine.shape.vocabulary
        for number in ids:
            if not 0 <= number < vocabulary:
                raise InputError(f"token id {number} is outside the vocabulary of {vocabulary}")
        waiting = len(self._ids) - self._state.position + len(ids)
        self._state.reserve(waiting)
        self._ids.extend(int(number) for number in ids)
        return waiting

    def _last_logits(self, waiting: int) -> Array:
        hidden = None
        for hidden in self._passes(waiting):  # noqa: B007 — only the last chunk's end is needed
            pass
        assert hidden is not None
        last: Array = self._engine.decoder.logits(hidden[-1:])[0]
        return last

    def _passes(self, waiting: int) -> Iterator[Array]:
        """Pass the waiting tokens in chunks; yields the hidden states (T, hidden) of each."""
        engine, state = self._engine, self._state
        ids = np.array(self._ids[len(self._ids) - waiting :], np.int64)
        for start in range(0, waiting, engine.runtime.chunk_tokens):
            chunk = ids[start : start + engine.runtime.chunk_tokens]
            mark = state.mark()
            try:
                with engine.lock:
                    hidden = engine.decoder.forward(chunk, state, engine.streamer)
            except BaseException:
                state.rewind(mark)
                del self._ids[state.position :]
                raise
            yield hidden
