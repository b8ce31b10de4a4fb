"""A document's windows through a model, each in a timeline of its own.

Owns the order and what of it counts; yields hidden states, of which whoever asks makes logits a
few rows at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

from flashmoe.apps.eval.document import Document
from flashmoe.apps.progress import PromptWatcher
from flashmoe.engine import Engine
from flashmoe.progress import Progress
from flashmoe.quant import Array
from flashmoe.scoring import ROWS


def hidden_states(
    engine: Engine, document: Document, watch: PromptWatcher
) -> Iterator[tuple[Array, Array]]:
    """Hidden states (t, hidden) after scored tokens, in order, and the ids (t,) that follow them;
    t is at most :data:`flashmoe.scoring.ROWS`."""
    total, began = document.passing_tokens, time.perf_counter()
    before = 0

    def told(passed: int, state: Progress) -> None:
        watch(Progress(passed + state.done_tokens, total, 0, time.perf_counter() - began))

    for window in document.windows:
        ids = document.ids[window.begin : window.end]
        session, at = engine.session(), window.begin
        unscored = window.end - window.scored  # positions before this one are context alone
        on_progress: Callable[[Progress], None] = partial(told, before)
        for chunk in session.hidden(ids.tolist(), on_progress=on_progress):
            for start in range(max(unscored - at, 0), len(chunk), ROWS):
                rows = chunk[start : start + ROWS]
                first = at + start + 1
                yield rows, document.ids[first : first + len(rows)]
            at += len(chunk)
        del session  # its memory is the next one's
        before += window.tokens
