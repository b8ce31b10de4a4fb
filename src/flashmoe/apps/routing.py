"""What a routing log tells: frequency, coverage, reuse, overlap, and misses of a cache.

Owns the figures as pure functions of a log; reads no file and prints nothing. An *activation* is
one expert chosen by one token in one layer.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from flashmoe.apps.routing_log import RoutingLog
from flashmoe.quant import Array
from flashmoe.stream.cache import Cache, Key
from flashmoe.stream.passage import window


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
    for layer, ids in routings(log):
        if len(ids) > 1:
            missed = sweep(cache, layer, ids)
        else:
            missed = [e for e in ids[0].tolist() if cache.lookup((layer, e)) is None]
            for expert in missed:
                cache.admit((layer, expert))
        absent = [(layer, expert) for expert in missed]
        hits += len(np.unique(ids)) - len(absent)
        for key in absent:
            cold, capacity = (cold, capacity + 1) if key in seen else (cold + 1, capacity)
        seen.update(absent)
    return Replay(slots, hits, cold, capacity)


def sweep(cache: Cache, layer: int, ids: Array) -> list[int]:
    """Ask for what a chunk chose of a layer, (tokens, top_k), in file order; who was missed."""
    most = window(cache.slots, ids.shape[1])
    order = np.unique(ids).tolist()
    slots = cache.sweep(layer, order, ids)
    here = {expert for expert, slot in zip(order, slots, strict=True) if slot >= 0}
    absent = [expert for expert in order if expert not in here]
    missed, fetched = set(absent), set[int]()
    cache.pin_all(layer, sorted(here))

    def came(admitted: list[tuple[int, int, int]]) -> None:
        fetched.update(absent[: len(admitted)])
        del absent[: len(admitted)]

    came(cache.admit_all(layer, absent[:most]))
    for place, expert in enumerate(order):
        while (layer, expert) not in cache:
            last = next(e for e in reversed(order[place:]) if (layer, e) in cache)
            cache.unpin((layer, last))
            insort(absent, last)
            fetched.discard(last)
            missed.add(last)
            came(cache.admit_all(layer, absent[: most - len(fetched)]))
        gain, room = int(expert in fetched), most - len(fetched)
        fetched.discard(expert)
        came(cache.exchange(layer, [expert], [gain], absent[: room + gain], room))
    return sorted(missed)


def routings(log: RoutingLog) -> Iterator[tuple[int, Array]]:
    """What each layer chooses in each pass: (layer, ids (tokens of the pass, top_k))."""
    borders = np.flatnonzero(np.diff(log.passes, prepend=-1, append=log.passes[-1] + 1))
    for start, stop in pairwise(borders.tolist()):
        for layer in range(log.header.layers):
            yield layer, log.ids[start:stop, layer]


def requests(log: RoutingLog) -> Iterator[list[Key]]:
    """The distinct experts that each layer asks for in each pass, rising."""
    for layer, ids in routings(log):
        yield [(layer, expert) for expert in np.unique(ids).tolist()]
