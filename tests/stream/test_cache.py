"""The cache policy against a naive least-recently-used list, and its stated behaviour."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashmoe.stream.cache import Admission, Cache, Key


class NaiveLru:
    """What the policy must do, written for reading: oldest first, searched from the start."""

    def __init__(self, slots: int) -> None:
        self.free = list(range(slots))
        self.entries: list[tuple[Key, int]] = []
        self.pinned: list[Key] = []

    def slot(self, key: Key) -> int | None:
        return dict(self.entries).get(key)

    def lookup(self, key: Key) -> int | None:
        slot = self.slot(key)
        if slot is not None:
            self.entries.remove((key, slot))
            self.entries.append((key, slot))
        return slot

    def admit(self, key: Key) -> Admission | None:
        evicted = None
        if not self.free:
            unpinned = [entry for entry in self.entries if entry[0] not in self.pinned]
            if not unpinned:
                return None
            self.entries.remove(unpinned[0])
            evicted, slot = unpinned[0]
        else:
            slot = self.free.pop(0)
        self.entries.append((key, slot))
        return Admission(slot, evicted)

    def drop(self, key: Key) -> None:
        slot = self.slot(key)
        assert slot is not None
        self.entries.remove((key, slot))
        self.free.insert(0, slot)


keys = st.tuples(st.integers(0, 1), st.integers(0, 3))
steps = st.lists(
    st.tuples(st.sampled_from(["use", "use", "use", "pin", "unpin", "drop"]), keys), max_size=80
)


@settings(max_examples=300)
@given(st.integers(1, 5), steps)
def test_it_is_a_least_recently_used_list_with_pins(
    slots: int, steps: list[tuple[str, Key]]
) -> None:
    cache, model = Cache(slots, 3), NaiveLru(slots)
    for action, key in steps:
        present = model.slot(key) is not None
        assert (key in cache) == present
        if action == "use":
            assert cache.lookup(key) == model.lookup(key)
            if not present:
                assert cache.admit(key) == model.admit(key)
        elif action == "pin" and present:
            cache.pin(key)
            model.pinned.append(key)
        elif action == "unpin" and key in model.pinned:
            cache.unpin(key)
            model.pinned.remove(key)
        elif action == "drop" and present and key not in model.pinned:
            cache.drop(key)
            model.drop(key)
        assert len(cache) == len(model.entries)
        assert all(cache.slot(held) == slot for held, slot in model.entries)


def test_one_tokens_sweep_larger_than_the_cache_never_hits() -> None:
    cache = Cache(slots=7, layers=8)
    hits = 0
    for _ in range(10):
        for layer in range(8):
            if cache.lookup((layer, 0)) is None:
                cache.admit((layer, 0))
            else:
                hits += 1
    assert hits == 0


def test_the_lowest_slots_are_used_first() -> None:
    cache = Cache(slots=3, layers=1)
    assert [cache.admit((0, expert)) for expert in range(3)] == [(0, None), (1, None), (2, None)]


def test_a_lookup_keeps_an_expert_and_the_oldest_leaves() -> None:
    cache = Cache(slots=2, layers=1)
    cache.admit((0, 0))
    cache.admit((0, 1))
    assert cache.lookup((0, 0)) == 0
    assert cache.admit((0, 2)) == Admission(1, (0, 1))


def test_recency_is_the_order_of_asking_not_of_release() -> None:
    cache = Cache(slots=2, layers=1)
    for expert in (0, 1):
        cache.admit((0, expert))
        cache.pin((0, expert))
    cache.unpin((0, 1))
    cache.unpin((0, 0))
    assert cache.admit((0, 2)) == Admission(0, (0, 0))


def test_calls_that_only_a_bug_makes_are_errors() -> None:
    cache = Cache(slots=2, layers=1)
    cache.admit((0, 1))
    cache.pin((0, 1))
    for call in (cache.admit, cache.drop):
        with pytest.raises(RuntimeError, match=r"\(0, 1\)"):
            call((0, 1))
    for call in (cache.pin, cache.unpin, cache.drop):
        with pytest.raises(RuntimeError, match=r"\(0, 9\)"):
            call((0, 9))
    with pytest.raises(RuntimeError, match="outside the 1 layers"):
        cache.admit((1, 0))
    for slots, layers in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="holds nothing"):
            Cache(slots, layers)
