"""The cache policy: who leaves, what never leaves, and its hit rates on two real logs."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.cache import after_prompt, belady, lfu, lru
from flashmoe.apps import routing
from flashmoe.apps.routing_log import RoutingLog, read
from flashmoe.stream.cache import LAST_TOKENS, Admission, Cache, Key

TRACES = Path(__file__).parents[1] / "golden" / "traces"
SHARES = (0.05, 0.1, 0.17, 0.25, 0.5, 0.9)


def ask(cache: Cache, keys: list[Key]) -> int:
    """Look a routing up, admit what it lacks, and return its hits."""
    absent = [key for key in keys if cache.lookup(key) is None]
    for key in absent:
        assert cache.admit(key) is not None
    return len(keys) - len(absent)


def hit_rate(cache: Cache, requests: list[list[Key]]) -> float:
    return sum(ask(cache, keys) for keys in requests) / sum(map(len, requests))


keys = st.tuples(st.integers(0, 2), st.integers(0, 5))
actions = st.sampled_from(["look up", "look up", "admit", "admit", "pin", "unpin", "drop"])


@settings(max_examples=400)
@given(st.integers(1, 7), st.integers(1, 3), st.lists(st.tuples(actions, keys)))
def test_slots_and_pins_whatever_is_asked(
    slots: int, top_k: int, steps: list[tuple[str, Key]]
) -> None:
    """A model without the policy: it only knows what may happen, not who should leave."""
    cache = Cache(slots, 3, top_k)
    slot_of: dict[Key, int] = {}
    pins: dict[Key, int] = {}
    for action, key in steps:
        assert (key in cache) == (key in slot_of)
        if action == "look up":
            assert cache.lookup(key) == slot_of.get(key)
        elif action == "admit" and key not in slot_of:
            admission = cache.admit(key)
            if admission is None:
                assert pins and len(slot_of) == slots
                continue
            if admission.evicted is None:
                assert admission.slot in set(range(slots)) - set(slot_of.values())
            else:
                assert len(slot_of) == slots and admission.evicted not in pins
                assert slot_of.pop(admission.evicted) == admission.slot
            slot_of[key] = admission.slot
        elif action == "pin" and key in slot_of:
            cache.pin(key)
            pins[key] = pins.get(key, 0) + 1
        elif action == "unpin" and key in pins:
            cache.unpin(key)
            pins[key] -= 1
            pins = {key: count for key, count in pins.items() if count}
        elif action == "drop" and key in slot_of and key not in pins:
            assert cache.drop(key) == slot_of.pop(key)
        assert len(cache) == len(slot_of)
        assert {key: cache.slot(key) for key in slot_of} == slot_of


@st.composite
def sweeps(draw: st.DrawFn) -> list[list[Key]]:
    """Routings of one to three experts, layer by layer, token by token."""
    chosen = st.lists(st.integers(0, 7), min_size=1, max_size=3, unique=True).map(sorted)
    routings = draw(st.lists(chosen, max_size=40))
    return [[(number % 4, expert) for expert in experts] for number, experts in enumerate(routings)]


@given(sweeps(), st.integers(3, 12))
def test_pins_on_what_is_in_use_change_nothing(requests: list[list[Key]], slots: int) -> None:
    """So a log, which knows no pins, replays to the hit rate of the run."""
    free, pinning = Cache(slots, 4, 3), Cache(slots, 4, 3)
    for keys in requests:
        absent = [key for key in keys if free.lookup(key) is None]
        assert absent == [key for key in keys if pinning.lookup(key) is None]
        for key in keys:
            if key not in absent:
                pinning.pin(key)
        for key in absent:
            assert pinning.admit(key) == free.admit(key)
            pinning.pin(key)
        for key in reversed(keys):
            pinning.unpin(key)


@given(sweeps(), st.integers(1, 12))
def test_no_routing_loses_an_expert_to_itself_while_others_can_leave(
    requests: list[list[Key]], slots: int
) -> None:
    cache = Cache(slots, 4, 3)
    for keys in requests:
        ask(cache, keys)
        assert sum(key in cache for key in keys) == min(slots, len(keys))


def test_one_tokens_sweep_larger_than_the_cache_hits() -> None:
    """Where a least-recently-used list would never: 6 of the 7 others can stay each time."""
    requests = [[(layer, 0)] for _ in range(50) for layer in range(8)]
    assert lru(requests, 7) == 0
    assert hit_rate(Cache(7, 8, 1), requests) > 0.8


def test_of_equals_the_one_whose_layer_was_just_visited_leaves() -> None:
    cache = Cache(slots=4, layers=4, top_k=1)
    for _ in range(3):
        for layer in range(4):
            ask(cache, [(layer, 0)])
    assert ask(cache, [(0, 0)]) == ask(cache, [(1, 0)]) == 1
    cache.lookup((2, 1))
    assert cache.admit((2, 1)) == Admission(2, (2, 0))  # not wanted now: next use a sweep away
    ask(cache, [(3, 0)])
    cache.lookup((0, 1))
    admission = cache.admit((0, 1))
    assert admission is not None and admission.evicted == (2, 1)  # used once of four times


def test_the_often_used_stay() -> None:
    cache = Cache(slots=5, layers=2, top_k=3)
    dice = random.Random(1)
    hits = 0
    for token in range(400):
        for layer in range(2):
            hit = ask(cache, [(layer, 0), (layer, 1), (layer, dice.randint(2, 60))])
            hits += hit if token >= 20 else 0
    assert hits >= 380 * 2 * 2


def test_what_follows_what_is_learned() -> None:
    """Two groups of experts in turn; a frequency tells them not apart, the order does."""
    requests = [
        [(layer, expert + 4 * (token % 2)) for expert in range(4)]
        for token in range(200)
        for layer in range(4)
    ]
    slots = 18
    assert lru(requests, slots) == 0
    found = hit_rate(Cache(slots, 4, 4), requests)
    assert found > 0.8 * belady(requests, slots) > 0.3


def test_a_rare_expert_leaves_though_it_came_last() -> None:
    cache = Cache(slots=2, layers=1, top_k=1)
    for _ in range(8):
        ask(cache, [(0, 0)])
    ask(cache, [(0, 1)])
    ask(cache, [(0, 0)])
    assert cache.lookup((0, 2)) is None
    admission = cache.admit((0, 2))
    assert admission is not None and admission.evicted == (0, 1)


@pytest.mark.parametrize("share", [0.17, 0.5])
def test_a_prompt_leaves_what_decoding_gathered(share: float) -> None:
    """Of 128 tokens that pass together, the next 20 find as much as if each had been decoded."""
    log = read(TRACES / "olmoe-1b-7b.jsonl")
    layers, experts, top_k = log.header.layers, log.header.experts, log.header.top_k
    slots = int(share * layers * experts)
    decode = list(routing.requests(log))
    undisturbed, prompted = Cache(slots, layers, top_k), Cache(slots, layers, top_k)
    for cache in (undisturbed, prompted):
        hit_rate(cache, decode[: 100 * layers])
    hit_rate(undisturbed, decode[100 * layers : 228 * layers])
    for layer in range(layers):
        routing.sweep(prompted, layer, log.ids[100:228, layer])
    after = decode[228 * layers : 248 * layers]
    assert hit_rate(prompted, after) > hit_rate(undisturbed, after) - 0.02


@pytest.mark.parametrize("name", ["olmoe-1b-7b", "austen-moe"])
def test_what_decoding_will_want_is_told_by_more_than_a_chunks_last_token(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = read(TRACES / f"{name}.jsonl")
    found = {}
    for told in (LAST_TOKENS, 1):
        monkeypatch.setattr("flashmoe.stream.cache.LAST_TOKENS", told)
        found[told] = [after_prompt(log, share, 64)[0] for share in (0.17, 0.5)]
    for ours, last in zip(found[LAST_TOKENS], found[1], strict=True):
        assert ours > last + 0.03


def test_a_sweep_displaces_what_has_passed_before_what_is_to_come() -> None:
    cache = Cache(slots=6, layers=3, top_k=1)
    for _ in range(3):
        for layer in range(3):
            ask(cache, [(layer, 0), (layer, 1)])
    evicted = []
    for layer, first in ((0, 2), (1, 2)):
        assert cache.sweep(layer, [0, 1, first, 3], np.array([[0], [1], [first], [3]])).count(-1)
        for expert in (first, 3):
            found = cache.admit((layer, expert))
            assert found is not None and found.evicted is not None
            evicted.append(found.evicted)
    assert all(layer <= visited for (layer, _), visited in zip(evicted, (0, 0, 1, 1), strict=True))
    assert cache.resident(2) == 2


def test_who_leaves_does_not_depend_on_how_many_are_unpinned_at_once() -> None:
    states = []
    for size in (1, 3, 8):
        cache, wanted = Cache(slots=12, layers=2, top_k=2), list(range(8, 20))
        ids = np.array([[n, (n * 7) % 20] for n in range(20) if n != n * 7 % 20])
        ask(cache, [(1, expert) for expert in range(12)])
        cache.sweep(0, list(range(20)), ids)
        assert len(cache.admit_all(0, list(range(8)))) == 8
        evicted = []
        for start in range(0, 8, size):
            leaving = list(range(8))[start : start + size]
            came = cache.exchange(0, leaving, [1] * len(leaving), wanted, 0)
            del wanted[: len(came)]
            evicted += came
        states.append(evicted)
        assert len(evicted) == 8 and cache.pinned == 8
    assert states[0] == states[1] == states[2]


@pytest.fixture(scope="module", params=["olmoe-1b-7b", "austen-moe"])
def log(request: pytest.FixtureRequest) -> RoutingLog:
    return read(TRACES / f"{request.param}.jsonl")


def test_hit_rates_of_real_logs(log: RoutingLog) -> None:
    """At 17 % above the target, and at every share between LRU and Belady's limit."""
    requests = list(routing.requests(log))
    layers, top_k = log.header.layers, log.header.top_k
    for share in SHARES:
        slots = int(share * layers * log.header.experts)
        found = hit_rate(Cache(slots, layers, top_k), requests)
        assert lru(requests, slots) <= found <= belady(requests, slots), share
        assert found >= lfu(requests, slots, layers), share
        if share == 0.17:
            assert found >= {8: 0.52, 4: 0.43}[top_k]


