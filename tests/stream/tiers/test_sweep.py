"""A chunk's experts through VRAM: in file order, each copied once, whatever is there already."""

from __future__ import annotations

import random
from contextlib import suppress
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashmoe.errors import DeviceError, ReadError
from flashmoe.quant import Array
from tests.stream.conftest import EXPERTS, LAYERS, TOP_K, TinyStore
from tests.stream.tiers.conftest import ALL, Rig, rigged, some_token, use_sweep, use_token


def chunk(*experts: int) -> Array:
    """A routing of several tokens that wants these, (T, TOP_K)."""
    return np.array([[expert] * TOP_K for expert in (*experts, experts[-1])])


def pass_some(rig: Rig, layer: int) -> None:
    """A routing at random, to its end or not."""
    ids = rig.some(rig.dice.choice([1, 3, 9]))
    if rig.dice.random() < 0.4:
        ids = chunk(*range(EXPERTS))  # nearly all: copies for the next layer go on behind it
    if rig.dice.random() < 0.6:
        use_sweep(rig, layer, ids)
        return
    with rig.tier.sweep(layer, ids) as passing:
        for batch in passing.batches():
            rig.device.compute([(slot, rig.record(layer, expert)) for expert, slot in batch])
            if rig.dice.random() < 0.3:
                return


@settings(max_examples=250, deadline=None)
@given(
    seed=st.integers(0, 1 << 32),
    vram=st.integers(1, ALL),
    ram=st.one_of(st.integers(1, ALL), st.just(ALL)),
    failing=st.sampled_from([0.0, 0.1]),
    exclusive=st.booleans(),
)
def test_no_schedule_mixes_up_the_bytes(
    tiny: TinyStore, seed: int, vram: int, ram: int, failing: float, exclusive: bool
) -> None:
    """Chunks and tokens by turns, early leaves, failures."""
    with rigged(tiny, vram, ram, seed, exclusive=exclusive) as rig:
        rig.fail(failing)
        for _ in range(6):
            try:
                for layer in range(rig.dice.choice([0, 0, 1]), LAYERS):
                    pass_some(rig, layer)
                    if rig.dice.random() < 0.1:
                        break
            except (ReadError, DeviceError):
                assert failing
            rig.device.finish()
            rig.check_idle()
            if vram >= 2 * TOP_K and ram >= TOP_K:
                some_token(rig)
                rig.check_idle()
        rig.fail(0.0)
        for layer in range(LAYERS):
            with suppress(ReadError):  # a read ahead that failed before
                use_sweep(rig, layer, chunk(*range(EXPERTS)))
            use_sweep(rig, layer, chunk(*range(EXPERTS)))
        rig.device.finish()
        rig.check_idle()


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 1 << 32),
    vram=st.integers(1, ALL),
    ram=st.one_of(st.integers(TOP_K, ALL), st.just(ALL)),
)
def test_each_expert_crosses_at_most_once(tiny: TinyStore, seed: int, vram: int, ram: int) -> None:
    """And none that was there, where they leave room."""
    with rigged(tiny, vram, ram, seed) as rig:
        for _ in range(3):
            for layer in range(LAYERS):
                ids = rig.some(rig.dice.choice([2, 9, 20]))
                wanted, early = set(ids.ravel().tolist()), ahead(rig)
                there = [e for e in np.unique(ids).tolist() if rig.tier.table(layer)[e] >= 0]
                before, mark = rig.streamer.counters.snapshot(), len(rig.device.copied)
                use_sweep(rig, layer, ids)
                cost, copied = rig.streamer.counters.since(before), len(rig.device.copied) - mark
                assert copied == cost.vram_misses - len(early & wanted) + len(ahead(rig))
                assert cost.vram_hits + cost.vram_misses == len(np.unique(ids))
                if len(there) <= vram - 2 - len(early):
                    assert cost.vram_hits == len(there)


def ahead(rig: Rig) -> set[int]:
    """Who has been copied for the layer that comes next."""
    return set() if rig.tier._early is None else set(rig.tier._early.places)


def read_all(rig: Rig, *layers: int) -> None:
    """Have all experts of these layers in RAM."""
    for layer in layers:
        with rig.streamer.hold(layer, chunk(*range(EXPERTS))) as experts:
            assert len(list(experts)) == EXPERTS


@pytest.mark.parametrize("ram", [EXPERTS + 4, ALL])
def test_the_next_are_copied_while_a_batch_is_computed(tiny: TinyStore, ram: int) -> None:
    with rigged(tiny, 6, ram) as rig:
        read_all(rig, 0)
        with rig.tier.sweep(0, chunk(*range(EXPERTS))) as passing:
            for batch in passing.batches():
                assert len(batch) <= 3
                assert len(rig.device.copied) > batch[-1][0] + 1 or batch[-1][0] == EXPERTS - 1
                rig.device.compute([(slot, rig.record(0, expert)) for expert, slot in batch])


