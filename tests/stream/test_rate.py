"""The measured rate of a disk: what is read, in which order, and what is timed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from flashmoe.errors import ReadError
from flashmoe.quant import Array
from flashmoe.store.reader import RecordAddress
from flashmoe.stream import rate
from flashmoe.stream.direct import DirectReader
from flashmoe.stream.slots import Slots
from tests.stream.conftest import EXPERTS, LAYERS, TinyStore


def records_of(tiny: TinyStore) -> list[RecordAddress]:
    return [
        tiny.store.record(layer, expert) for layer in range(LAYERS) for expert in range(EXPERTS)
    ]


def places(count: int, records: list[RecordAddress]) -> list[Array]:
    size = max(record.nbytes for record in records)
    slots = Slots(count, size)
    return [slots.view(slot, size) for slot in range(count)]


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The (file, offset) of every read that is started."""
    found: list[tuple[int, int]] = []
    own = DirectReader.submit

    def submit(self: DirectReader, file: int, offset: int, *rest: object, **more: object) -> int:
        found.append((file, offset))
        return own(self, file, offset, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(DirectReader, "submit", submit)
    return found


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("depth", [1, 3])
def test_every_record_is_read_once_before_any_is_read_again(tiny, submitted, direct, depth):
    records = records_of(tiny)
    probe = rate.Probe(records, direct=direct)
    for turn in (1, 2):
        assert probe.rate(depth, places(depth + 1, records), 60) > 0  # ends with the records
        assert set(Counter(submitted).values()) == {turn}
    assert len(submitted) == 2 * len(records)
    assert submitted[: len(records)] != submitted[len(records) :]


def test_pages_are_dropped_before_records_are_read_through_them_again(tiny, monkeypatch):
    dropped: list[set[Path]] = []
    monkeypatch.setattr(rate, "drop_pages", dropped.append)
    records = records_of(tiny)
    probe = rate.Probe(records, direct=False)
    assert not probe.bypassed
    probe.rate(2, places(2, records), 60)
    probe.rate(2, places(2, records), 60)
    assert dropped == [{record.path for record in records}] * 2


class Clock:
    """A disk of one record a second, whose reads land in the order they were asked for."""

    def __init__(self, latency_seconds: float) -> None:
        self.now, self.latency, self.waiting = 0.0, latency_seconds, list[int]()

    def submit(self, *_: object, **__: object) -> int:
        self.waiting.append(len(self.waiting) + 1)
        return len(self.waiting)

    def wait_any(self, tickets: list[int]) -> int:
        self.now += 1 if self.now else 1 + self.latency
        return min(tickets)

    def wait(self, ticket: int) -> None:
        pass


@pytest.mark.parametrize("seconds", [0.5, 5, 10])
def test_the_time_until_the_first_record_lands_is_not_counted(tiny, monkeypatch, seconds):
    records = records_of(tiny)[:EXPERTS]  # of one size
    disk = Clock(latency_seconds=40)
    monkeypatch.setattr("time.perf_counter", lambda: disk.now)
    order: Iterator[RecordAddress] = iter(records * 2)
    found = rate._timed(
        disk,  # type: ignore[arg-type]
        lambda record: (0, record.offset),
        order,
        places(3, records),
        seconds,
    )
    assert found == records[0].nbytes
    assert disk.now == 41 + max(seconds + 0.5, 1) // 1


def test_a_single_record_has_a_rate(tiny):
    records = records_of(tiny)[:1]
    assert rate.Probe(records, direct=True).rate(4, places(4, records), 0.1) > 0


def test_a_damaged_record_ends_the_measurement(own):
    own.damage(1, 3)
    records = records_of(own)
    with pytest.raises(ReadError, match="expert 3 of layer 1"):
        rate.Probe(records, direct=True).rate(2, places(2, records), 60)
