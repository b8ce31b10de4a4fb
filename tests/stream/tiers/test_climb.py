"""Hints climb tiers: what is in RAM is copied to VRAM early, where that disturbs nobody."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from flashmoe.options import Runtime
from tests.stream.conftest import EXPERTS, TOP_K, TinyStore
from tests.stream.tiers.conftest import ALL, Rig, RunningAhead, rigged, use_hold, use_sweep


def into_ram(rig: Rig, layer: int, *experts: int) -> None:
    with rig.streamer.hold(layer, np.array(experts)) as found:
        assert len(list(found)) == len(experts)


def test_what_is_hinted_and_in_ram_is_copied_to_free_slots(tiny: TinyStore) -> None:
    with rigged(tiny, 4, ALL) as rig:
        into_ram(rig, 1, 2, 5)
        rig.tier.hint(1, np.array([2, 5]))
        assert len(rig.device.copied) == 2
        assert not any(rig.tier.changes()), "not before the copies have ended"
        rig.tier._climb.land(all_of_them=True)
        assert sorted(expert for _, expert, slot in rig.tier.changes() if slot >= 0) == [2, 5]
        before = rig.streamer.counters.snapshot()
        assert use_hold(rig, 1, 2, 5)
        cost = rig.streamer.counters.since(before)
        assert (cost.vram_hits, cost.vram_misses, cost.copied_bytes) == (0, 2, 0)
        assert use_hold(rig, 1, 2, 5)
        assert rig.streamer.counters.vram_hits == 2
        rig.check_idle()


def test_what_is_hinted_and_on_disk_is_read(tiny: TinyStore) -> None:
    with rigged(tiny, 4, ALL) as rig:
        use_hold(rig, 1, 2, 3)
        mark = len(rig.reader.calls)
        rig.tier.hint(1, np.array([2, 5]))
        assert rig.reader.calls[mark:] == [("hint", "expert 5 of layer 1")]
        assert not use_hold(rig, 1, 2, 5)


def test_a_hold_waits_for_what_climbs(tiny: TinyStore) -> None:
    with rigged(tiny, 4, ALL) as rig:
        into_ram(rig, 1, 2, 5)
        rig.device._advance = lambda copy: None  # type: ignore[method-assign]
        rig.tier.hint(1, np.array([2, 5]))
        with rig.tier.hold(1, np.array([2, 5])) as held:
            assert not held.ready
            del rig.device._advance
            held.wait()
            rig.device.compute(rig.uses(1, np.array([2, 5]), held.slots))
        assert len(rig.device.copied) == 2
        rig.device.finish()
        rig.check_idle()


def test_nobody_leaves_for_a_hint_while_the_device_runs(tiny: TinyStore) -> None:
    with rigged(tiny, 2, ALL) as rig:
        use_hold(rig, 0, 0, 1)
        rig.tier.changes()
        into_ram(rig, 2, 6)
        rig.tier.hint(2, np.array([6]))
        assert len(rig.device.copied) == 2 and not rig.tier.changes()


def test_but_while_it_waits_or_into_what_was_emptied_then(tiny: TinyStore) -> None:
    with rigged(tiny, 5, ALL, spare=1) as rig:
        for pair in ((0, 1), (2, 3), (4, 5), (6, 7), (1, 2)):  # none is likely
            use_hold(rig, 0, *pair)
        into_ram(rig, 2, 6)
        into_ram(rig, 3, 4, 5)
        with rig.tier.hold(1, np.array([2])) as held:
            mark = len(rig.device.copied)
            rig.tier.hint(2, np.array([6]))
            assert len(rig.device.copied) == mark + 1
            held.wait()
            rig.tier.changes()
            rig.tier.hint(3, np.array([4, 5]))  # one slot is spare
            assert len(rig.device.copied) == mark + 3
        rig.check_idle()
        assert all(slot >= 0 for _, _, slot in rig.tier.changes())


def test_between_tokens_room_is_made(tiny: TinyStore) -> None:
    with rigged(tiny, 4, ALL, spare=2) as rig:
        use_sweep(rig, 1, np.array([[0, 1], [2, 3]]))
        assert sum(slot >= 0 for _, _, slot in rig.tier.changes()) == 4
        rig.device.finish()
        rig.tier.tend()
        assert rig.tier._residence.cache.free == 2
        assert sum(slot < 0 for _, _, slot in rig.tier.changes()) == 2
        rig.check_idle()


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 1 << 32), ram=st.integers(1, 3 * TOP_K), wide=st.booleans())
def test_what_is_lent_never_stops_a_hold(tiny: TinyStore, seed: int, ram: int, wide: bool) -> None:
    """However few slots RAM has, also when there become fewer."""
    with rigged(tiny, ALL, ram, seed) as rig:
        for _ in range(12):
            rig.tier.hint(rig.dice.randrange(4), rig.some())
            rig.streamer.shrink(rig.dice.choice([0, 0, 1]))
            if wide:
                use_sweep(rig, 1, np.arange(EXPERTS)[None].repeat(2, 0))
            else:
                use_hold(rig, rig.dice.randrange(4), *rig.some().ravel().tolist())
        rig.device.finish()
        rig.check_idle()


def test_the_streamer_may_forget_everything_in_between(tiny: TinyStore) -> None:
    with rigged(tiny, 4, ALL) as rig:
        into_ram(rig, 1, 2, 5)
        rig.tier.hint(1, np.array([2, 5]))
        rig.streamer.empty()
        assert not use_hold(rig, 1, 2, 5)
        rig.check_idle()


def test_a_guess_reads_nothing_that_is_in_vram(tiny: TinyStore) -> None:
    with rigged(tiny, ALL, ALL) as rig:
        for pair in ((0, 1), (2, 3)):
            use_hold(rig, 1, *pair)
        use_hold(rig, 0, 0, 1)
        rig.streamer.empty()
        rig.tier._lending = rig.streamer.lending  # nothing was lent
        mark = len(rig.reader.calls)
        rig.tier.foresee(1, lambda: np.array([0, 2, 4, 5]))
        assert use_hold(rig, 0, 0, 1)
        asked = [call for call in rig.reader.calls[mark:] if call[0] == "guess"]
        assert asked == [("guess", f"expert {expert} of layer 1") for expert in (4, 5)]


def test_a_chunk_reads_nothing_ahead_that_is_in_vram(tiny: TinyStore) -> None:
    with rigged(tiny, ALL, ALL) as rig:
        use_hold(rig, 1, 0, 1)
        mark, early = len(rig.reader.calls), np.array([[0, 4], [0, 4], [0, 1], [4, 1]])
        rig.streamer.empty()
        rig.tier._lending = rig.streamer.lending
        rig.tier.expect(1, 4, lambda: early, at_once=True)
        asked = {label for _, label in rig.reader.calls[mark:]}
        assert asked == {"expert 4 of layer 1"}


def test_hints_off_do_nothing(tiny: TinyStore) -> None:
    with rigged(tiny, 4, ALL, runtime=Runtime(io_threads=2, hints=False)) as rig:
        into_ram(rig, 1, 2, 5)
        rig.tier.hint(1, np.array([2, 5]))
        assert not rig.device.copied


def test_the_schedules_climb(tiny: TinyStore) -> None:
    """Else the tests of schedules would test less than they say."""
    with rigged(tiny, 12, 24, 3, spare=2) as rig:
        ahead, climbed = RunningAhead(rig), 0
        for _ in range(30):
            ahead.token(0.5)
            climbed += len(rig.tier._climb)
        assert climbed
