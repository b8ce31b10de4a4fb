"""Logits to one token id.

Owns penalties, temperature, the filters, the seeded draw and log-probabilities; no model and no
text. Invariant: the choice depends on the logits, the options and the ids seen so far, never on
the machine: arithmetic is float64 in a prescribed order, powers are our own (``native/draw.h``),
and ties fall to the lowest id.

The order is transformers' and llama.cpp's: repetition, then presence and frequency penalty,
temperature, top-k, top-p, min-p; each filter works on what the one before left over. Where a mask
says which tokens may come at all, it works before the temperature. Log-probabilities are a
log-softmax of the logits as the model gave them, before all of these.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from flashmoe.errors import InputError, StoreError
from flashmoe.kernels.scores import BLOCK, GUESS, Room, Scores, falling
from flashmoe.options import Sampling

Numbers = NDArray[np.float64]  # scores or weights
Ids = NDArray[np.int64]

_SEED_MASK = (1 << 64) - 1
_WINDOW = 4096
"""So many of the highest scores are sorted at the most."""

_RANKS = (32, 1 << 40)
"""A nucleus is looked for among the scores not below so high a peak of a block; at last the lowest
peak, which some thousands of a large vocabulary reach. It is rarely wider."""

_NEARLY = 1 - 1e-9
"""Sums in another order than the prescribed one are nearer to it."""

_SLICES = 1024
_SPAN = 16.0
_TINY_SPAN = 1e-9  # of scores that differ by nothing
"""The slices cover at most so much of the scaled scores; the last one holds all below, which
weighs too little to be looked at often."""

_NOTHING: tuple[Ids, Numbers] = np.empty(0, np.int64), np.empty(0)


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


class _Seen:
    """The ids that penalties are about, in rising order, and how often the reply has each."""

    def __init__(self, prompt_ids: Sequence[int], options: Sampling) -> None:
        repeats = options.repetition_penalty != 1
        self._options = options
        self.wanted = bool(repeats or options.presence_penalty or options.frequency_penalty)
        known = np.array([int(token) for token in prompt_ids] if repeats else [], np.int64)
        self._ids: Ids = np.unique(known[known >= 0])
        self._counts: Numbers = np.zeros(self._ids.size)  # 0: in the prompt alone

    def remember(self, token: int) -> None:
        place = int(self._ids.searchsorted(token))
        if place == self._ids.size or self._ids[place] != token:
            self._ids = np.insert(self._ids, place, token)
            self._counts = np.insert(self._counts, place, 0.0)
        self._counts[place] += 1

    def penalized(self, logits: NDArray[np.floating]) -> tuple[Ids, Numbers]:
        """Which scores are not their logits (vocab,), and what they are."""
        if not self._ids.size:
            return _NOTHING
        options, known = self._options, int(self._ids.searchsorted(logits.size))
        ids, counts = self._ids[:known], self._counts[:known]
        values = logits[ids].astype(np.float64)
        if options.repetition_penalty != 1:
            penalty = options.repetition_penalty
            values = np.where(values < 0, values * penalty, values / penalty)
        if options.presence_penalty or options.frequency_penalty:
            due = options.presence_penalty + options.frequency_penalty * counts
            values -= np.where(counts > 0, due, 0.0)
        return ids, values


class Sampler:
    """Draws the ids of one reply and remembers them for its penalties.

    ``prompt_ids`` count for the repetition penalty alone (transformers' meaning); presence and
    frequency count the reply alone (OpenAI's meaning). ``vocab_size`` is the tokenizer's: rows
    of the output matrix at or above it are padding and are never chosen.
    """

    def __init__(
        self,
        sampling: Sampling,
        prompt_ids: Sequence[int] = (),
        *,
        vocab_size: int | None = None,
        threads: int = 1,
    ) -> None:
        self._sampling, self._vocab_size, self._threads = sampling, vocab_size, threads
        seed = sampling.seed
        # Any integer is a seed; numpy takes only those from 0.
        self._random = np.random.default_rng(None if seed is None else seed & _SEED_MASK)
        self._seen = _Seen(prompt_ids, sampling)
        self._room, self._room_admitted = Room(), Room()

    def __call__(
        self, logits: NDArray[np.floating], mask: NDArray[np.bool_] | None = None
    ) -> Choice:
        """Choose from logits (vocab,), of the tokens that ``mask`` (vocab,) admits.

        Raises InputError for a wrong shape or a mask that admits none, StoreError for NaN or
        infinity, which no intact model yields.
        """
        raw = self._of_vocabulary(logits)
        changed = self._seen.penalized(raw) if self._seen.wanted else _NOTHING
        scores = self._scores(raw, changed, self._room)
        if math.isnan(scores.peak):
            raise _not_finite(raw)
        if mask is None:
            token = self._chosen(scores)
        else:  # among those left alone: infinities in their places would take the draw longer
            ids = self._admitted(mask, raw.size)
            within = self._scores(raw[ids], _among(changed, ids), self._room_admitted)
            token = int(ids[self._chosen(within)])
        choice = self._choice(raw, scores if changed is _NOTHING else None, token)
        if self._seen.wanted:
            self._seen.remember(token)
        return choice

    def _scores(
        self, logits: NDArray[np.floating], changed: tuple[Ids, Numbers], room: Room
    ) -> Scores:
        return Scores(logits, changed, room, self._threads)

    def _of_vocabulary(self, logits: NDArray[np.floating]) -> NDArray[np.floating]:
        size = logits.shape[0] if logits.ndim == 1 else 0
        wanted = size if self._vocab_size is None else self._vocab_size
        if not 0 < wanted <= size:
            raise InputError(
                f"logits have shape {logits.shape} for a vocabulary of {self._vocab_size} tokens; "
                "give one position's row, at least as long as the vocabulary"
            )
        raw = logits[:wanted]
        if raw.dtype not in (np.float32, np.float64):
            raw = raw.astype(np.float64)
        return np.ascontiguousarray(raw)

    def _chosen(self, scores: Scores) -> int:
        """The place of the choice in scores (any number,)."""
        if self._sampling.temperature == 0:
            return scores.best()
        return _drawn(scores, self._sampling, self._random.random())

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

    def _choice(self, raw: NDArray[np.floating], plain: Scores | None, token: int) -> Choice:
        """``plain`` are the scores of the logits as they are, where there are any already."""
        wanted = self._sampling.logprobs
        if wanted is None:
            return Choice(token)
        plain = plain or self._scores(raw, _NOTHING, self._room)
        total = plain.peak + math.log(_total(plain.masses(1.0)))
        top: tuple[tuple[int, float], ...] = ()
        if wanted:
            ids, values = plain.highest(wanted)
            top = tuple(zip(ids.tolist(), (values - total).tolist(), strict=True))
        return Choice(token, float(raw[token]) - total, top)


def _not_finite(raw: NDArray[np.floating]) -> StoreError:
    finite = np.isfinite(raw)
    first = int(np.argmin(finite))
    return StoreError(
        f"{np.count_nonzero(~finite)} of {raw.size} logits are not finite (id {first} is "
        f"{raw[first]}): the weights are damaged or a kernel is at fault; run "
        "`flashmoe verify STORE`, then try the reference kernels"
    )


def _among(changed: tuple[Ids, Numbers], ids: Ids) -> tuple[Ids, Numbers]:
    """Of what has changed that which is in ``ids`` (rising), by place there."""
    if not changed[0].size:
        return _NOTHING
    places = ids.searchsorted(changed[0])
    there = ids[np.minimum(places, ids.size - 1)] == changed[0]
    return places[there], changed[1][there]


def descending(scores: Numbers, count: int) -> Ids:
    """The ids of the ``count`` highest scores, highest first, equal scores by lowest id."""
    if count >= scores.size:
        return np.argsort(-scores, kind="stable")
    threshold = np.partition(scores, -count)[-count]
    ids = np.flatnonzero(scores >= threshold)
    return ids[np.argsort(-scores[ids], kind="stable")[:count]]


def _total(weights: Numbers) -> float:
    """Their sum from first to last: that of numpy has another order."""
    return float(np.cumsum(weights)[-1])


def _drawn(scores: Scores, options: Sampling, share: float) -> int:
    """The place at ``share`` (from 0 to below 1) of the weight that the filters leave over.

    Weights are summed in falling order, equal scores by lowest id, or by id where neither top-k
    nor top-p is on. Sorting a whole vocabulary takes ten times as long as all the rest, so only
    the highest few scores are ever sorted, and otherwise the one slice of the order that holds
    the answer.
    """
    temperature = options.temperature
    top_k = options.top_k if options.top_k < scores.size else 0
    if top_k and top_k <= _WINDOW:
        ids, values = scores.highest(top_k)
        weights = scores.weights(values, temperature)
        return int(ids[_of_falling(weights, None, options, share)])
    if top_k:
        return _from_slices(scores, top_k, None, options, share)
    if options.top_p == 1:
        return _by_id(scores, options, share)
    total = _total(scores.masses(temperature))
    if options.top_p * total < _WINDOW:  # no weight is above 1, so that more take more words
        for rank in _RANKS:
            ids, values = scores.top(rank)
            everything = ids.size == scores.size
            enough = options.top_p * total
            # Sorting takes the longest: not before a sum by id says that it may do.
            if not everything and scores.weights(values, temperature).sum() < enough * _NEARLY:
                continue
            ids, values = falling(ids, values)
            weights = scores.weights(values, temperature)
            if everything or _total(weights) >= enough:
                return int(ids[_of_falling(weights, total, options, share)])
    return _from_slices(scores, 0, total, options, share)


def _of_falling(weights: Numbers, total: float | None, options: Sampling, share: float) -> int:
    """The place of the draw in falling weights, of which top-p takes a part of ``total``, or of
    their own sum."""
    cumulative, kept = np.cumsum(weights), weights.size
    if options.top_p < 1:
        mass = options.top_p * (cumulative[-1] if total is None else total)
        kept = min(int(cumulative.searchsorted(mass, side="left")) + 1, kept)
    if options.min_p:  # the first of them: they fall
        kept = min(int(np.count_nonzero(weights >= options.min_p)), kept)
    return _place(cumulative[:kept], share)


def _by_id(scores: Scores, options: Sampling, share: float) -> int:
    """The draw in the order of ids, without top-k and top-p."""
    temperature, min_p = options.temperature, options.min_p
    if min_p:
        # A little lower than it need be, for rounding; what counts is the weight.
        depth = max(-math.log(min_p) * (1 + 1e-9), 1e-9) * temperature
        cumulative = scores.kept_sums(temperature, scores.peak - depth, min_p)
        return _exact_place(scores, cumulative, options, share)
    guessed = scores.guesses(temperature)
    if guessed is not None:
        place = _sure_place(scores, np.cumsum(guessed), options, share)
        if place is not None:
            return place
    return _exact_place(scores, np.cumsum(scores.masses(temperature)), options, share)


def _exact_place(scores: Scores, cumulative: Numbers, options: Sampling, share: float) -> int:
    block, within = _within(scores, cumulative, options, share)
    return block * BLOCK + _place_of(within, share * cumulative[-1])


def _within(
    scores: Scores, cumulative: Numbers, options: Sampling, share: float
) -> tuple[int, Numbers]:
    """The block of the draw by the sums up to the end of each, and the sums up to its scores."""
    block = _place(cumulative, share)
    weights = scores.weights(scores.some(block * BLOCK), options.temperature)
    weights[weights < options.min_p] = 0
    return block, np.cumsum(np.append(cumulative[block - 1] if block else 0.0, weights))


def _place_of(within: Numbers, point: float) -> int:
    """The place in a block whose sums begin with what lies before it."""
    place = int(within[1:].searchsorted(point, side="right"))
    if place < within.size - 1:
        return place
    return int(within.searchsorted(within[-1])) - 1  # but for rounding it would lie in this block


def _sure_place(scores: Scores, cumulative: Numbers, options: Sampling, share: float) -> int | None:
    """What exact sums would draw, from guessed ones; None where those cannot tell.

    The point of the draw and the sums up to it are each within a guess's doubt, so that they are
    in the order of the exact ones where they are further apart than twice that.
    """
    doubt, point = 2.5 * GUESS * cumulative[-1], share * cumulative[-1]
    block, within = _within(scores, cumulative, options, share)
    place = int(within[1:].searchsorted(point, side="right"))
    if place == within.size - 1 or within[place + 1] - point <= doubt:
        return None
    first = block == 0 and place == 0
    return block * BLOCK + place if first or point - within[place] > doubt else None


def _place(cumulative: Numbers, share: float) -> int:
    """The place at ``share`` of the sum; of rising sums the first that is above it."""
    place = int(cumulative.searchsorted(share * cumulative[-1], side="right"))
    if place < cumulative.size:
        return place
    return int(cumulative.searchsorted(cumulative[-1]))  # where rounding meets the end


def _from_slices(
    scores: Scores, top_k: int, total: float | None, options: Sampling, share: float
) -> int:
    """:func:`_drawn` where much of the vocabulary can be drawn.

    The falling order is cut into slices of equal width in the scaled scores. Their sums tell
    which one a cumulative weight is reached in.
    """
    temperature = options.temperature
    span = min(max(scores.depth((_SPAN + 1) * temperature) / temperature, _TINY_SPAN), _SPAN)
    last = scores.last_of(top_k) if top_k else (scores.size, -math.inf)
    sums_of, summed = scores.slices(temperature, -_SLICES / span, last, options.min_p, _SLICES)
    mass = options.top_p * (summed if total is None else total)
    cumulative = np.cumsum(sums_of)
    last_slice = int(np.searchsorted(cumulative, cumulative[-1]))  # beyond it all weights are 0

    @lru_cache(1)  # top-p and the draw often end in the same slice
    def within(number: int) -> tuple[Ids, Numbers]:
        """The ids of one slice in falling order, and the cumulative weights at them."""
        ids, values = scores.members(number)
        with np.errstate(over="ignore"):  # a tiny temperature sends all but the best to -inf
            depths = scores.peak - values
            depths /= temperature
        if (depths[1:] < depths[:-1]).any():  # not so where many are equal
            order = np.argsort(depths, kind="stable")
            ids, values = ids[order], values[order]
        sums = scores.weights(values, temperature)
        np.cumsum(sums, out=sums)
        sums += cumulative[number - 1] if number else 0.0
        return ids, sums

    if options.top_p < 1:
        _, sums = within(min(int(np.searchsorted(cumulative, mass, side="left")), last_slice))
        edge = sums[min(int(np.searchsorted(sums, mass, side="left")), sums.size - 1)]
    else:
        edge = cumulative[-1]
    point = share * float(edge)
    ids, sums = within(min(int(np.searchsorted(cumulative, point, side="right")), last_slice))
    return int(ids[min(int(np.searchsorted(sums, point, side="right")), ids.size - 1)])
