"""Logits to one token id.

Owns penalties, temperature, the filters, the seeded draw and log-probabilities; no model and no
text. Invariant: the choice depends on the logits, the options and the ids seen so far, never on
the machine: arithmetic is float64 and ties fall to the lowest id.

The order is transformers' and llama.cpp's: repetition, then presence and frequency penalty,
temperature, top-k, top-p, min-p; each filter works on what the one before left over. Where a mask
says which tokens may come at all, it works before the temperature. Log-probabilities are a
log-softmax of the logits as the model gave them, before all of these.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from flashmoe.errors import InputError, StoreError
from flashmoe.options import Sampling

Scores = NDArray[np.float64]  # (vocab,)
Ids = NDArray[np.intp]

_SEED_MASK = (1 << 64) - 1
_WINDOW = 4096
"""So many of the highest scores are sorted; a nucleus is rarely wider."""

_BLOCK = 512
"""So many weights are summed together before the place of a draw is looked for."""

_SLICES = 1024
_SPAN = 16.0
_TINY_SPAN = 1e-9  # of scores that differ by nothing
"""The slices cover at most so much of the scaled scores; the last one holds all below, which
weighs too little to be looked at often."""


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
        # Raw scores, scaled ones and their weights. Fresh memory of such sizes is given and taken
        # page by page, which takes longer than all the arithmetic.
        self._room: Scores = np.empty((3, 0))

    def __call__(
        self, logits: NDArray[np.floating], mask: NDArray[np.bool_] | None = None
    ) -> Choice:
        """Choose from logits (vocab,), of the tokens that ``mask`` (vocab,) admits.

        Raises InputError for a wrong shape or a mask that admits none, StoreError for NaN or
        infinity, which no intact model yields.
        """
        given = self._checked(logits)
        if mask is None and self._takes_the_best():
            token = int(np.argmax(given))
            self._remember(token)
            return Choice(token)
        raw = self._widened(given)
        scores = self._penalized(raw)
        if mask is None:
            token = self._chosen(scores)
        else:  # among those left alone: infinities in their places would take the draw longer
            ids = self._admitted(mask, raw.size)
            token = int(ids[self._chosen(scores[ids])])
        self._remember(token)
        return self._choice(raw, token)

    def _remember(self, token: int) -> None:
        self._seen.add(token)
        self._generated[token] += 1

    def _takes_the_best(self) -> bool:
        """Whether the highest logit, as it is, decides, and nothing else is wanted of any."""
        options = self._sampling
        plain = options.repetition_penalty == 1 and options.logprobs is None
        counted = options.presence_penalty or options.frequency_penalty
        return options.temperature == 0 and plain and not counted

    def _checked(self, logits: NDArray[np.floating]) -> NDArray[np.floating]:
        """Those of the vocabulary, all of them finite."""
        size = logits.shape[0] if logits.ndim == 1 else 0
        wanted = size if self._vocab_size is None else self._vocab_size
        if not 0 < wanted <= size:
            raise InputError(
                f"logits have shape {logits.shape} for a vocabulary of {self._vocab_size} tokens; "
                "give one position's row, at least as long as the vocabulary"
            )
        raw = logits[:wanted]
        finite = np.isfinite(raw)
        if not finite.all():
            first = int(np.argmin(finite))
            raise StoreError(
                f"{np.count_nonzero(~finite)} of {wanted} logits are not finite (id {first} is "
                f"{raw[first]}): the weights are damaged or a kernel is at fault; run "
                "`flashmoe verify STORE`, then try the reference kernels"
            )
        return raw

    def _widened(self, given: NDArray[np.floating]) -> Scores:
        if self._room.shape[1] != given.size:
            self._room = np.empty((3, given.size))
        raw: Scores = self._room[0]
        raw[:] = given
        return raw

    def _penalized(self, raw: Scores) -> Scores:
        options = self._sampling
        counted = options.presence_penalty or options.frequency_penalty
        if options.repetition_penalty == 1 and not counted:
            return raw
        scores = raw.copy()
        if options.repetition_penalty != 1:
            seen = self._known(self._seen, raw.size)
            values, penalty = scores[seen], options.repetition_penalty
            scores[seen] = np.where(values < 0, values * penalty, values / penalty)
        if counted:
            used = self._known(self._generated, raw.size)
            counts = np.array([self._generated[int(token)] for token in used], dtype=np.float64)
            scores[used] -= options.presence_penalty + options.frequency_penalty * counts
        return scores

    def _chosen(self, scores: Scores) -> int:
        """The place of the choice in scores (any number,)."""
        return int(np.argmax(scores)) if self._sampling.temperature == 0 else self._draw(scores)

    @staticmethod
    def _admitted(mask: NDArray[np.bool_], size: int) -> Ids:
        if mask.shape != (size,):
            raise InputError(
                f"the mask has shape {mask.shape} for a vocabulary of {size} tokens: make the "
                "guide with the engine that the reply is of"
            )
        ids = np.flatnonzero(mask)
        if not ids.size:
            raise InputError("the mask admits no token: the guide has come to a dead end")
        return ids

    @staticmethod
    def _known(ids: Iterable[int], vocab_size: int) -> Ids:
        found = np.fromiter(ids, np.intp)
        return found[(found >= 0) & (found < vocab_size)]

    def _draw(self, scores: Scores) -> int:
        with np.errstate(over="ignore"):  # a tiny temperature sends all but the best to -inf
            scaled = np.subtract(scores, scores.max(), out=self._room[1, : scores.size])
            scaled /= self._sampling.temperature
        room = self._room[2, : scores.size]
        return _drawn(scaled, self._sampling, self._random.random(), room)

    def _choice(self, raw: Scores, token: int) -> Choice:
        wanted = self._sampling.logprobs
        if wanted is None:
            return Choice(token)
        peak = raw.max()
        shifted = raw - peak
        total = float(peak + np.log(np.exp(shifted, out=shifted).sum()))
        best = descending(raw, wanted) if wanted else ()
        top = tuple((int(index), float(raw[index]) - total) for index in best)
        return Choice(token, float(raw[token]) - total, top)


def descending(scores: Scores, count: int) -> Ids:
    """The ids of the ``count`` highest scores, highest first, equal scores by lowest id."""
    if count >= scores.size:
        return np.argsort(-scores, kind="stable")
    threshold = np.partition(scores, -count)[-count]
    ids = np.flatnonzero(scores >= threshold)
    return ids[np.argsort(-scores[ids], kind="stable")[:count]]


def _drawn(scaled: Scores, options: Sampling, share: float, room: Scores | None = None) -> int:
    """The id at ``share`` (from 0 to below 1) of the weight that the filters leave over.

    ``scaled`` (vocab,) peaks at 0. Weights are summed in falling order, equal scores by lowest
    id, or by id where neither top-k nor top-p is on. Sorting a whole vocabulary takes ten times
    as long as all the rest, so only the highest few scores are ever sorted, and otherwise the
    one slice of the order that holds the answer. ``room`` (vocab,) is for the weights.
    """
    top_k = options.top_k if options.top_k < scaled.size else 0
    if top_k > _WINDOW:
        weights = np.exp(scaled, out=room)
        weights *= _among_highest(scaled, top_k)
        return _from_slices(scaled, weights, options, share)
    if top_k:
        highest = _highest(scaled, top_k)
        return _from_highest(highest, float(np.exp(highest).sum()), scaled, options, share)
    weights = np.exp(scaled, out=room)
    if options.top_p == 1:
        return _place(_above(weights, options.min_p), share)
    total = float(weights.sum())
    if options.top_p * total < _WINDOW:  # no weight is above 1, so that more take more words
        highest = _highest(scaled, min(_WINDOW, scaled.size))
        if highest.size == scaled.size or np.exp(highest).sum() >= options.top_p * total:
            return _from_highest(highest, total, scaled, options, share)
    return _from_slices(scaled, weights, options, share)


def _highest(scores: Scores, count: int) -> Scores:
    """The ``count`` highest scores in falling order."""
    found = np.partition(scores, -count)[-count:]
    found.sort()
    return found[::-1].copy()


def _among_highest(scores: Scores, count: int) -> NDArray[np.bool_]:
    """Whether each score is one of the ``count`` highest; of equal ones the lowest ids are."""
    threshold = np.partition(scores, -count)[-count]
    among: NDArray[np.bool_] = scores >= threshold
    surplus = np.count_nonzero(among) - count
    if surplus:
        among[np.flatnonzero(scores == threshold)[-surplus:]] = False
    return among


def _above(weights: Scores, min_p: float) -> Scores:
    """The weights with those below ``min_p`` made 0; the best token weighs exactly 1."""
    return weights if min_p == 0 else weights * (weights >= min_p)


def _place(weights: Scores, share: float) -> int:
    """The place at ``share`` of the sum, taken by blocks: only one of them is gone through."""
    whole = weights.size // _BLOCK * _BLOCK
    sums = weights[:whole].reshape(-1, _BLOCK).sum(axis=1)
    cumulative = np.cumsum(np.append(sums, weights[whole:].sum()))
    point = share * cumulative[-1]
    block = int(np.searchsorted(cumulative, point, side="right"))
    if block < cumulative.size:
        begin, before = block * _BLOCK, cumulative[block - 1] if block else 0.0
        within = before + np.cumsum(weights[begin : begin + _BLOCK])
        place = begin + int(np.searchsorted(within, point, side="right"))
        if place < begin + within.size:
            return place
        weights = weights[: begin + within.size]  # but for rounding it would lie in this block
    return int(np.flatnonzero(weights)[-1])


def _from_highest(
    highest: Scores, total: float, scaled: Scores, options: Sampling, share: float
) -> int:
    """:func:`_drawn` where the falling scores ``highest`` are all that can be drawn.

    ``total`` is the weight that top-p is a part of.
    """
    weights = np.exp(highest)
    if options.top_p < 1:
        reached = np.searchsorted(np.cumsum(weights), options.top_p * total, side="left")
        weights = weights[: reached + 1]
    place = _place(_above(weights, options.min_p), share)
    value = highest[place]
    equals_before = np.count_nonzero(highest[:place] == value)
    return int(np.flatnonzero(scaled == value)[equals_before])


def _from_slices(scaled: Scores, weights: Scores, options: Sampling, share: float) -> int:
    """:func:`_drawn` where much of the vocabulary can be drawn.

    ``weights`` (vocab,) are 0 where top-k took a token out. The falling order is cut into slices
    of equal width in ``scaled``. Their sums tell which one a cumulative weight is reached in.
    """
    mass = options.top_p * float(weights.sum())
    weights = _above(weights, options.min_p)
    span = min(max(-float(scaled.min()), _TINY_SPAN), _SPAN)
    depths = scaled * (-_SLICES / span)
    slices = np.minimum(depths, _SLICES - 1, out=depths).astype(np.intp)
    cumulative = np.cumsum(np.bincount(slices, weights, _SLICES))
    last = int(np.searchsorted(cumulative, cumulative[-1]))  # beyond it all weights are 0

    @lru_cache(1)  # top-p and the draw often end in the same slice
    def within(number: int) -> tuple[Ids, Scores]:
        """The ids of one slice in falling order, and the cumulative weights at them."""
        ids = np.flatnonzero((slices == number) & (weights > 0))
        ids = ids[np.argsort(-scaled[ids], kind="stable")]
        before = cumulative[number - 1] if number else 0.0
        return ids, before + np.cumsum(weights[ids])

    if options.top_p < 1:
        _, sums = within(min(int(np.searchsorted(cumulative, mass, side="left")), last))
        edge = sums[min(int(np.searchsorted(sums, mass, side="left")), sums.size - 1)]
    else:
        edge = cumulative[-1]
    point = share * float(edge)
    ids, sums = within(min(int(np.searchsorted(cumulative, point, side="right")), last))
    return int(ids[min(int(np.searchsorted(sums, point, side="right")), ids.size - 1)])