def test_hit_rates_do_not_hang_on_the_convention(log: RoutingLog) -> None:
    """Each expert admitted before the next of its routing is looked up."""
    requests = [[key] for keys in routing.requests(log) for key in keys]
    layers, top_k = log.header.layers, log.header.top_k
    cache = Cache(int(0.17 * layers * log.header.experts), layers, top_k)
    assert hit_rate(cache, requests) >= {8: 0.52, 4: 0.43}[top_k]


def test_the_same_calls_give_the_same_answers(log: RoutingLog) -> None:
    requests = list(routing.requests(log))[: 100 * log.header.layers]

    def answers() -> list[Admission | None]:
        cache = Cache(60, log.header.layers, log.header.top_k)
        found = []
        for keys in requests:
            found += [cache.admit(key) for key in keys if cache.lookup(key) is None]
        return found

    assert answers() == answers()


def test_limits_by_hand() -> None:
    requests = [[(0, expert)] for expert in (0, 1, 2, 0, 1, 2, 0, 1)]
    assert lru(requests, 2) == 0
    assert belady(requests, 2) == 3 / 8
    assert lfu([[(0, expert)] for expert in (0, 0, 1, 2, 0)], 2, 1) == 2 / 5


def test_the_lowest_slots_are_used_first() -> None:
    cache = Cache(slots=3, layers=1, top_k=1)
    assert [cache.admit((0, expert)) for expert in range(3)] == [(0, None), (1, None), (2, None)]


