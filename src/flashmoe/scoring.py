"""A text that is given, not drawn: how likely the model finds each of its tokens.

Owns the arithmetic from logits to log-probabilities; not which texts are scored, nor in what
windows (``apps.eval``). Invariant: a log-probability is of the distribution that replies are drawn
from at temperature 1, a log-softmax in float64 over the tokens that are words: padding rows of
the output matrix count for nothing. No more than :data:`ROWS` rows of logits are held at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from flashmoe.errors import InputError, StoreError
from flashmoe.progress import OnProgress
from flashmoe.quant import Array
from flashmoe.sampler import Choice, descending

if TYPE_CHECKING:
    from flashmoe.engine import Engine
    from flashmoe.session import Session

Scores = NDArray[np.float64]

ROWS = 4
"""Positions whose logits are computed at once. With those of another model beside them and the
float64 rows at hand that stays within what drawing a token takes (``sizes.SAMPLER_FLOATS``)."""


def words_of(engine: Engine) -> int:
    """How many of the output's rows, the first ones, are words.

    Raises:
        InputError: the store has no tokenizer.
    """
    return min(engine.tokenizer.vocab_size, engine.shape.vocabulary)


def log_probabilities(logits: Array, words: int) -> Scores:
    """A row of logits (vocabulary,) as log-probabilities (words,).

    Raises:
        StoreError: NaN or infinity, which no intact model yields.
    """
    row: Scores = logits[:words].astype(np.float64)
    row -= row.max()
    row -= np.log(np.exp(row).sum())
    if not np.isfinite(row).all():
        raise StoreError(
            f"{np.count_nonzero(~np.isfinite(logits[:words]))} of {words} logits are not finite: "
            "the weights are damaged or a kernel is at fault; run `flashmoe verify STORE`, then "
            "try the reference kernels"
        )
    return row


def prompt_logprobs(
    engine: Engine,
    session: Session,
    ids: Sequence[int],
    top: int = 0,
    *,
    on_progress: OnProgress | None = None,
) -> Iterator[Choice]:
    """Append ids to an empty session; yields each with its log-probability after those before it,
    and the ``top`` likeliest in its place.

    The first has None and no others, since nothing comes before it. Afterwards the session goes
    on from there: ``session.generate((), …)`` draws what follows. No token comes from the prefix
    cache, because the logits of all are wanted.

    Raises:
        InputError: at once: no ids, a session that has some already, or an id that is no word.
        ContextError, ReadError, CancelledError: as ``Session.logits``.
    """
    words = words_of(engine)
    if session.ids:
        raise InputError("a prompt's log-probabilities begin with the timeline: take a new session")
    for id in ids:
        if not 0 <= id < words:
            raise InputError(f"token id {id} is no word of this model: ids end at {words - 1}")
    chunks = session.hidden(ids, on_progress=on_progress)
    return _scored(engine, chunks, ids, words, top)


def _scored(
    engine: Engine, chunks: Iterator[Array], ids: Sequence[int], words: int, top: int
) -> Iterator[Choice]:
    following = iter(ids)
    yield Choice(next(following))
    for hidden in chunks:
        for begin in range(0, len(hidden), ROWS):
            logits = engine.head(hidden[begin : begin + ROWS])
            for one, id in zip(logits, following, strict=False):  # the last has nothing after it
                row = log_probabilities(one, words)
                best = descending(row, top) if top else ()
                others = tuple((int(other), float(row[other])) for other in best)
                yield Choice(id, float(row[id]), others)
