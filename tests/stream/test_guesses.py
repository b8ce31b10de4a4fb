"""Guessed reads through the streamer: what they bring, count, and never displace."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import closing
from unittest.mock import patch

import numpy as np
import pytest

from flashmoe.errors import ReadError
from flashmoe.options import Runtime
from flashmoe.quant import Array
from flashmoe.stream.streamer import Streamer
from tests.stream.conftest import EXPERTS, LAYERS, TOP_K, ScriptedReader, TinyStore, record_of

ALL = LAYERS * EXPERTS
ON, OFF = Runtime(io_threads=2), Runtime(io_threads=2, hints=False)


def ranks(*ids: int) -> Callable[[], Array]:
    return lambda: np.array(ids)


def token(
    tiny: TinyStore, streamer: Streamer, layer: int, ids: list[int], guess: Callable[[], Array]
) -> None:
    """One layer of a token: foresee the next, hint, hold, and compare every byte."""
    streamer.foresee((layer + 1) % LAYERS, guess)
    streamer.hint(layer, np.array(ids))
    nbytes = tiny.store.layout(layer).nbytes
    with streamer.hold(layer, np.array(ids)) as experts:
        for expert, weights in experts:
            assert record_of(weights) == tiny.records[layer][expert, :nbytes].tobytes()


def counts(streamer: Streamer) -> tuple[int, int, int, int]:
    found = streamer.counters
    return found.hits, found.misses, found.guessed, found.guessed_right


def test_a_right_guess_is_read_once_and_is_a_miss(tiny: TinyStore) -> None:
    with closing(Streamer(tiny.store, ALL, ON)) as streamer:
        token(tiny, streamer, 0, [0, 1], ranks(4, 5, 6, 7))
        assert counts(streamer) == (0, 2, 2, 0)
        token(tiny, streamer, 1, [4, 5], ranks())
        assert counts(streamer) == (0, 4, 2, 2)
        sizes = [tiny.store.layout(layer).record_bytes for layer in (0, 0, 1, 1)]
        assert streamer.counters.bytes_read == sum(sizes)
        token(tiny, streamer, 1, [4, 5], ranks())
        assert counts(streamer) == (2, 4, 2, 2)


def test_a_wrong_guess_that_was_read_is_a_miss_when_it_is_asked_for_later(tiny: TinyStore) -> None:
    with closing(Streamer(tiny.store, ALL, ON)) as streamer:
        token(tiny, streamer, 0, [0, 1], ranks(4, 5))
        # The disk has had time for both, or they go.
        streamer._reads.settle(list(streamer._reads.tickets))
        there = streamer.counters.guessed
        token(tiny, streamer, 1, [2, 3], ranks())
        assert counts(streamer) == (0, 4, there, 0)
        token(tiny, streamer, 1, [4, 5], ranks())
        assert counts(streamer) == (0, 6, there, there)


@pytest.mark.parametrize("seed", range(30))
def test_wrong_guesses_that_have_not_started_are_dropped(tiny: TinyStore, seed: int) -> None:
    reader = ScriptedReader(random.Random(seed))
    with patch("flashmoe.stream.streamer.DirectReader", lambda threads: reader):
        streamer = Streamer(tiny.store, ALL, ON)
    with closing(streamer):
        token(tiny, streamer, 0, [0, 1], ranks(6, 7, 4, 5))
        token(tiny, streamer, 1, [2, 3], ranks())
        dropped = sum(kind == "cancel" for kind, _ in reader.calls)
        assert counts(streamer) == (0, 4, 2 - dropped, 0)
        labels = [label for kind, label in reader.calls if kind in ("hint", "guess")]
        assert labels[:2] == ["expert 0 of layer 0", "expert 1 of layer 0"]
        assert labels[2:4] == ["expert 6 of layer 1", "expert 7 of layer 1"]  # after those


def test_nothing_is_ranked_where_hints_are_off_or_nothing_is_missing(tiny: TinyStore) -> None:
    def refuse() -> Array:
        raise AssertionError("ranked for nothing")

    with closing(Streamer(tiny.store, ALL, OFF)) as streamer:
        token(tiny, streamer, 0, [0, 1], refuse)
    with closing(Streamer(tiny.store, ALL, ON)) as streamer:
        for layer in range(LAYERS):
            token(tiny, streamer, layer, list(range(EXPERTS)), ranks())
        token(tiny, streamer, 0, [0, 1], refuse)
        assert streamer.counters.guessed == 0


def test_a_guess_displaces_nothing_that_the_open_hold_uses(tiny: TinyStore) -> None:
    with closing(Streamer(tiny.store, TOP_K, ON)) as streamer:
        for layer in (0, 1, 2, 3, 0):
            token(tiny, streamer, layer, [1, 2], ranks(3, 4))
        assert streamer.counters.guessed == 0  # every slot is the routing's own
    with closing(Streamer(tiny.store, TOP_K + 1, ON)) as streamer:
        for layer in (0, 1, 2, 3, 0):
            token(tiny, streamer, layer, [1, 2], ranks(3, 4))
        assert 0 < streamer.counters.guessed <= 5


def test_a_rank_that_fails_costs_the_cache_and_nothing_else(tiny: TinyStore) -> None:
    def fail() -> Array:
        raise KeyError("router")

    with closing(Streamer(tiny.store, ALL, ON)) as streamer:
        with pytest.raises(KeyError, match="router"):
            token(tiny, streamer, 0, [0, 1], fail)
        for layer in range(LAYERS):
            token(tiny, streamer, layer, list(range(EXPERTS)), ranks())


def test_what_an_open_hold_waits_for_is_no_guess_any_more(tiny: TinyStore) -> None:
    """An expert that was hinted, has lost its slot, and was guessed again before it is held."""
    for seed in range(20):
        reader = ScriptedReader(random.Random(seed))
        with patch("flashmoe.stream.streamer.DirectReader", return_value=reader):
            streamer = Streamer(tiny.store, ALL, ON)
        with closing(streamer):
            streamer.hint(0, np.array([0, 1]))
            streamer._reads.settle(list(streamer._reads.tickets))
            streamer.shrink(ALL)
            streamer.grow(ALL)
            streamer.foresee(0, ranks(0, 1))
            streamer.hint(2, np.array([3]))
            with streamer.hold(0, np.array([0, 1])) as experts:
                streamer.hint(3, np.array([5]))
                assert sorted(expert for expert, _ in experts) == [0, 1]


def test_a_wide_hold_that_fails_teaches_nothing_of_time(own: TinyStore) -> None:
    own.damage(0, 3)
    with closing(Streamer(own.store, ALL, ON)) as streamer:
        with pytest.raises(ReadError):
            token(own, streamer, 0, list(range(EXPERTS)), ranks())
        assert streamer._guesses._busy_since is None
