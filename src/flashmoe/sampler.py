"""Logits to one token id.

Owns penalties, temperature, the filters, the seeded draw and log-probabilities; no model and no
text. Invariant: the choice depends on the logits, the options and the ids seen so far, never on
the machine: arithmetic is float64 and ties fall to the lowest id.

The order is transformers' and llama.cpp's: repetition, then presence and frequency penalty,
temperature, top-k, top-p, min-p; each filter works on what the one before left over.
Log-probabilities are a log-softmax of the logits as the model gave them, before all of these.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flashmoe.errors import InputError, StoreError
from flashmoe.options import Sampling

Scores = NDArray[np.float64]  # (vocab,)
Ids = NDArray[np.intp]

_SEED_MASK = (1 << 64) - 1
_SUM_BLOCK = 1024
_TOP_P_WINDOWS = (256, 4096)  # sorted in steps: a nucleus is rarely wider than the first


@dataclass(frozen=True)
class Choice:
    """One chosen token.

    ``logprob`` and ``top``, the likeliest ``(id, logprob)`` in falling order, are natural
    logarithms under the unmodified logits; they are None and empty unless
    ``Sampling.logprobs`` asks for them.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Draws the ids of one reply and remembers them for its penalties.

    ``prompt_ids`` count for the repetition penalty alone (transformers' meaning); presence and
    frequency count the reply alone (OpenAI's meaning). ``vocab_size`` is the tokenizer's: rows
    of the output matrix at or above it are padding and are never chosen.
    """

    def __init__(
        self, sampling: Sampling, prompt_ids: Sequence[int] = (), *, vocab_size: int | None = None
    ) -> None:
        self._sampling = sampling
        self._vocab_size = vocab_size
        seed = sampling.seed
        # Any integer is a seed; numpy takes only those from 0.
        self._random = np.random.default_rng(None if seed is None else seed & _SEED_MASK)
        self._seen = {int(token) for token in prompt_ids}
        self._generated: Counter[int] = Counter()

    def __call__(self, logits: NDArray[np.floating]) -> Choice:
        """Choose from logits (vocab,).

        Raises InputError for a wrong shape, StoreError for NaN or infinity, which no intact
        model yields.
        """
        raw = self._checked(logits)
        scores = self._penalized(raw)
        greedy = self._sampling.temperature == 0
        token = int(np.argmax(scores)) if greedy else self._draw(scores)
        self._seen.add(token)
        self._generated[token] += 1
        return self._choice(raw, token)

    def _checked(self, logits: NDArray[np.floating]) -> Scores:
        size = logits.shape[0] if logits.ndim == 1 else 0
        wanted = size if self._vocab_size is None else self._vocab_size
        if not 0 < wanted <= size:
            raise InputError(
                f"logits have shape {logits.shape} for a vocabulary of {self._vocab_size} tokens; "
                "give one position's row, at least as long as the vocabulary"
            )
        raw = logits[:wanted].astype(np.float64)
        finite = np.isfinite(raw)
        if not finite.all():
            first = int(np.argmin(finite))
            raise StoreError(
                f"{np.count_nonzero(~finite)} of {wanted} logits are not finite (id {first} is "
                f"{raw[first]}): the weights are damaged or a kernel is at fault; run "
                "`flashmoe verify STORE`, then try the reference kernels"
            )
        return raw

    def _penalized(self, raw: Scores) -> Scores:
        options = self._sampling
        scores = raw.copy()
        if options.repetition_penalty != 1:
            seen = self._known(self._seen, raw.size)
            values, penalty = scores[seen], options.repetition_penalty
            scores[seen] = np.where(values < 0, values * penalty, values / penalty)
        if options.presence_penalty or options.frequency_penalty:
            used = self._known(self._generated, raw.size)
            counts = np.array([self._generated[int(token)] for token in used], dtype=np.float64)
            scores[used] -= options.presence_penalty + options.frequency_penalty * counts
        return scores

    @staticmethod
    def _known(ids: Iterable[int], vocab_size: int) -> Ids:
        return np.array([token for token in ids if 0 <= token < vocab_size], dtype=np.intp)

    def _draw(self, scores: Scores) -> int:
        with np.errstate(over="ignore"):  # a tiny temperature sends all but the best to -inf
            scaled = (scores - scores.max()) / self._sampling.temperature
        ids, weights = _filtered(scaled, self._sampling)
        return int(ids[_reaching(weights, self._random.random())])

    def _choice(self, raw: Scores, token: int) -> Choice:
        wanted = self._sampling.logprobs
        if wanted is None:
            return Choice(token)
        peak = raw.max()
        total = float(peak + np.log(np.exp(raw - peak).sum()))
        best = descending(raw, wanted) if wanted else ()
        top = tuple((int(index), float(raw[index]) - total) for index in best)
        return Choice(token, float(raw[token]) - total, top)


def _reaching(weights: Scores, share: float) -> int:
    """Where the running sum of the weights passes a share (below 1) of the total.

    Found by the sums of blocks first, since one running sum is slow: each adds to the last.
    """
    whole = weights.size // _SUM_BLOCK * _SUM_BLOCK
    sums = np.append(weights[:whole].reshape(-1, _SUM_BLOCK).sum(axis=1), weights[whole:].sum())
    ends = np.cumsum(sums)
    point = share * ends[-1]
    block = min(int(np.searchsorted(ends, point, side="right")), (weights.size - 1) // _SUM_BLOCK)
    inside = weights[block * _SUM_BLOCK : (block + 1) * _SUM_BLOCK]
    left = point - (ends[block] - sums[block])
    index = int(np.searchsorted(np.cumsum(inside), left, side="right"))
    return block * _SUM_BLOCK + min(index, inside.size - 1)


def descending(scores: Scores, count: int) -> Ids:
    """The ids of the ``count`` highest scores, highest first, equal scores by lowest id."""
    if count >= scores.size:
        return np.argsort(-scores, kind="stable")
    threshold = np.partition(scores, -count)[-count]
    above = np.flatnonzero(scores > threshold)
    level = np.flatnonzero(scores == threshold)[: count - above.size]
    ids = np.concatenate([above, level])
    return ids[np.argsort(-scores[ids], kind="stable")]


def _filtered(scaled: Scores, options: Sampling) -> tuple[Ids, Scores]:
    """Ids that survive top-k, top-p and min-p, and their weights; ``scaled`` peaks at 0."""
    if options.top_k and options.top_k < scaled.size:
        ids = descending(scaled, options.top_k)
        weights = np.exp(scaled[ids])
        if options.top_p < 1:
            ids, weights = _nucleus(ids, weights, options.top_p * weights.sum())
    elif options.top_p < 1:
        ids, weights = _widening_nucleus(scaled, options.top_p)
    else:
        ids, weights = np.arange(scaled.size), np.exp(scaled)
    if options.min_p == 0:
        return ids, weights
    kept = weights >= options.min_p  # the best token weighs exactly 1
    return ids[kept], weights[kept]


def _nucleus(ids: Ids, weights: Scores, mass: float) -> tuple[Ids, Scores]:
    """The leading tokens up to and with the one that reaches ``mass``."""
    count = int(np.searchsorted(np.cumsum(weights), mass, side="left")) + 1
    return ids[:count], weights[:count]


def _widening_nucleus(scaled: Scores, top_p: float) -> tuple[Ids, Scores]:
    """Top-p over the whole vocabulary without sorting the whole vocabulary."""
    mass = top_p * float(np.exp(scaled).sum())
    for window in _TOP_P_WINDOWS:
        ids = descending(scaled, window)
        weights = np.exp(scaled[ids])
        if weights.sum() >= mass:
            return _nucleus(ids, weights, mass)
    ids = descending(scaled, scaled.size)
    return _nucleus(ids, np.exp(scaled[ids]), mass)
