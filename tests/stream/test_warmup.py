"""Warming up: likeliest first, into free slots, always behind what a routing asks for."""

from __future__ import annotations

import random
import time
from contextlib import closing, suppress
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashmoe.errors import ReadError
from flashmoe.options import Runtime
from flashmoe.quant import Array
from flashmoe.stream.streamer import Streamer
from flashmoe.stream.warmup import AT_ONCE, worth_reading
from tests.stream.conftest import EXPERTS, LAYERS, TOP_K, ScriptedReader, TinyStore, record_of

ALL = LAYERS * EXPERTS
RUNTIME = Runtime(io_threads=2)


def shares(*chosen: tuple[int, int]) -> Array:
    """The first of ``chosen`` is the likeliest."""
    found = np.zeros((LAYERS, EXPERTS))
    for rank, key in enumerate(chosen):
        found[key] = 1 / (1 + rank)
    return found


def held(tiny: TinyStore, streamer: Streamer, layer: int, ids: list[int]) -> None:
    """Hold a routing to its end, and compare every byte."""
    nbytes = tiny.store.layout(layer).nbytes
    with streamer.hold(layer, np.array(ids)) as experts:
        for expert, weights in experts:
            assert record_of(weights) == tiny.records[layer][expert, :nbytes].tobytes()


def landed(streamer: Streamer, count: int) -> None:
    """Wait for a warm-up."""
    end = time.monotonic() + 10
    while streamer._warmup.landed < count:
        assert time.monotonic() < end, "the warm-up does not end"
        streamer._warmup.land()
        time.sleep(0.001)


def test_the_likeliest_come_first_and_those_never_chosen_not_at_all() -> None:
    found = worth_reading(np.array([[0, 0.5, 0.25], [0.5, 0, 0.75]]))
    assert found == [(1, 2), (0, 1), (1, 0), (0, 2)]


def test_what_was_warmed_is_a_hit_when_it_is_first_asked(tiny: TinyStore) -> None:
    chosen = [(layer, expert) for layer in range(LAYERS) for expert in (5, 2)]
    with closing(Streamer(tiny.store, ALL, RUNTIME)) as streamer:
        streamer.warm(shares(*chosen))
        landed(streamer, len(chosen))
        for layer in range(LAYERS):
            streamer.hint(layer, np.array([5, 1]))
            held(tiny, streamer, layer, [5, 1])
        assert (streamer.counters.hits, streamer.counters.misses) == (LAYERS, LAYERS)
        assert not streamer._warmup


def test_only_free_slots_are_warmed(tiny: TinyStore) -> None:
    with closing(Streamer(tiny.store, 5, RUNTIME)) as streamer:
        held(tiny, streamer, 0, [0, 1])
        streamer.warm(np.ones((LAYERS, EXPERTS)))
        landed(streamer, 3)
        assert not streamer._warmup
        held(tiny, streamer, 0, [0, 1])
        assert (streamer.counters.hits, streamer.counters.misses) == (2, 2)


def test_a_damaged_record_is_met_when_it_is_asked_for(own: TinyStore) -> None:
    own.damage(1, 3)
    with closing(Streamer(own.store, ALL, RUNTIME)) as streamer:
        streamer.warm(shares((1, 3), (1, 4)))
        landed(streamer, 1)
        own.damage(1, 3)
        held(own, streamer, 1, [3, 4])
        assert (streamer.counters.hits, streamer.counters.misses) == (1, 1)
        assert streamer._cache.free == ALL - 2


