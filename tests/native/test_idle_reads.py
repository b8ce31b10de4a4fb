"""Idle reads of native/io.cpp: behind everything else, and only once there is calm."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flashmoe import _native
from tests.native.test_reader import OK, OS_ERROR, PAGE, Busy, pages

CALM_S = 0.05  # kCalm in native/io.h


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[Busy]:
    busy = Busy(tmp_path)
    yield busy
    busy.reader.close()


def idle(busy: Busy) -> int:
    return busy.reader.submit_idle(busy.file, 0, pages(PAGE), busy.small)


def order_of(busy: Busy, tickets: list[int]) -> list[int]:
    """The places in ``tickets`` in the order of finishing."""
    finished, left = [], list(tickets)
    while left:
        first = busy.reader.wait_any(left)
        assert busy.reader.wait(first) == (OK, 0)
        finished.append(tickets.index(first))
        left.remove(first)
    return finished


def test_idle_reads_come_last_and_in_order(busy: Busy) -> None:
    tickets: list[int] = []

    def act() -> None:
        tickets[:] = [idle(busy), idle(busy), busy.submit(demand=False), busy.submit(demand=True)]

    busy.while_reading(act)
    assert order_of(busy, tickets) == [3, 2, 0, 1]


def with_slot(reader: _native.Reader, file: int, checksum: int) -> None:
    """A slot, and a record that fits into it."""
    reader.describe(file, 0, PAGE, [checksum])
    reader.into(pages(PAGE), PAGE)


def guess(reader: _native.Reader, file: int) -> int:
    return reader.submit_records(file, [0], [0], 2)


def test_a_reader_has_its_slots_once(busy: Busy) -> None:
    """Others would free memory that is being read into."""
    with_slot(busy.reader, busy.file, busy.small)
    with pytest.raises(ValueError, match="once"):
        busy.reader.into(pages(PAGE), PAGE)
    busy.reader.close()
    with pytest.raises(ValueError, match="once"):
        busy.reader.into(pages(PAGE), PAGE)
    with pytest.raises(RuntimeError, match="closed"):
        guess(busy.reader, busy.file)


def test_guessed_reads_come_after_hinted_ones_and_before_idle_ones(busy: Busy) -> None:
    tickets: list[int] = []
    with_slot(busy.reader, busy.file, busy.small)

    def act() -> None:
        tickets[:] = [idle(busy), guess(busy.reader, busy.file)]
        tickets.extend([busy.submit(demand=False), busy.submit(demand=True)])

    busy.while_reading(act)
    assert order_of(busy, tickets) == [3, 2, 1, 0]


@pytest.mark.parametrize("promoted", [False, True])
def test_a_guessed_read_waits_until_nothing_else_is_read(tmp_path: Path, promoted: bool) -> None:
    """Although a thread is free, unless somebody has come to wait for it."""
    busy = Busy(tmp_path)
    busy.reader.close()
    reader = _native.Reader(2)
    file = reader.open(str(tmp_path / "large"), False)
    with_slot(reader, file, busy.small)
    early = 0
    for _ in range(5):
        large = reader.submit(file, 0, busy.into, busy.checksum, True)
        ticket = guess(reader, file)
        if promoted:
            reader.promote(ticket)
        assert reader.wait(ticket) == (OK, 0)
        early += not reader.done(large)
        assert reader.wait(large) == (OK, 0)
    reader.close()
    assert early > 0 if promoted else early == 0


def test_a_promoted_one_overtakes_hints_and_a_cancelled_one_is_gone(busy: Busy) -> None:
    tickets: list[int] = []
    into = pages(PAGE)

    def act() -> None:
        tickets[:] = [idle(busy), idle(busy), busy.submit(demand=False)]
        gone = busy.reader.submit_idle(busy.file, 0, into, busy.small)
        busy.reader.promote(tickets[1])
        assert busy.reader.cancel(gone)
        with pytest.raises(IndexError):
            busy.reader.done(gone)

    busy.while_reading(act)
    assert order_of(busy, tickets) == [1, 2, 0]
    assert not into.any()


def test_close_and_drain_end_them(busy: Busy) -> None:
    def act() -> None:
        tickets = [idle(busy) for _ in range(50)]
        busy.reader.promote(tickets[7])
        busy.reader.drain()
        for ticket in tickets:
            with pytest.raises(IndexError):
                busy.reader.wait(ticket)

    busy.reader.submit(busy.file, 0, busy.into, busy.checksum, True)
    act()
    assert busy.reader.wait(busy.submit(demand=True)) == (OK, 0)
    tickets = [idle(busy) for _ in range(50)]
    busy.reader.close()
    outcomes = {busy.reader.wait(ticket) for ticket in tickets}
    assert outcomes <= {(OK, 0), (OS_ERROR, errno.ECANCELED)}


def test_none_before_there_is_calm_and_then_half_as_many_as_threads(tmp_path: Path) -> None:
    large = Busy(tmp_path)
    size = len(large.into)
    reader = _native.Reader(4)
    file = reader.open(str(tmp_path / "large"), False)

    def begun(pause_s: float) -> int:
        """How many of six idle reads, each much longer than 5 ms, begin so soon after a demand."""
        demanded = reader.submit(file, 0, pages(PAGE), large.small, True)
        tickets = [reader.submit_idle(file, 0, pages(size), large.checksum) for _ in range(6)]
        assert reader.wait(demanded) == (OK, 0)
        time.sleep(pause_s)
        count = sum(not reader.cancel(ticket) for ticket in reversed(tickets))
        reader.drain()
        return count

    try:
        reader.wait(reader.submit(file, 0, pages(PAGE), large.small, True))
        assert min(begun(CALM_S / 10) for _ in range(5)) == 0
        assert 2 in {begun(CALM_S + 0.005) for _ in range(10)}
    finally:
        reader.close()
        large.reader.close()


def test_thousands_wait_without_a_cost_for_the_others(busy: Busy) -> None:
    took: dict[int, float] = {}
    into = pages(PAGE)
    for count in (100, 20_000):

        def act(count: int = count) -> None:
            tickets = [
                busy.reader.submit_idle(busy.file, 0, into, busy.small) for _ in range(count)
            ]
            began = time.perf_counter()
            for ticket in tickets[-50:]:
                busy.reader.promote(ticket)
            for ticket in tickets[:50]:
                busy.reader.cancel(ticket)
            took[count] = min(took.get(count, 1.0), time.perf_counter() - began)
            busy.reader.drain()

        for _ in range(3):
            act()
    assert took[20_000] < 20 * took[100], "promoting or cancelling one is O(1) in those that wait"


def test_a_thread_that_waits_for_an_idle_read_gets_it(busy: Busy) -> None:
    ticket = idle(busy)
    answers: list[tuple[int, int]] = []
    waiter = threading.Thread(target=lambda: answers.append(busy.reader.wait(ticket)))
    waiter.start()
    waiter.join(10)
    assert answers == [(OK, 0)]
