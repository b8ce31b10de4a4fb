"""Reads of a chunk's next layer: when they start, what they displace, and what becomes of them."""

from __future__ import annotations

import random
from contextlib import closing
from unittest.mock import patch

import numpy as np
import pytest

from flashmoe.options import Runtime
from flashmoe.quant import Array
from flashmoe.stream.streamer import Streamer
from tests.stream.conftest import EXPERTS, LAYERS, TOP_K, ScriptedReader, TinyStore
from tests.stream.test_passage import chunk, passed, scripted

ALL = LAYERS * EXPERTS
ON, OFF = Runtime(io_threads=2), Runtime(io_threads=2, hints=False)
EVERY = chunk(*range(EXPERTS))


def refuse() -> Array:
    raise AssertionError("asked for nothing")


def labels(reader: ScriptedReader, *kinds: str) -> list[str]:
    return [label for kind, label in reader.calls if kind in kinds]


def counts(streamer: Streamer) -> tuple[int, int, int, int]:
    found = streamer.counters
    return found.hits, found.misses, found.guessed, found.guessed_right


def test_the_next_layer_is_read_in_file_order_behind_this_one_s_own(tiny: TinyStore) -> None:
    reader = ScriptedReader(random.Random(2))
    with scripted(tiny, ALL, reader) as streamer:
        streamer.hint(0, EVERY)
        streamer.expect(1, 8, lambda: chunk(2, 3, 5, 7, 2, 3, 5, 7))
        passed(tiny, streamer, 0, EVERY)
        asked = labels(reader, "hint", "demand")
        assert asked[:EXPERTS] == [f"expert {expert} of layer 0" for expert in range(EXPERTS)]
        assert asked[EXPERTS:] == [f"expert {expert} of layer 1" for expert in (2, 3, 5, 7)]
        before = streamer.counters.snapshot()
        streamer.hint(1, chunk(2, 3, 5, 7))
        passed(tiny, streamer, 1, chunk(2, 3, 5, 7))
        assert len(labels(reader, "hint", "demand")) == EXPERTS + 4  # nothing twice
        step = streamer.counters.since(before)
        assert (step.hits, step.misses, step.guessed_right) == (0, 4, 4)


def test_the_first_layer_of_a_chunk_is_read_at_once(tiny: TinyStore) -> None:
    with closing(Streamer(tiny.store, ALL, ON)) as streamer:
        streamer.expect(0, 8, lambda: chunk(1, 4, 1, 4), at_once=True)
        assert sorted(streamer._reads.tickets) == [(0, 1), (0, 4)]
        passed(tiny, streamer, 0, chunk(1, 4))
        assert counts(streamer) == (0, 2, 2, 2)
        assert not streamer._cache.pinned


@pytest.mark.parametrize("seed", range(20))
def test_wrong_ones_that_have_not_started_are_dropped_and_others_let_go(
    tiny: TinyStore, seed: int
) -> None:
    reader = ScriptedReader(random.Random(seed))
    with scripted(tiny, ALL, reader) as streamer:
        streamer.expect(0, 8, lambda: chunk(0, 1, 2, 3, 0, 1, 2, 3), at_once=True)
        passed(tiny, streamer, 0, chunk(2, 6))
        dropped = labels(reader, "cancel")
        assert set(dropped) <= {"expert 0 of layer 0", "expert 1 of layer 0", "expert 3 of layer 0"}
        assert counts(streamer) == (0, 2, 4 - len(dropped), 1)
        streamer._reads.settle(list(streamer._reads.tickets))
        assert not streamer._cache.pinned


@pytest.mark.parametrize("slots", [1, 2, 3, 2 * TOP_K, 9])
def test_what_is_expected_leaves_a_slot_and_never_displaces_what_is_to_come(
    tiny: TinyStore, slots: int
) -> None:
    with closing(Streamer(tiny.store, slots, ON)) as streamer:
        for layer in range(LAYERS):
            streamer.expect(layer, 8, lambda: EVERY, at_once=True)
            kept = streamer._cache.resident(layer)
            assert kept <= max(slots - 1, 0)
            assert kept <= 2 * TOP_K or slots == 9
            passed(tiny, streamer, layer, EVERY)


