"""Slots get memory ahead of the first read: all, unless stopped, short of memory, or given back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from flashmoe.arena import arena, back
from flashmoe.stream import backing
from flashmoe.stream.backing import Backing
from flashmoe.stream.memory import Strain, resident_bytes
from flashmoe.stream.slots import Slots

SLOT_BYTES = 1 << 20
COUNT = 96
NEAR_BYTES = 6 << 20  # what else a process takes meanwhile, and the rest of a large page


def able() -> bool:
    return back(arena(4096, large_pages=False), 0, 4096)


pytestmark = pytest.mark.skipif(not able(), reason="this system gives no memory ahead of its use")


def sample(headroom_bytes: int = 1 << 40) -> Callable[[], Strain]:
    return lambda: Strain(0.0, headroom_bytes, 0, 0, 0, 0)


@pytest.fixture
def slots() -> Iterator[Slots]:
    made = Slots(COUNT, SLOT_BYTES)
    yield made
    made.close()


def ended(thread: Backing) -> None:
    """Wait until there is nothing left to do."""
    worker = thread._thread
    assert worker is not None
    worker.join(timeout=60)
    assert not worker.is_alive()


def test_all_slots_are_resident_in_the_end_and_hold_what_was_written(slots: Slots) -> None:
    slots.view(5, 8)[:] = 7
    before = resident_bytes()
    working = Backing(slots, sample())
    ended(working)
    grown = resident_bytes() - before
    assert COUNT * SLOT_BYTES - NEAR_BYTES < grown < COUNT * SLOT_BYTES + NEAR_BYTES
    assert (slots.view(5, 8) == 7).all() and not slots.view(6, SLOT_BYTES).any()
    working.stop()
    working.stop()


def test_what_was_given_back_is_not_taken_again(slots: Slots) -> None:
    for slot in range(COUNT // 2):
        slots.discard(slot)
    before = resident_bytes()
    ended(Backing(slots, sample()))
    assert resident_bytes() - before < COUNT * SLOT_BYTES // 2 + NEAR_BYTES


def test_nothing_is_taken_from_a_machine_that_is_short(slots: Slots) -> None:
    before = resident_bytes()
    ended(Backing(slots, sample(backing.LEAST_HEADROOM_BYTES - 1)))
    assert resident_bytes() - before < NEAR_BYTES


def test_it_looks_again_on_its_way(slots: Slots) -> None:
    looks = iter([1 << 40, 0])
    before = resident_bytes()
    ended(Backing(slots, lambda: sample(next(looks))()))
    assert resident_bytes() - before < backing.LOOK_BYTES + NEAR_BYTES


def test_stopping_ends_it_between_two_steps(slots: Slots, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = list[int]()

    def slow(slot: int, count: int) -> bool:
        steps.append(slot)
        time.sleep(0.02)
        return True

    monkeypatch.setattr(slots, "back", slow)
    working = Backing(slots, sample())
    while not steps:
        time.sleep(0.001)
    working.stop()
    assert len(steps) < COUNT * SLOT_BYTES // backing.STEP_BYTES
    assert steps == sorted(steps)


def test_slots_that_nobody_holds_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slots(COUNT, SLOT_BYTES)
    backed = Slots.back

    def slowly(self: Slots, slot: int, count: int) -> bool:
        time.sleep(0.02)
        return backed(self, slot, count)

    monkeypatch.setattr(Slots, "back", slowly)
    before = resident_bytes()
    working = Backing(slow, sample())
    del slow
    ended(working)
    assert resident_bytes() - before < COUNT * SLOT_BYTES // 2


def test_a_small_arena_takes_no_thread() -> None:
    slots = Slots(4, SLOT_BYTES)
    assert Backing(slots, sample())._thread is None
    slots.close()


def test_backing_keeps_what_others_write_meanwhile(slots: Slots) -> None:
    working = Backing(slots, sample())
    for slot in range(COUNT):
        slots.view(slot, SLOT_BYTES)[:] = slot % 251
    ended(working)
    for slot in range(COUNT):
        assert (slots.view(slot, SLOT_BYTES) == slot % 251).all()
    assert slots.back(COUNT, 1)  # beyond the last there is nothing to do
    slots.close()
    assert not slots.back(0, 1)
