"""One token's experts in VRAM: the right bytes in every slot when the device comes to use them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashmoe.errors import DeviceError, ReadError
from tests.stream.conftest import EXPERTS, LAYERS, TOP_K, TinyStore
from tests.stream.tiers.conftest import ALL, RunningAhead, rigged, use_hold


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 1 << 32),
    vram=st.integers(TOP_K, ALL),
    ram=st.integers(1, ALL),
    failing=st.sampled_from([0.0, 0.1]),
    hinting=st.sampled_from([0.0, 0.5]),
    spare=st.integers(0, 3),
    exclusive=st.booleans(),
)
def test_no_schedule_mixes_up_the_bytes(
    tiny: TinyStore,
    seed: int,
    vram: int,
    ram: int,
    failing: float,
    hinting: float,
    spare: int,
    exclusive: bool,
) -> None:
    with rigged(tiny, vram, ram, seed, spare, exclusive=exclusive) as rig:
        ahead = RunningAhead(rig)
        rig.fail(failing)
        for _ in range(8):
            ahead.token(hinting)
            rig.check_idle()
            ahead.hear(still=True)
            np.testing.assert_array_equal(ahead.table, rig.tier._table.rows())
        rig.fail(0.0)
        for layer in range(LAYERS):
            for expert in range(0, EXPERTS, 2):
                use_hold(rig, layer, expert, expert + 1)
        rig.check_idle()


def test_what_is_there_is_ready_and_moves_nothing(tiny: TinyStore) -> None:
    with rigged(tiny, 4, 8) as rig:
        assert not use_hold(rig, 0, 3, 1)
        assert len(rig.device.copied) == 2
        before, calls = rig.streamer.counters.snapshot(), len(rig.reader.calls)
        assert use_hold(rig, 0, 1, 3)
        cost = rig.streamer.counters.since(before)
        assert (cost.vram_hits, cost.vram_misses, cost.copied_bytes) == (2, 0, 0)
        assert (cost.hits, cost.misses, cost.copy_wait_ms) == (0, 0, 0)
        assert len(rig.reader.calls) == calls
        assert not use_hold(rig, 0, 1, 2)
        cost = rig.streamer.counters.since(before)
        assert (cost.vram_hits, cost.vram_misses, cost.misses) == (3, 1, 1)
        assert cost.copied_bytes == tiny.store.layout(0).record_bytes


def test_slots_are_shaped_as_the_ids(tiny: TinyStore) -> None:
    with rigged(tiny, 4, 8) as rig:
        for ids in (np.array([5, 2]), np.array([[5, 2]])):
            with rig.tier.hold(1, ids) as hold:
                assert hold.slots.shape == ids.shape and hold.slots.dtype == np.int32
                hold.wait()
                assert hold.slots.tolist() == rig.tier.table(1)[ids].tolist()


def test_every_use_is_counted_as_usage(tiny: TinyStore) -> None:
    with rigged(tiny, 4, 8) as rig:
        for _ in range(3):
            use_hold(rig, 0, 1, 2)
        use_hold(rig, 0, 2, 5)
        assert rig.streamer.usage.counts()[0].tolist() == [0, 3, 4, 0, 0, 1, 0, 0]


def test_a_routing_that_needs_a_sweep_is_refused(tiny: TinyStore) -> None:
    with rigged(tiny, 2, 8) as rig:
        with pytest.raises(ValueError, match="sweep"):
            rig.tier.hold(0, np.array([[0, 1], [1, 0]]))
        with pytest.raises(ValueError, match="sweep"):
            rig.tier.hold(0, np.array([0, 1, 2]))
        with pytest.raises(ValueError, match="below 8"):
            rig.tier.hold(0, np.array([8]))
        with pytest.raises(ValueError, match="layer 4"):
            rig.tier.hold(LAYERS, np.array([1]))
        use_hold(rig, 0, 0, 1)


def test_the_evicted_is_withdrawn_before_its_slot_is_copied_to(tiny: TinyStore) -> None:
    with rigged(tiny, 2, 8) as rig:
        use_hold(rig, 0, 0, 1)
        rig.tier.changes()
        with rig.tier.hold(1, np.array([4, 5])) as hold:
            assert not rig.device.copies
            assert sorted(rig.tier.changes()) == [(0, 0, -1), (0, 1, -1)]
            hold.wait()
            assert sorted(slot for _, _, slot in rig.tier.changes()) == [0, 1]


def test_a_hold_left_early_claims_nothing(tiny: TinyStore) -> None:
    with rigged(tiny, 3, 8) as rig:
        use_hold(rig, 0, 0, 1)
        with rig.tier.hold(0, np.array([1, 2])) as hold:
            assert not hold.ready
        rig.check_idle()
        assert rig.tier.table(0)[2] == -1
        assert not use_hold(rig, 0, 1, 2)


@pytest.mark.parametrize("part", ["reader", "device"])
def test_a_failure_costs_the_expert_that_failed_alone(tiny: TinyStore, part: str) -> None:
    with rigged(tiny, 4, 8) as rig:
        use_hold(rig, 0, 0, 1)
        getattr(rig, part).failing = 1.0
        with (
            pytest.raises(ReadError if part == "reader" else DeviceError) as first,
            rig.tier.hold(0, np.array([1, 2])) as hold,
        ):
            with pytest.raises((ReadError, DeviceError)):
                hold.wait()
            hold.wait()
        assert first.value is not None
        rig.fail(0.0)
        rig.check_idle()
        assert (rig.tier.table(0) >= 0).tolist() == [True, True] + [False] * 6
        assert use_hold(rig, 0, 0, 1)
        assert not use_hold(rig, 0, 1, 2)


def test_holds_do_not_nest(tiny: TinyStore) -> None:
    with rigged(tiny, 4, 8) as rig:
        with (
            pytest.raises(RuntimeError, match="do not nest"),
            rig.tier.hold(0, np.array([1, 2])),
            rig.tier.hold(1, np.array([1, 2])) as inner,
        ):
            inner.wait()
        use_hold(rig, 0, 1, 2)
        rig.check_idle()


def test_after_forgetting_the_changes_take_everything_back(tiny: TinyStore) -> None:
    with rigged(tiny, 4, 8) as rig:
        use_hold(rig, 0, 1, 2)
        rig.tier.changes()
        rig.tier.empty()
        assert sorted(rig.tier.changes()) == [(0, 1, -1), (0, 2, -1)]
        assert not use_hold(rig, 0, 1, 2)


def test_what_was_chosen_before_a_start_is_kept_longer(tiny: TinyStore) -> None:
    shares = np.zeros((LAYERS, EXPERTS))
    shares[0, [0, 1]] = 1.0
    left = []
    for warm in (False, True):
        with rigged(tiny, 6, ALL) as rig:
            if warm:
                rig.tier.warm(shares)
            for pair in ((0, 1), (2, 3), (4, 5), (2, 3), (6, 7)):
                use_hold(rig, 0, *pair)
            left.append(use_hold(rig, 0, 0, 1))
    assert left == [False, True]
