"""Hit rates of the cache policy on a routing log, beside LRU, decayed LFU and Belady's limit.

    .venv/bin/python bench/cache.py TRACE [--share 0.1,0.17,0.25,0.5] [--prompt 64] [--json]

Slots for a share of all experts, rounded down; the cache starts empty. Replayed as the streamer
asks, several tokens of one pass together. Prints a table and, last, one JSON line; with ``--json``
that line only.

With ``--prompt`` so many tokens of the log pass together first, in chunks of at most CHUNK, into
an empty cache, from several places of the log; a JSON line a share has the hit rate of the 20 and
of the 50 tokens that follow, and the experts read for the prompt.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import results
from command import run, shares, whole

from flashmoe.apps import routing
from flashmoe.apps.routing_log import RoutingLog, read
from flashmoe.stream.cache import Cache, Key

REPEATS = 3
SHARES = [0.1, 0.17, 0.25, 0.5]

CHUNK = 256
"""Tokens of a prompt that pass together."""

AFTER = (20, 50)
PLACES = 5
"""Tokens decoded after a prompt; places of the log where one begins."""

LFU_HALF_LIFE = 16
"""Sweeps over all layers: tokens, when decoding."""

Requests: TypeAlias = Sequence[Sequence[Key]]
"""What each layer wants in each pass."""

Priority: TypeAlias = Callable[[Key, int], float]
"""What a use of an expert by a request (its number) is worth; the least worth leaves first."""


def replay_priority(requests: Requests, slots: int, priority: Priority) -> float:
    """Hit rate of the policy that evicts whose last use was worth least."""
    worth: dict[Key, float] = {}  # of those in memory
    queue: list[tuple[float, Key]] = []  # with entries that are no longer true
    hits = 0
    for number, keys in enumerate(requests):
        wanted = set(keys)
        hits += sum(key in worth for key in keys)
        absent = [key for key in keys if key not in worth]
        used = {key: priority(key, number) for key in keys}
        aside: list[tuple[float, Key]] = []
        for key in (*(key for key in keys if key in worth), *absent):
            if key not in worth and len(worth) == slots:
                aside += _evict(queue, worth, wanted)
            worth[key] = used[key]
            heapq.heappush(queue, (used[key], key))
        for entry in aside:
            heapq.heappush(queue, entry)
    return hits / sum(map(len, requests))


def _evict(
    queue: list[tuple[float, Key]], worth: dict[Key, float], wanted: set[Key]
) -> list[tuple[float, Key]]:
    """Take out who is worth least, preferably not wanted now; entries passed over."""
    aside: list[tuple[float, Key]] = []
    while queue:
        value, key = heapq.heappop(queue)
        if worth.get(key) != value:
            continue
        if key not in wanted:
            del worth[key]
            return aside
        aside.append((value, key))
    del worth[aside.pop(0)[1]]
    return aside


def lru(requests: Requests, slots: int) -> float:
    """Least recently used."""
    uses = iter(range(1 << 62))
    return replay_priority(requests, slots, lambda key, number: next(uses))


def lfu(requests: Requests, slots: int, layers: int) -> float:
    """Least frequently used; a use counts half after LFU_HALF_LIFE sweeps. Absent ones keep it."""
    scores: dict[Key, float] = {}  # log2 of the uses, each worth 2 ** (sweep / half-life)

    def score(key: Key, number: int) -> float:
        use = number / layers / LFU_HALF_LIFE
        before = scores.get(key, -math.inf)
        scores[key] = use + math.log2(1 + 2 ** (before - use))
        return scores[key]

    return replay_priority(requests, slots, score)


def belady(requests: Requests, slots: int) -> float:
    """Who is used last, or never again: the limit of any policy."""
    future: defaultdict[Key, deque[int]] = defaultdict(deque)
    for number, keys in enumerate(requests):
        for key in keys:
            future[key].append(number)

    def soonness(key: Key, number: int) -> float:
        future[key].popleft()
        return -future[key][0] if future[key] else -math.inf

    return replay_priority(requests, slots, soonness)


def ours(slots: int, log: RoutingLog) -> dict[str, float]:
    """Hit rate of the library's cache, and the time of its calls in microseconds.

    ``lookup_us`` and ``admit_us`` are means over the log's tokens, one by one, the fastest of
    REPEATS, in time of this thread. What is learned from a routing falls to the first admission
    after it, or else to the next lookup; ``call_us`` is all time over all lookups.
    """
    asked, times = log.ids.size, []
    for _ in range(REPEATS):
        cache = Cache(slots, log.header.layers, log.header.top_k)
        misses, looking, admitting = 0, 0.0, 0.0
        for number, ids in enumerate(log.ids.reshape(-1, log.header.top_k).tolist()):
            layer, began = number % log.header.layers, time.thread_time()
            absent = [expert for expert in ids if cache.lookup((layer, expert)) is None]
            looked = time.thread_time()
            for expert in absent:
                cache.admit((layer, expert))
            admitting += time.thread_time() - looked
            looking += looked - began
            misses += len(absent)
        times.append((looking + admitting, looking, admitting))
    total, looking, admitting = min(times)
    return {
        "ours": routing.replay(log, slots).hit_rate,
        "lookup_us": looking / asked * 1e6,
        "admit_us": admitting / max(misses, 1) * 1e6,
        "call_us": total / asked * 1e6,
    }


def compare(log: RoutingLog, share: float) -> dict[str, float]:
    """All four policies with slots for a share of all experts."""
    header = log.header
    slots = max(1, int(share * header.layers * header.experts))
    requests = list(routing.requests(log))
    rates = {
        "share": share,
        "slots": slots,
        **ours(slots, log),
        "lru": lru(requests, slots),
        "lfu": lfu(requests, slots, header.layers),
        "belady": belady(requests, slots),
    }
    rates["of_belady"] = rates["ours"] / rates["belady"] if rates["belady"] else 1.0
    return {name: round(value, 4) for name, value in rates.items()}


def decoded(cache: Cache, layer: int, ids: Sequence[int]) -> int:
    """One token, as the streamer asks for it; how many experts were read."""
    absent = [expert for expert in ids if cache.lookup((layer, expert)) is None]
    for expert in absent:
        cache.admit((layer, expert))
    return len(absent)


def after_prompt(log: RoutingLog, share: float, prompt: int) -> tuple[float, float, float]:
    """Hit rates of the 20 and of the 50 tokens after a prompt, and the reads of that prompt."""
    header, found = log.header, []
    last = len(log.ids) - prompt - AFTER[-1]
    if last < 0:
        most = max(len(log.ids) - AFTER[-1], 0)
        raise SystemExit(
            f"error: the log has {len(log.ids)} tokens, and {AFTER[-1]} are to follow the prompt: "
            f"give --prompt {most} or less"
        )
    for begin in np.linspace(0, last, PLACES, dtype=int).tolist():
        slots = max(1, int(share * header.layers * header.experts))
        cache = Cache(slots, header.layers, header.top_k)
        reads, end = 0, begin + prompt
        for start in range(begin, end, CHUNK):
            for layer in range(header.layers):
                chunk = log.ids[start : min(start + CHUNK, end), layer]
                reads += len(routing.sweep(cache, layer, chunk))
        hits = []
        for token in log.ids[end : end + AFTER[-1]].tolist():
            misses = sum(decoded(cache, layer, ids) for layer, ids in enumerate(token))
            hits.append(1 - misses / (header.layers * header.top_k))
        found.append((*(np.mean(hits[:count]) for count in AFTER), reads))
    return tuple(np.mean(found, axis=0).tolist())


def compare_prompts(
    log: RoutingLog, wanted: Sequence[float], prompt: int
) -> list[dict[str, float]]:
    """A row a share of the slots."""
    names = ("hits_20", "hits_50", "reads")
    rows = []
    for share in wanted:
        values = after_prompt(log, share, prompt)
        found = {name: round(value, 3) for name, value in zip(names, values, strict=True)}
        rows.append({"share": share, **found})
    return rows


def main() -> None:
    """Replay and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trace", type=Path, help="what `flashmoe run --trace-out` wrote")
    parser.add_argument("--share", type=shares, default=SHARES, help="of all experts, 0.1,0.5")
    parser.add_argument("--prompt", type=whole(), metavar="TOKENS", help="that pass together first")
    parser.add_argument("--json", action="store_true", help="print the JSON line alone")
    results.add_arguments(parser)
    given = parser.parse_args()
    log = read(given.trace)
    if given.prompt:
        for row in compare_prompts(log, given.share, given.prompt):
            print(json.dumps({"trace": given.trace.name, "prompt": given.prompt, **row}))
        return
    rows = [compare(log, share) for share in given.share]
    if not given.json:
        columns = ("ours", "lru", "lfu", "belady", "of_belady", "lookup_us", "admit_us", "call_us")
        print(*(f"{name:>9}" for name in ("share", "slots", *columns)))
        for row in rows:
            figures = (f"{row[name]:9.{2 if name.endswith('us') else 3}f}" for name in columns)
            print(f"{row['share']:9.0%} {row['slots']:9.0f}", *figures)
    header = log.header
    shape = {"layers": header.layers, "experts": header.experts, "top_k": header.top_k}
    line = {"trace": given.trace.name, "tokens": len(log.ids), **shape, "rows": rows}
    asked = {"share": ",".join(map(str, given.share))}
    results.save_if_asked(given, "cache", line, asked)
    print(json.dumps(line))


if __name__ == "__main__":
    run(main)
