"""What a routing log tells: frequency, coverage, reuse, overlap, and misses of a cache.

Owns the figures as pure functions of a log; reads no file and prints nothing. An *activation* is
one expert chosen by one token in one layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from flashmoe.apps.routing_log import RoutingLog
from flashmoe.quant import Array
from flashmoe.stream.cache import Cache, Key


@dataclass(frozen=True)
class Coverage:
    """The fewest experts that take at least ``share`` of all activations.

    ``bytes`` is None where the size of a record is not known.
    """

    share: float
    experts: int
    bytes: int | None


@dataclass(frozen=True)
class Replay:
    """A log replayed through the cache; distinct experts of a layer and pass count once.

    A *cold* miss is the first use of an expert, a *capacity* miss a later one.
    """

    slots: int
    hits: int
    cold: int
    capacity: int

    @property
    def hit_rate(self) -> float:
        """Share of the experts asked for that were in a slot."""
        return self.hits / (self.hits + self.cold + self.capacity)


def frequencies(log: RoutingLog) -> Array:
    """Activations of every expert, (layers, experts)."""
    layers = np.arange(log.header.layers)[None, :, None]
    counts = np.zeros((log.header.layers, log.header.experts), np.int64)
    np.add.at(counts, (np.broadcast_to(layers, log.ids.shape), log.ids), 1)
    return counts


def coverage(counts: Array, share: float, record_bytes: Sequence[int] | None) -> Coverage:
    """The busiest experts (layers, experts) that together reach ``share`` of activations."""
    order = np.argsort(-counts, axis=None, kind="stable")
    reached = np.cumsum(counts.reshape(-1)[order])
    needed = int(np.searchsorted(reached, share * reached[-1])) + 1
    if record_bytes is None:
        return Coverage(share, needed, None)
    layers = order[:needed] // counts.shape[1]
    return Coverage(share, needed, sum(record_bytes[layer] for layer in layers))


def busiest_quarter(counts: Array) -> float:
    """Share of activations that the most used quarter of each layer's experts takes."""
    quarter = -(-counts.shape[1] // 4)
    top = np.sort(counts, axis=1)[:, -quarter:]
    return float(top.sum() / counts.sum())


def reuse_distances(log: RoutingLog) -> Array:
    """Tokens from one use of an expert to its next, over all experts, in no order."""
    tokens, layers, top_k = log.ids.shape
    expert = (log.ids + np.arange(layers)[None, :, None] * log.header.experts).reshape(-1)
    token = np.repeat(np.arange(tokens), layers * top_k)
    order = np.lexsort((token, expert))
    again = expert[order][1:] == expert[order][:-1]
    distances: Array = np.diff(token[order])[again]
    return distances


def overlap(log: RoutingLog) -> float | None:
    """Share of a token's experts that the token before chose too; None for a single token."""
    if len(log.ids) < 2:
        return None
    shared = 0
    for layer in range(log.header.layers):
        ids = log.ids[:, layer]
        shared += int((ids[1:, :, None] == ids[:-1, None, :]).sum())
    return shared / log.ids[1:].size


def replay(log: RoutingLog, slots: int) -> Replay:
    """Ask a cache of so many slots for the experts of a log, as the streamer would."""
    cache = Cache(slots, log.header.layers, log.header.top_k)
    seen: set[Key] = set()
    hits = cold = capacity = 0
    for keys in requests(log):
        absent = [key for key in keys if cache.lookup(key) is None]
        hits += len(keys) - len(absent)
        for key in absent:
            cold, capacity = (cold, capacity + 1) if key in seen else (cold + 1, capacity)
            cache.admit(key)
        seen.update(absent)
    return Replay(slots, hits, cold, capacity)


def requests(log: RoutingLog) -> Iterator[list[Key]]:
    """The distinct experts that each layer asks for in each pass, rising."""
    borders = np.flatnonzero(np.diff(log.passes, prepend=-1, append=log.passes[-1] + 1))
    for start, stop in pairwise(borders.tolist()):
        for layer in range(log.header.layers):
            yield [(layer, expert) for expert in np.unique(log.ids[start:stop, layer]).tolist()]