def test_calls_that_only_a_bug_makes_are_errors() -> None:
    cache = Cache(slots=2, layers=1, top_k=1)
    cache.admit((0, 1))
    cache.pin((0, 1))
    calls: tuple[Callable[[Key], object], ...] = (cache.admit, cache.drop)
    for call in calls:
        with pytest.raises(RuntimeError, match=r"\(0, 1\)"):
            call((0, 1))
    for call in (cache.pin, cache.unpin, cache.drop):
        with pytest.raises(RuntimeError, match=r"\(0, 9\)"):
            call((0, 9))
    calls = (cache.admit, cache.lookup)
    for call in calls:
        with pytest.raises(RuntimeError, match="outside the 1 layers"):
            call((1, 0))
    for slots, layers in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="holds nothing"):
            Cache(slots, layers, 1)
    for top_k in (0, -1, 1 << 16):
        with pytest.raises(ValueError, match=f"chooses {top_k} experts"):
            Cache(1, 1, top_k)


def test_a_guess_displaces_only_what_is_less_likely_and_can_leave_again() -> None:
    cache = Cache(slots=3, layers=3, top_k=1)
    for token in range(20):  # layer 1 always chooses 0, layer 2 never the same twice
        ask(cache, [(0, 0)])
        ask(cache, [(1, 0)])
        ask(cache, [(2, token)])
    assert cache.resident(1) == 1
    cache.lookup((0, 0))
    assert cache.admit((1, 7), 1e-6) is None
    found = cache.admit((1, 7), 0.5)
    assert found is not None and found.evicted == (2, 19)
    cache.pin((1, 7))
    assert cache.admit((1, 8), 0.5) is None  # the others are likely, or of this visit
    cache.unpin((1, 7))
    cache.lookup((2, 20))
    found = cache.admit((2, 20))
    assert found is not None and found.evicted == (1, 7)


