"""Memory pressure: the judgement on made-up samples, and its rhythm."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmoe.options import Runtime
from flashmoe.stream import memory
from flashmoe.stream.memory import Strain
from flashmoe.stream.pressure import (
    CALM_S,
    INTERVAL_S,
    MIB,
    RESERVE_BYTES,
    SETTLE_S,
    STEP,
    Judge,
    Relief,
)
from flashmoe.stream.streamer import Streamer
from tests.stream.conftest import EXPERTS, LAYERS, TinyStore

CALM = Strain(100.0, 4096 * MIB, 2048 * MIB, 5_000_000, 300, 0)
PLANNED, LEAST, SLOT = 640, 16, 2 * MIB


def judge() -> Judge:
    """One that has seen a calm sample."""
    made = Judge(PLANNED, LEAST, SLOT)
    assert made.judge(CALM, PLANNED) == 0
    return made


def later(seconds: float = INTERVAL_S, since: Strain = CALM, **changes: int) -> Strain:
    return replace(since, seconds=since.seconds + seconds, **changes)


def test_nothing_happens_while_memory_is_there() -> None:
    busy = later(stalled_us=5_090_000, major_faults=5000)  # 90 % stalled, but not for our memory
    assert judge().judge(busy, PLANNED) == 0
    assert judge().judge(later(free_bytes=0), PLANNED) == 0


def test_what_is_missing_is_given_back_at_once() -> None:
    short = later(headroom_bytes=RESERVE_BYTES - 1)
    assert judge().judge(short, PLANNED) == -(RESERVE_BYTES // 2 // SLOT + 1)
    assert judge().judge(later(headroom_bytes=-10 * MIB), PLANNED) == -(106 // 2)
    assert judge().judge(later(swapped_bytes=9 * MIB), PLANNED) == -5


@pytest.mark.parametrize("sign", [{"stalled_us": 5_011_000}, {"major_faults": 311}])
def test_stalls_cost_a_step_until_they_end(sign: dict[str, int]) -> None:
    found = judge()
    strain = later(free_bytes=100 * MIB, **sign)
    assert found.judge(strain, PLANNED) == -PLANNED // STEP
    again = replace(
        later(INTERVAL_S, strain),
        stalled_us=strain.stalled_us + 90_000,
        major_faults=strain.major_faults + 90,
    )
    assert found.judge(again, 600) == 0, "what was given back is to show first"
    last = replace(
        later(SETTLE_S, again),
        stalled_us=again.stalled_us + 900_000,
        major_faults=again.major_faults + 900,
    )
    assert found.judge(last, 600) == -38
    assert found.judge(later(SETTLE_S, last), 562) == 0


def test_calm_brings_slots_back_and_each_relapse_doubles_the_wait() -> None:
    found = judge()
    now = later(headroom_bytes=0)
    assert found.judge(now, PLANNED) < 0
    wait_s = CALM_S
    for _ in range(3):
        now = later(wait_s - 1, now, headroom_bytes=4096 * MIB)
        assert found.judge(now, 300) == 0
        now = later(1.01, now)
        assert found.judge(now, 300) == PLANNED // STEP
        now = later(INTERVAL_S, now, headroom_bytes=0)
        assert found.judge(now, 340) < 0
        wait_s *= 2


def test_growth_asks_for_room_and_ends_at_the_plan() -> None:
    found = judge()
    now = later(2 * CALM_S, headroom_bytes=RESERVE_BYTES + 2 * 40 * SLOT - 1)
    assert found.judge(now, 300) == 0
    now = later(1, now, headroom_bytes=RESERVE_BYTES + 2 * 40 * SLOT)
    assert found.judge(now, 300) == 40
    now = later(CALM_S, now)
    assert found.judge(now, PLANNED - 3) == 3
    assert found.judge(later(CALM_S, now), PLANNED) == 0


whole = st.integers(0, 1 << 40)
strains = st.builds(
    Strain,
    st.floats(0, 1e6),
    st.integers(-(1 << 40), 1 << 40),
    st.integers(-(1 << 40), 1 << 40),
    whole,
    whole,
    whole,
)


@given(samples=st.lists(strains), planned=st.integers(1, 5000), least=st.integers(1, 40))
def test_whatever_the_samples_it_stays_within_plan_and_least(
    samples: list[Strain], planned: int, least: int
) -> None:
    least = min(least, planned)
    found, slots = Judge(planned, least, SLOT), planned
    for sample in samples:
        slots += found.judge(sample, slots)
        assert least <= slots <= planned


def test_relief_looks_every_tenth_of_a_second_and_acts(
    tiny: TinyStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    times = iter([0.0, 0.0, 0.05, 0.2, 0.2, 0.21])
    samples = iter([CALM, later(headroom_bytes=0)])
    count = LAYERS * EXPERTS
    with closing(Streamer(tiny.store, count, Runtime())) as streamer:
        relief = Relief(count, 4, 16 * MIB, sample=lambda: next(samples), clock=lambda: next(times))
        for layer in range(LAYERS):
            with streamer.hold(layer, np.arange(EXPERTS)) as experts:
                list(experts)
        for _ in range(4):
            relief.tend(streamer)
        assert next(times, None) is None and next(samples, None) is None
        assert streamer.slots == count - 6
    assert caplog.messages == [
        f"memory is short: the cache gives back 96.00 MiB and has {count - 6} slots"
    ]


def moments() -> Iterator[float]:
    now = 0.0
    while True:
        yield now
        now += 1


def test_a_cache_that_is_small_by_now_grows_again(tiny: TinyStore) -> None:
    clock = moments()
    count = LAYERS * EXPERTS
    samples = [CALM, later(headroom_bytes=0), later(2 * CALM_S)]
    with closing(Streamer(tiny.store, count, Runtime())) as streamer:
        relief = Relief(count, 4, 16 * MIB, lambda: samples.pop(0), lambda: next(clock))
        relief.tend(streamer)
        relief.tend(streamer)
        assert streamer.slots < count
        small = streamer.slots
        relief.tend(streamer)
        assert streamer.slots == small + 2


def test_a_sample_of_this_machine_is_cheap() -> None:
    import time

    began = time.perf_counter()
    found = [memory.strain() for _ in range(20)]
    assert time.perf_counter() - began < 0.2
    assert found[0].headroom_bytes > 0 and found[0].seconds < found[-1].seconds