def test_experts_of_layers_to_come_stay(tiny: TinyStore) -> None:
    """The cache is full of the last two layers', which the chunk will want."""
    with closing(Streamer(tiny.store, 6, ON)) as streamer:
        for _ in range(4):
            for layer in (2, 3):
                with streamer.hold(layer, np.array([0, 1])) as experts:
                    list(experts)
        passed(tiny, streamer, 0, chunk(0, 1, 2, 3))
        before = {layer: streamer._cache.resident(layer) for layer in (2, 3)}
        streamer.expect(1, 8, lambda: EVERY)
        passed(tiny, streamer, 0, chunk(0, 1, 2, 3))
        assert {layer: streamer._cache.resident(layer) for layer in (2, 3)} == before
        assert before[2] == 2


def test_nothing_is_asked_where_hints_are_off_or_nothing_is_missing(tiny: TinyStore) -> None:
    with closing(Streamer(tiny.store, ALL, OFF)) as streamer:
        streamer.expect(1, 8, refuse, at_once=True)
        passed(tiny, streamer, 0, EVERY)
        assert streamer.counters.guessed == 0
    with closing(Streamer(tiny.store, ALL, ON)) as streamer:
        for layer in range(LAYERS):
            passed(tiny, streamer, layer, EVERY)
        streamer.expect(0, 8, refuse, at_once=True)
        assert streamer.counters.guessed == 0


def test_an_expectation_ends_with_a_token_s(tiny: TinyStore) -> None:
    with closing(Streamer(tiny.store, ALL, ON)) as streamer:
        streamer.expect(1, 8, refuse)
        streamer.foresee(1, lambda: np.array([], np.int64))
        passed(tiny, streamer, 0, EVERY)


def test_an_expert_that_is_being_warmed_is_not_read_twice(tiny: TinyStore) -> None:
    reader = ScriptedReader(random.Random(5))
    shares = np.zeros((LAYERS, EXPERTS))
    shares[0, :4] = 0.5
    with patch.object(reader, "_progress", lambda: None), scripted(tiny, ALL, reader) as streamer:
        streamer.warm(shares)
        assert len(labels(reader, "idle")) == 4
        streamer.expect(0, 8, lambda: chunk(0, 1, 0, 1), at_once=True)
        assert labels(reader, "cancel") == ["expert 0 of layer 0", "expert 1 of layer 0"]
        passed(tiny, streamer, 0, chunk(0, 1))
        assert counts(streamer) == (0, 2, 2, 2)


@pytest.mark.parametrize("seed", range(10))
def test_what_was_read_ahead_does_not_hold_up_an_expert_that_was_not_expected(
    tiny: TinyStore, seed: int
) -> None:
    """The expected ones fill the window, and the first in file order is not among them."""
    reader = ScriptedReader(random.Random(seed))
    with scripted(tiny, 7, reader) as streamer:
        streamer.expect(1, 8, lambda: chunk(4, 5, 6, 7, 4, 5, 6, 7), at_once=True)
        passed(tiny, streamer, 1, EVERY)
        asked = labels(reader, "hint", "demand")
        assert len(asked) - len(labels(reader, "cancel")) == EXPERTS


def test_what_has_come_down_from_a_quicker_memory_meanwhile_is_not_read(tiny: TinyStore) -> None:
    with closing(Streamer(tiny.store, ALL, ON)) as streamer:
        ahead, lending, down, other = streamer._ahead, streamer.lending, 2, 3
        ahead._layer, ahead._absent, ahead._room = 0, [down, other], 2  # as a hold leaves it
        memory = lending.reserve((0, down))
        assert memory is not None
        memory[:] = tiny.records[0][down]
        lending.place((0, down))
        ahead.pursue(streamer._note())
        assert (0, down) not in streamer._reads.tickets
        assert (0, other) in streamer._reads.tickets
        passed(tiny, streamer, 0, EVERY)
