"""The depth of the disk queue: asked for, known, measured, or not worth measuring."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from flashmoe.errors import ReadError
from flashmoe.options import DEFAULT_IO_THREADS, Runtime
from flashmoe.quant import Array
from flashmoe.stream import depth, rate
from flashmoe.stream.slots import Slots, State
from flashmoe.stream.streamer import Streamer
from tests.stream.conftest import EXPERTS, LAYERS, TinyStore


def slots_for(tiny: TinyStore, count: int = 40) -> Slots:
    layers = tiny.store.manifest.layers
    return Slots(count, max(entry.layout.record_bytes for entry in layers))


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny store counts as one that is worth a measurement."""
    monkeypatch.setattr(depth, "SMALL_STORE_BYTES", 0)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A disk whose best depth is 8, and the depths that were tried on it."""
    rates = {1: 1e9, 2: 1.5e9, 4: 1.8e9, 8: 1.95e9, 16: 2e9}
    tried: list[int] = []

    def measured(self: rate.Probe, depth: int, places: Sequence[Array], seconds: float) -> float:
        assert depth <= len(places) <= depth + rate.QUEUED
        tried.append(depth)
        return rates[depth] * (1 if len(tried) > len(rates) else 0.5)  # slow at first

    monkeypatch.setattr(rate.Probe, "rate", measured)
    return tried


def test_what_is_asked_for_is_not_measured(tiny, large, disk, tmp_path):
    runtime = Runtime(io_threads=5, device_cache=tmp_path / "devices")
    assert depth.choose(tiny.store, slots_for(tiny), runtime) == 5
    assert not disk and not list(tmp_path.iterdir())


@pytest.mark.parametrize("io", ["buffered", "os"])
def test_the_page_cache_is_not_measured(tiny, large, disk, io):
    assert depth.choose(tiny.store, slots_for(tiny), Runtime(io=io)) == DEFAULT_IO_THREADS
    assert not disk


def test_a_small_store_is_not_worth_it(tiny, disk):
    assert depth.choose(tiny.store, slots_for(tiny), Runtime()) == DEFAULT_IO_THREADS
    assert not disk


def test_the_least_depth_near_the_best_is_taken_and_kept(tiny, large, disk, tmp_path):
    runtime = Runtime(device_cache=tmp_path / "devices")
    slots = slots_for(tiny)
    assert depth.choose(tiny.store, slots, runtime) == 8
    assert disk == [1, 2, 4, 8, 16] * 2
    assert all(slots.state(slot) is State.FREE for slot in range(slots.count))
    assert depth.choose(tiny.store, slots, runtime) == 8 and len(disk) == 10
    assert "below 32768 bytes" in (tmp_path / "devices").read_text()


def test_without_a_file_it_is_measured_each_time(tiny, large, disk):
    for times in (1, 2):
        assert depth.choose(tiny.store, slots_for(tiny), Runtime()) == 8
        assert len(disk) == 10 * times


def test_no_more_reads_than_slots_are_tried(tiny, large, disk):
    assert depth.choose(tiny.store, slots_for(tiny, 5), Runtime()) == 4
    assert set(disk) == {1, 2, 4}


def test_a_slow_disk_ends_the_measurement(tiny, large, disk, monkeypatch):
    now = iter(np.arange(0, 100, 0.3).tolist())
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    assert depth.choose(tiny.store, slots_for(tiny), Runtime()) == 2
    assert disk == [1, 2]


def test_a_damaged_record_leaves_the_default(own, large, caplog):
    for expert in range(EXPERTS):
        own.damage(0, expert)
    slots = slots_for(own)
    with caplog.at_level(logging.INFO, "flashmoe"):
        assert depth.choose(own.store, slots, Runtime()) == DEFAULT_IO_THREADS
    assert "is damaged" in caplog.text
    assert all(slots.state(slot) is State.FREE for slot in range(slots.count))


def test_a_real_disk_is_measured_quickly(tiny, large, tmp_path: Path):
    began = time.perf_counter()
    found = depth.choose(tiny.store, slots_for(tiny), Runtime(device_cache=tmp_path / "devices"))
    assert found in depth.DEPTHS
    assert time.perf_counter() - began < 5


def test_a_sample_is_of_few_files_and_has_the_first(tiny, monkeypatch):
    assert len(depth.sample(tiny.store)) == LAYERS * EXPERTS
    monkeypatch.setattr(depth, "SAMPLE_FILES", 3)
    paths = dict.fromkeys(record.path.name for record in depth.sample(tiny.store))
    assert list(paths) == ["layer-000.safetensors", "layer-002.safetensors"]


def test_a_file_that_is_gone_is_the_reader_s_to_refuse(own, large):
    own.store.record(0, 0).path.unlink()
    with pytest.raises(ReadError, match=r"cannot open .*layer-000"):
        Streamer(own.store, 8, Runtime())