def test_calls_for_a_whole_routing_are_the_single_ones_in_order() -> None:
    cache = Cache(slots=4, layers=2, top_k=2)
    assert cache.lookup_all(0, [3, 5]) == [-1, -1]
    assert cache.admit_all(0, [3, 5]) == [(0, -1, -1), (1, -1, -1)]
    assert cache.pinned == 2 and cache.slots_of(0, [5, 4, 3]) == [1, -1, 0]
    assert cache.slots_of(9, [0]) == cache.slots_of(0, [-1]) == [-1]
    assert cache.lookup_all(1, [0, 1, 2]) == [-1, -1, -1]
    assert cache.admit_all(1, [0, 1, 2], [0.5, 0.5, 0.5]) == [(2, -1, -1), (3, -1, -1)]
    cache.unpin_all(0, [5, 3])
    assert cache.admit_all(1, [2]) == [(0, 0, 3)]
    cache.pin_all(1, [0, 2])
    cache.unpin_all(1, [0, 0, 1, 2, 2])
    assert cache.pinned == 0 and len(cache) == 4
    assert cache.lookup_all(0, []) == cache.admit_all(0, []) == []


def test_where_one_of_a_routing_raises_those_before_it_stand() -> None:
    cache = Cache(slots=4, layers=1, top_k=4)
    cache.admit_all(0, [0])
    with pytest.raises(RuntimeError, match=r"expert \(0, 0\) already has slot 0"):
        cache.admit_all(0, [1, 0, 2])
    assert cache.slots_of(0, [0, 1, 2]) == [0, 1, -1]
    with pytest.raises(RuntimeError, match=r"expert \(0, 2\) has no slot to be pinned in"):
        cache.pin_all(0, [0, 2])
    with pytest.raises(RuntimeError, match=r"expert \(0, 2\) is not pinned"):
        cache.unpin_all(0, [0, 2])
    cache.unpin((0, 0))
    cache.unpin((0, 1))
    assert cache.pinned == 0


def test_numbers_that_no_model_has_are_refused() -> None:
    cache = Cache(slots=2, layers=1, top_k=1)
    for expert in (-1, 1 << 15):
        for call in (cache.lookup, cache.admit, lambda key: cache.place(key, 0)):
            with pytest.raises(ValueError, match="is not from 0 to 32767"):
                call((0, expert))
        assert (0, expert) not in cache
    with pytest.raises(ValueError, match="a chance for each expert"):
        cache.admit_all(0, [0, 1], [0.5])
    with pytest.raises(ValueError, match="shares of 2 layers for a cache of 1"):
        cache.seed(np.zeros((2, 3)))
    for layer in (-1, 1):
        with pytest.raises(RuntimeError, match="outside the 1 layers"):
            cache.resident(layer)
    with pytest.raises(KeyError):
        cache.slot((0, 0))
    cache.reserve()
    cache.reserve()
    with pytest.raises(IndexError, match="no slot is free"):
        cache.reserve()
    assert len(cache) == cache.free == 0


def test_shares_of_any_layout_are_taken() -> None:
    shares = np.random.default_rng(1).random((6, 4)).T
    answers = []
    for given_shares in (shares, np.ascontiguousarray(shares), shares.astype(np.float32)):
        cache = Cache(slots=8, layers=4, top_k=1)
        cache.seed(given_shares)
        for layer in (0, 1):
            cache.admit_all(layer, [0, 1, 2, 3])
            cache.unpin_all(layer, [0, 1, 2, 3])
        answers.append([cache.admit((2, expert)) for expert in range(6)])
    assert answers[0] == answers[1] == answers[2]
    evicted = [admission.evicted for admission in answers[0] if admission and admission.evicted]
    assert len(evicted) == 6
    keys = [(layer, expert) for layer in (0, 1) for expert in range(4)]
    assert evicted[0] == max(keys, key=lambda key: key[0] + 4 / shares[key])


@pytest.mark.parametrize("share", [np.nan, np.inf, -0.1, 1.1])
def test_shares_that_are_none_are_refused(share: float) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        Cache(4, 2, 1).seed(np.full((2, 4), share))


def test_only_slots_that_were_given_out_come_back() -> None:
    cache = Cache(2, 2, 1)
    slot = cache.reserve()
    cache.unreserve(slot)
    for wrong in (slot, -1, 2):
        with pytest.raises(ValueError, match="not given out"):
            cache.unreserve(wrong)
        with pytest.raises(ValueError, match="not given out"):
            cache.restore([wrong])
