"""A picture of the experts: the right states, at any moment, and while another thread streams."""

from __future__ import annotations

import random
import threading
import time
from contextlib import closing
from unittest.mock import patch

import numpy as np

from flashmoe.options import Runtime
from flashmoe.stream.picture import ExpertState
from flashmoe.stream.streamer import Streamer
from tests.stream.conftest import EXPERTS, LAYERS, TOP_K, ScriptedReader, TinyStore

ALL = LAYERS * EXPERTS
OFF = Runtime(io_threads=2, hints=False)


def told(streamer: Streamer, layer: int) -> dict[str, list[int]]:
    """The experts of a layer by state, those that are absent left out."""
    states = streamer.picture.states()
    assert states.shape == (LAYERS, EXPERTS) and states.dtype == np.uint8
    found: dict[str, list[int]] = {}
    for expert, state in enumerate(states[layer]):
        if state:
            found.setdefault(ExpertState(state).name, []).append(expert)
    return found


def hold(streamer: Streamer, layer: int, *ids: int) -> None:
    with streamer.hold(layer, np.array(ids)) as experts:
        assert sorted(expert for expert, _ in experts) == sorted(ids)


def test_a_token_s_hits_and_misses_are_told_until_the_next(tiny: TinyStore) -> None:
    with closing(Streamer(tiny.store, ALL, OFF)) as streamer:
        assert told(streamer, 1) == {}
        hold(streamer, 1, 2, 5)
        assert told(streamer, 1) == {"MISSED": [2, 5]}
        hold(streamer, 1, 5, 7)
        assert told(streamer, 1) == {"MEMORY": [2], "HIT": [5], "MISSED": [7]}
        assert told(streamer, 0) == told(streamer, 2) == {}


def test_what_had_to_leave_is_absent(tiny: TinyStore) -> None:
    with closing(Streamer(tiny.store, TOP_K, OFF)) as streamer:
        hold(streamer, 0, 0, 1)
        hold(streamer, 1, 0, 1)
        hold(streamer, 0, 2, 3)
        assert told(streamer, 0) == {"MISSED": [2, 3]}
        assert told(streamer, 1) == {"MISSED": [0, 1]}, "the last token's choice, left or not"


def test_reads_under_way_are_told_before_anything_else(tiny: TinyStore) -> None:
    reader = ScriptedReader(random.Random(3))
    with patch("flashmoe.stream.streamer.DirectReader", lambda _: reader):
        streamer = Streamer(tiny.store, ALL, Runtime(io_threads=2))
    with closing(streamer):
        streamer.hint(2, np.array([1, 4]))
        assert told(streamer, 2) == {"READING": [1, 4]}
        hold(streamer, 2, 1, 4)
        assert told(streamer, 2) == {"MISSED": [1, 4]}


def test_a_warm_up_shows_as_it_lands(tiny: TinyStore) -> None:
    with closing(Streamer(tiny.store, ALL, Runtime(io_threads=2))) as streamer:
        shares = np.zeros((LAYERS, EXPERTS))
        shares[3, [6, 1]] = 1
        streamer.warm(shares)
        end = time.monotonic() + 10
        while told(streamer, 3) != {"MEMORY": [1, 6]}:
            assert time.monotonic() < end, "the warm-up does not show"
            time.sleep(0.001)
        assert not streamer._warmup.landed, "a look has given the cache something"


def test_a_look_from_another_thread_never_fails_nor_changes_what_is_counted(
    tiny: TinyStore,
) -> None:
    """The same calls with and without onlookers come to the same hits and misses."""

    def figures(*, watched: bool) -> tuple[int, int]:
        dice, over, looks = random.Random(8), threading.Event(), 0
        failures: list[BaseException] = []
        with closing(Streamer(tiny.store, ALL // 2, OFF)) as streamer:

            def look() -> None:
                nonlocal looks
                try:
                    while not over.is_set():
                        assert streamer.picture.states().max() <= max(ExpertState)
                        looks += 1
                except BaseException as error:
                    failures.append(error)

            onlooker = threading.Thread(target=look)
            if watched:
                onlooker.start()
            for _ in range(100):
                for layer in range(LAYERS):
                    hold(streamer, layer, *dice.sample(range(EXPERTS), TOP_K))
            over.set()
            if watched:
                onlooker.join(10)
                assert looks
            assert not failures
            return streamer.counters.hits, streamer.counters.misses

    assert figures(watched=True) == figures(watched=False)


def test_who_is_in_a_tier_above_is_told_unless_something_is_going_on(tiny: TinyStore) -> None:
    with closing(Streamer(tiny.store, ALL, OFF)) as streamer:
        assert streamer.picture.held_above() == 0
        table = np.full((LAYERS, EXPERTS), -1, np.int32)
        streamer.picture.above = table.__getitem__
        hold(streamer, 1, 0, 2)
        table[1, [0, 3]] = 4, 0
        assert told(streamer, 1) == {"VRAM": [3], "MISSED": [0, 2]}
        hold(streamer, 1, 1)
        assert told(streamer, 1) == {"VRAM": [0, 3], "MISSED": [1], "MEMORY": [2]}
        assert streamer.picture.held_above() == 2
        table[1, 0] = -1
        assert told(streamer, 1)["MEMORY"] == [0, 2]
