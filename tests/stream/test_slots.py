"""Slots: where they are, what may follow what, and that untouched ones cost nothing."""

from __future__ import annotations

import mmap
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from flashmoe.errors import BudgetError
from flashmoe.stream.memory import resident_bytes
from flashmoe.stream.slots import Slots, State

FREE, LOADING, READY, HELD = State.FREE, State.LOADING, State.READY, State.HELD
PATHS = {FREE: [], LOADING: [LOADING], READY: [LOADING, READY], HELD: [LOADING, READY, HELD]}
LEGAL = {
    (FREE, LOADING),
    (LOADING, READY),
    (LOADING, FREE),
    (READY, HELD),
    (READY, FREE),
    (HELD, READY),
}


@pytest.mark.parametrize(("before", "after"), list(product(State, State)))
def test_only_the_drawn_transitions_are_possible(before: State, after: State) -> None:
    slots = Slots(2, 4096)
    for state in PATHS[before]:
        slots.move(1, state)
    if (before, after) in LEGAL:
        slots.move(1, after)
        assert slots.state(1) is after
    else:
        with pytest.raises(RuntimeError, match=f"slot 1 .* {before.value} to {after.value}"):
            slots.move(1, after)
        assert slots.state(1) is before
    assert slots.state(0) is FREE


def test_views_are_aligned_writable_apart_and_share_memory() -> None:
    slots = Slots(3, 8192)
    for slot in range(3):
        view = slots.view(slot, 8192)
        assert view.dtype == np.uint8 and view.flags.writeable and view.flags.c_contiguous
        assert view.ctypes.data % 4096 == 0
        view[:] = slot + 1
    for slot in range(3):
        assert (slots.view(slot, 8192) == slot + 1).all()
    assert slots.view(1, 4096).nbytes == 4096


@pytest.mark.parametrize(("slot", "nbytes"), [(-1, 4096), (2, 4096), (0, 8192), (0, 0)])
def test_a_view_outside_the_slot_is_a_bug(slot: int, nbytes: int) -> None:
    with pytest.raises(RuntimeError, match=f"slot {slot} has no {nbytes} bytes"):
        Slots(2, 4096).view(slot, nbytes)


@pytest.mark.parametrize(("count", "slot_bytes"), [(0, 4096), (1, 0), (1, 5000)])
def test_sizes_that_cannot_take_aligned_reads_are_refused(count: int, slot_bytes: int) -> None:
    with pytest.raises(ValueError, match="aligned reads"):
        Slots(count, slot_bytes)


def test_address_space_that_the_system_refuses_is_a_budget_error() -> None:
    with pytest.raises(BudgetError, match="smaller --ram"):
        Slots(1 << 30, 1 << 30)


def test_frozen_bytes_are_the_same_memory_and_cannot_be_thawed() -> None:
    slots = Slots(2, 4096)
    frozen = slots.frozen(1, 4096)
    slots.view(1, 4096)[:] = 7
    assert (frozen == 7).all()
    with pytest.raises(ValueError, match="read-only"):
        frozen[0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        frozen.flags.writeable = True


def test_clearing_makes_every_slot_free() -> None:
    slots = Slots(2, 4096)
    for state in PATHS[HELD]:
        slots.move(1, state)
    slots.clear()
    assert slots.state(1) is FREE


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs a current RSS")
def test_closing_gives_the_memory_back_with_the_last_view() -> None:
    mebibyte = 1 << 20
    slots = Slots(32, mebibyte)
    view = slots.view(3, mebibyte)
    for slot in range(32):
        slots.view(slot, mebibyte)[:: mmap.PAGESIZE] = 1
    full = resident_bytes()
    slots.close()
    slots.close()
    assert view[0] == 1 and resident_bytes() > full - 4 * mebibyte
    del view
    assert resident_bytes() < full - 28 * mebibyte
    for read in (slots.view, slots.frozen):
        with pytest.raises(RuntimeError, match="closed"):
            read(0, 4096)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs a current RSS")
def test_resident_memory_grows_only_with_use() -> None:
    mebibyte = 1 << 20
    before = resident_bytes()
    slots = Slots(64, mebibyte)
    assert resident_bytes() - before < 4 * mebibyte
    for slot in range(32):
        slots.view(slot, mebibyte)[:: mmap.PAGESIZE] = 1
    assert 28 * mebibyte < resident_bytes() - before < 40 * mebibyte
