"""Records lent from RAM: the bytes of the store, in slots that nobody takes meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from unittest.mock import patch

import numpy as np
import pytest

from flashmoe.options import Runtime
from flashmoe.quant import Array
from flashmoe.stream.streamer import Streamer
from tests.stream.conftest import EXPERTS, LAYERS, TOP_K, TinyStore


@pytest.fixture
def streamer(tiny: TinyStore) -> Iterator[Streamer]:
    with closing(Streamer(tiny.store, 3 * TOP_K, Runtime(io_threads=2))) as streamer:
        yield streamer


def record_of(streamer: Streamer, layer: int, expert: int) -> Array:
    memory, (start,), nbytes = streamer.lending.spans(layer, [expert])
    return memory[start : start + nbytes]


def read(streamer: Streamer, layer: int, *experts: int) -> None:
    with streamer.hold(layer, np.array(experts)) as found:
        assert len(list(found)) == len(experts)


def test_the_record_of_what_a_hold_yields_is_the_stores(
    tiny: TinyStore, streamer: Streamer
) -> None:
    for layer in range(LAYERS):
        with streamer.hold(layer, np.array([1, 6])) as experts:
            for expert, _ in experts:
                record = record_of(streamer, layer, expert)
                np.testing.assert_array_equal(record, tiny.records[layer][expert])
                assert not record.flags.writeable


def test_what_is_not_in_memory_has_none_and_is_not_lent(streamer: Streamer) -> None:
    with pytest.raises(KeyError):
        record_of(streamer, 0, 1)
    read(streamer, 0, 2)
    assert streamer.lending.lend(0, [1, 2]) == [2]


def test_what_is_lent_stays_and_leaves_room_for_a_token(
    tiny: TinyStore, streamer: Streamer
) -> None:
    for pair in ((0, 1), (2, 3)):
        read(streamer, 0, *pair)
    assert streamer.least_slots == 2 * TOP_K
    assert streamer.lending.lend(0, [0, 1, 2, 3]) == [0, 1]
    assert streamer.lending.lend(0, [0, 1, 2, 3]) == []
    records = [record_of(streamer, 0, expert) for expert in (0, 1)]
    for layer in range(1, LAYERS):
        for expert in range(0, EXPERTS, 2):
            read(streamer, layer, expert, expert + 1)
    for expert, record in enumerate(records):
        np.testing.assert_array_equal(record, tiny.records[0][expert])
    streamer.lending.take_back_all(0, [0])
    streamer.lending.take_all_back()
    assert not streamer._cache.pinned
    assert streamer.lending.room == TOP_K


def test_what_is_heeded_is_a_use_and_one_that_lasts(tiny: TinyStore, streamer: Streamer) -> None:
    """It leaves later than what was used as often, but longer ago."""
    for pair in ((0, 1), (2, 3), (4, 5)):
        read(streamer, 0, *pair)
    for layer in (1, 2, 0, 1, 2, 0):
        streamer.lending.heed(layer, [0, 1])
    assert streamer.counters.hits == 0
    read(streamer, 1, 6, 7)
    read(streamer, 2, 6, 7)
    assert streamer._cache.slots_of(0, [2, 3, 4, 5]) == [-1] * 4
    assert min(streamer._cache.slots_of(0, [0, 1])) >= 0


def test_what_is_forgotten_leaves_unless_it_is_in_use(streamer: Streamer) -> None:
    read(streamer, 0, 0, 1)
    with streamer.hold(0, np.array([1, 2])) as found:
        assert len(list(found)) == 2
        for expert in (0, 1, 7):
            streamer.lending.forget(0, [expert])
    assert [slot >= 0 for slot in streamer._cache.slots_of(0, [0, 1, 2])] == [False, True, True]
    read(streamer, 0, 0, 1)


def test_a_reserved_slot_is_nobodys_until_its_expert_has_come(
    tiny: TinyStore, streamer: Streamer
) -> None:
    record = streamer.lending.reserve((1, 4))
    assert record is not None
    assert streamer.lending.reserve((1, 4)) is None
    for expert in range(0, EXPERTS, 2):
        read(streamer, 0, expert, expert + 1)
    record[:] = tiny.records[1][4]
    streamer.lending.place((1, 4))
    before = streamer.counters.snapshot()
    read(streamer, 1, 4)
    assert streamer.counters.since(before).hits == 1
    np.testing.assert_array_equal(record_of(streamer, 1, 4), tiny.records[1][4])
    assert streamer.lending.reserve((1, 4)) is None
    assert streamer.lending.reserve((1, 5)) is None, "no slot is free"


def test_a_slot_reserved_in_vain_is_free_again(streamer: Streamer) -> None:
    free = streamer.free_slots
    assert streamer.lending.reserve((1, 4)) is not None
    assert streamer.lending.reserve((1, 5)) is not None
    read(streamer, 1, 4)
    streamer.lending.place((1, 4))  # it was read meanwhile
    streamer.lending.take_all_back()
    assert streamer.free_slots == free - 1
    read(streamer, 1, 4, 5)


def test_what_is_being_read_is_not_lent(streamer: Streamer) -> None:
    with patch.object(streamer._reader, "collect", lambda *_, **__: ([], [])):
        streamer.hint(0, np.array([1, 2]))
        assert streamer.lending.lend(0, [1, 2]) == []