def scripted(tiny: TinyStore, slots: int, seed: int, failing: float = 0.0) -> Streamer:
    reader = ScriptedReader(random.Random(seed), failing)
    with patch("flashmoe.stream.streamer.DirectReader", return_value=reader):
        return Streamer(tiny.store, slots, RUNTIME)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    slots=st.integers(TOP_K, ALL),
    failing=st.sampled_from([0.0, 0.2]),
    ask=st.lists(
        st.tuples(st.integers(0, LAYERS - 1), st.sets(st.integers(0, EXPERTS - 1), min_size=1)),
        max_size=10,
    ),
)
def test_whatever_the_disk_does_every_byte_is_right(
    tiny: TinyStore, seed: int, slots: int, failing: float, ask: list[tuple[int, set[int]]]
) -> None:
    dice = random.Random(seed)
    with closing(scripted(tiny, slots, seed, failing)) as streamer:
        streamer.warm(np.random.default_rng(seed).random((LAYERS, EXPERTS)))
        for layer, ids in ask:
            if dice.random() < 0.5:
                streamer.hint(layer, np.array(sorted(ids)))
            if dice.random() < 0.2:
                streamer.shrink(dice.randrange(3))
            if dice.random() < 0.2:
                streamer.grow(dice.randrange(3))
            streamer._reader.failing = 0.0  # type: ignore[attr-defined]
            with suppress(ReadError):  # of one that had begun before it was asked for
                held(tiny, streamer, layer, sorted(ids))
            held(tiny, streamer, layer, sorted(ids))
            streamer._reader.failing = failing  # type: ignore[attr-defined]
        waiting = len(streamer._warmup)
        cache = streamer._cache
        assert len(cache) + cache.free + waiting == cache.slots <= slots


def test_one_that_has_not_started_is_a_miss_and_read_at_once(tiny: TinyStore) -> None:
    with closing(scripted(tiny, ALL, 1)) as streamer:
        reader = streamer._reader
        assert isinstance(reader, ScriptedReader)
        with patch.object(ScriptedReader, "_progress"):
            streamer.warm(shares((0, 0), (0, 1)))
            streamer.hint(0, np.array([1, 2]))
        names = [f"expert {expert} of layer 0" for expert in range(3)]
        assert reader.calls == [
            ("idle", names[0]),
            ("idle", names[1]),
            ("cancel", names[1]),
            ("hint", names[1]),
            ("hint", names[2]),
        ]
        held(tiny, streamer, 0, [1, 2])
        assert (streamer.counters.hits, streamer.counters.misses) == (0, 2)


def test_slots_that_wait_for_a_warm_up_are_given_back_to_what_is_asked(tiny: TinyStore) -> None:
    with closing(scripted(tiny, 4, 1)) as streamer:
        with patch.object(ScriptedReader, "_progress"):
            streamer.warm(shares((3, 0), (3, 1), (3, 2), (3, 3)))
            assert streamer._cache.free == 0
            streamer.hint(0, np.array([0, 1]))
            assert list(streamer._warmup._waiting) == [(3, 0), (3, 1)], "the least likely went"
        held(tiny, streamer, 0, [0, 1])


def test_one_slot_that_is_being_warmed_is_waited_for(tiny: TinyStore) -> None:
    with closing(scripted(tiny, 1, 1)) as streamer, patch.object(ScriptedReader, "_progress"):
        streamer.warm(shares((3, 0)))
        streamer._reader._advance(1)  # type: ignore[attr-defined]  # it has begun
        held(tiny, streamer, 0, [0, 1, 2])


class CountingReader(ScriptedReader):
    """Counts what is asked of it; no read ever starts."""

    asked = 0

    def done(self, ticket: int) -> bool:
        self.asked += 1
        return False

    def _progress(self) -> None:
        self.asked += 1


@pytest.mark.parametrize("waiting", [1, ALL - TOP_K])
def test_a_layer_costs_the_same_however_many_wait(tiny: TinyStore, waiting: int) -> None:
    reader = CountingReader(random.Random(0))
    with patch("flashmoe.stream.streamer.DirectReader", return_value=reader):
        streamer = Streamer(tiny.store, ALL, RUNTIME)
    with closing(streamer):
        keys = [(layer, expert) for layer in range(1, LAYERS) for expert in range(EXPERTS)]
        streamer.warm(shares(*keys[:waiting]))
        reader.asked = 0
        streamer.hint(0, np.array([0, 1]))
        assert reader.asked == 3, "is the first one there, and two reads"


def test_landing_is_bounded(tiny: TinyStore) -> None:
    with closing(scripted(tiny, ALL, 1)) as streamer:
        streamer.warm(np.ones((LAYERS, EXPERTS)))
        with patch("flashmoe.stream.warmup.AT_ONCE", 3):
            while len(streamer._reader.order) < ALL:  # type: ignore[attr-defined]
                streamer._reader._progress()  # type: ignore[attr-defined]
            streamer._warmup.land()
            assert streamer._warmup.landed == 3
        assert AT_ONCE > 3