def test_nobody_waits_for_copies_but_the_device_until_the_end(tiny: TinyStore) -> None:
    """Where RAM has all: then no record is read over."""
    with rigged(tiny, 4, ALL) as rig:
        read_all(rig, 0, 1)
        rig.device.dice = random.Random(3)
        with patch.object(rig.device, "_progress"):  # neither copies nor computes unless it must
            for layer in range(2):
                with rig.tier.sweep(layer, chunk(*range(EXPERTS))) as passing:
                    waits = rig.device.waits
                    for batch in passing.batches():
                        record = [(slot, rig.record(layer, expert)) for expert, slot in batch]
                        rig.device.compute(record)
                        assert rig.device.waits == waits
                assert rig.device.waits > waits and not rig.device.copies
        rig.device.finish()
        rig.check_idle()


def test_where_ram_has_all_it_is_asked_once(tiny: TinyStore) -> None:
    """And counts them as it would one by one."""
    with rigged(tiny, 4, ALL) as rig:
        read_all(rig, 0, 1)
        before = rig.streamer.counters.snapshot()
        with patch.object(rig.streamer, "_take", side_effect=AssertionError):
            for layer in range(2):
                use_sweep(rig, layer, chunk(*range(EXPERTS)))
        cost = rig.streamer.counters.since(before)
        assert (cost.hits, cost.misses) == (2 * EXPERTS, 0)
        assert rig.streamer.usage.counts()[0, 0] == 2 * TOP_K
        rig.device.finish()
        rig.check_idle()


def test_a_record_that_ram_lacks_is_read_on_the_way(tiny: TinyStore) -> None:
    with rigged(tiny, 4, ALL) as rig:
        with rig.streamer.hold(0, chunk(0, 1, 2, 4, 5, 6, 7)) as experts:
            list(experts)
        use_sweep(rig, 0, chunk(*range(EXPERTS)))
        assert rig.streamer.counters.misses == EXPERTS


def test_a_copy_that_fails_fails_the_chunk_and_leaves_the_table(own: TinyStore) -> None:
    """Though what it should have brought was computed with, and given back, by then."""
    with rigged(own, 4, ALL) as rig:
        read_all(rig, 0)
        rig.device.dice = random.Random(3)
        with (
            pytest.raises(DeviceError, match="lost a copy"),
            patch.object(rig.device, "_progress"),
            rig.tier.sweep(0, chunk(*range(EXPERTS))) as passing,
        ):
            for batch in passing.batches():
                rig.device.compute([(slot, rig.record(0, expert)) for expert, slot in batch])
                if batch[0][0] == 0:
                    rig.device.copies[min(rig.device.copies)].doomed = True
        rig.device.finish()
        rig.check_idle()
        assert (rig.tier.table(0)[:2] < 0).all()
        use_sweep(rig, 0, chunk(*range(EXPERTS)))


def test_what_is_there_is_one_batch_and_moves_nothing(tiny: TinyStore) -> None:
    with rigged(tiny, ALL, ALL) as rig:
        use_sweep(rig, 1, chunk(0, 3, 5))
        mark, calls = len(rig.device.copied), len(rig.reader.calls)
        assert use_sweep(rig, 1, chunk(0, 3, 5)) == [[0, 3, 5]]
        assert len(rig.device.copied) == mark and len(rig.reader.calls) == calls
        assert rig.streamer.usage.counts()[1, [0, 3, 5]].tolist() == [4, 4, 8]


@pytest.mark.parametrize("vram", [1, 2, 3, 5, ALL])
def test_one_token_that_wants_all_passes_too(tiny: TinyStore, vram: int) -> None:
    """As the slices of a dense network do."""
    with rigged(tiny, vram, 4) as rig:
        for _ in range(2):
            for layer in range(LAYERS):
                use_sweep(rig, layer, np.arange(EXPERTS)[None])
                use_sweep(rig, layer, np.array([[2, 4, 7]]))
        rig.device.finish()
        rig.check_idle()


def test_a_chunk_leaves_what_decoding_will_want(tiny: TinyStore) -> None:
    """Its last tokens tell; the slots hold what they choose of every layer."""
    with rigged(tiny, LAYERS * TOP_K + 2, ALL) as rig:
        for _ in range(12):
            for layer in range(LAYERS):
                use_token(rig, layer, 6, 7)
        for layer in range(LAYERS):
            use_sweep(rig, layer, np.array([[0, 1], [2, 3], *[[6, 7]] * 12]))
        ready = [use_token(rig, layer, 6, 7) for layer in range(LAYERS)]
        assert all(ready)


def test_a_failed_chunk_leaves_nothing_pinned(own: TinyStore) -> None:
    with rigged(own, 5, 6) as rig:
        rig.device.failing = 0.3
        failures = 0
        for _ in range(20):
            try:
                use_sweep(rig, 1, chunk(*range(EXPERTS)))
            except DeviceError:
                failures += 1
            rig.device.finish()
            rig.check_idle()
        assert failures
