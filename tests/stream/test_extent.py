"""How many slots there are: the ceiling and what pressure withholds, whatever the disk is doing."""

from __future__ import annotations

import random
from contextlib import closing

import numpy as np
import pytest

from flashmoe.options import Runtime
from flashmoe.stream import streamer as streamers
from flashmoe.stream.slots import State
from flashmoe.stream.streamer import Streamer
from tests.stream.conftest import EXPERTS, LAYERS, ScriptedReader, TinyStore, record_of

ALL = LAYERS * EXPERTS
LEAST = 4


def filled(tiny: TinyStore, least: int = LEAST) -> Streamer:
    """One that has every expert."""
    streamer = Streamer(tiny.store, ALL, Runtime(), least)
    for layer in range(LAYERS):
        with streamer.hold(layer, np.arange(EXPERTS)) as experts:
            list(experts)
    return streamer


def test_as_many_slots_as_the_ceiling_says(tiny: TinyStore) -> None:
    with closing(Streamer(tiny.store, ALL, Runtime(), LEAST)) as streamer:
        assert (streamer.extent.ceiling, streamer.slots, streamer.least_slots) == (ALL, ALL, LEAST)
        streamer.resize(10)
        assert (streamer.slots, streamer.free_slots, streamer.withheld) == (10, 10, 0)
        streamer.resize(20)
        assert (streamer.slots, streamer.free_slots) == (20, 20)


def test_free_slots_go_first_and_then_only_as_many_experts_as_need_be(tiny: TinyStore) -> None:
    with closing(Streamer(tiny.store, ALL, Runtime(), LEAST)) as streamer:
        with streamer.hold(0, np.arange(4)) as experts:
            list(experts)
        streamer.resize(6)
        assert (streamer.slots, streamer.free_slots) == (6, 2)
        assert streamer._cache.resident(0) == 4
        streamer.resize(5)
        assert (streamer._cache.resident(0), streamer.free_slots) == (4, 1)


def test_what_pressure_took_stays_away_under_another_ceiling(tiny: TinyStore) -> None:
    with closing(filled(tiny)) as streamer:
        assert streamer.shrink(5) == 5 == streamer.withheld
        streamer.resize(ALL - 10)
        assert (streamer.slots, streamer.withheld) == (ALL - 15, 5)
        assert streamer.grow(100) == 5
        assert (streamer.slots, streamer.withheld) == (ALL - 10, 0)
        streamer.resize(LEAST)
        assert (streamer.slots, streamer.shrink(3), streamer.withheld) == (LEAST, 0, 0)
        streamer.resize(ALL)
        assert (streamer.slots, streamer.free_slots) == (ALL, ALL - LEAST)


def test_slots_that_are_gone_are_free_and_a_reset_leaves_them_gone(tiny: TinyStore) -> None:
    with closing(filled(tiny)) as streamer:
        streamer.resize(12)
        kept = sum(streamer._slots.state(slot) == State.READY for slot in range(ALL))
        assert kept == 12
        streamer._reset()
        assert (streamer.slots, streamer.free_slots, streamer.extent.ceiling) == (12, 12, 12)
        streamer.resize(ALL)
        assert streamer.free_slots == ALL


def test_a_closed_streamer_does_not_mind(tiny: TinyStore) -> None:
    streamer = filled(tiny)
    streamer.close()
    streamer.resize(5)


@pytest.mark.parametrize("seed", range(60))
def test_while_reads_of_all_kinds_are_under_way(
    tiny: TinyStore, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Hints, guesses and a warm-up pin and reserve slots; the ceiling is kept all the same."""
    dice = random.Random(seed)
    reader = ScriptedReader(dice, failing=0.1 * (seed % 2))
    reader.threads = 2  # type: ignore[attr-defined]
    monkeypatch.setattr(streamers, "DirectReader", lambda threads: reader)
    runtime = Runtime(io_threads=2)
    with closing(Streamer(tiny.store, ALL, runtime, LEAST)) as streamer:
        if dice.random() < 0.5:
            streamer.warm(np.full((LAYERS, EXPERTS), 0.5))
        for _ in range(30):
            layer = dice.randrange(LAYERS)
            ids = np.array(dice.sample(range(EXPERTS), 2))
            if dice.random() < 0.5:
                streamer.hint(layer, ids)
            if dice.random() < 0.3:
                streamer.shrink(dice.randrange(3))
            ceiling = dice.randint(LEAST, ALL)
            streamer.resize(ceiling)
            assert LEAST <= streamer.slots <= ceiling == streamer.extent.ceiling
            try:
                with streamer.hold(layer, ids) as experts:
                    for number, expert in experts:
                        whole = record_of(expert)
                        assert tiny.records[layer][number].tobytes()[: len(whole)] == whole
            except streamers.ReadError:
                assert seed % 2
