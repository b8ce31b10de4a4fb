"""The cache and who looks up where experts are while it works: told, withdrawn, sealed."""

from __future__ import annotations

import numpy as np

from flashmoe.stream.cache import Cache


def test_places_are_told_once_the_bytes_are_there_and_withdrawn_with_the_slot() -> None:
    cache, places = Cache(2, 2, 1), np.full((2, 3), -1, np.int32)
    cache.tell(places)
    for expert in range(2):
        assert cache.lookup((0, expert)) is None
        assert cache.admit((0, expert)) is not None
    assert (places == -1).all()
    cache.reveal_all(0, [0, 1, 2])
    assert places.tolist() == [[cache.slot((0, 0)), cache.slot((0, 1)), -1], [-1] * 3]
    assert cache.lookup((1, 2)) is None
    found = cache.admit((1, 2))
    assert found is not None and found.evicted is not None
    assert places[found.evicted] == -1 and (places >= 0).sum() == 1
    kept = next((0, expert) for expert in range(2) if (0, expert) in cache)
    cache.drop(kept)
    assert (places == -1).all()
    cache.place((1, 7), cache.reserve())
    cache.reveal_all(1, [7])  # beyond the row
    assert (places == -1).all()


def test_while_it_is_sealed_nobody_leaves() -> None:
    cache = Cache(2, 1, 1)
    cache.sealed = True
    for expert in range(2):
        cache.lookup((0, expert))
        assert cache.admit((0, expert)) is not None
    cache.lookup((0, 2))
    assert cache.admit((0, 2)) is None
    assert cache.admit((0, 2), 0.9) is None
    assert cache.retire(1, 0) == [] and len(cache) == 2
    cache.sealed = False
    assert cache.admit((0, 2)) is not None
