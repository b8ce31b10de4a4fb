"""An exclusive tier: what leaves VRAM goes to RAM, and what is in VRAM leaves RAM."""

from __future__ import annotations

import numpy as np
import pytest

from tests.stream.conftest import EXPERTS, LAYERS, TinyStore
from tests.stream.tiers.conftest import ALL, Rig, rigged, use_sweep, use_token


def in_ram(rig: Rig, layer: int) -> set[int]:
    slots = rig.streamer._cache.slots_of(layer, range(EXPERTS))
    return {expert for expert, slot in enumerate(slots) if slot >= 0}


def in_vram(rig: Rig, layer: int) -> set[int]:
    return set(np.flatnonzero(rig.tier.table(layer) >= 0).tolist())


def test_no_expert_of_a_token_is_in_both(tiny: TinyStore) -> None:
    with rigged(tiny, 4, 12, exclusive=True) as rig:
        for pair in ((0, 1), (2, 3), (4, 5), (0, 6), (7, 1)):
            use_token(rig, 0, *pair)
            rig.check_idle()
            assert not in_ram(rig, 0) & in_vram(rig, 0)
        assert in_ram(rig, 0) | in_vram(rig, 0) == set(range(EXPERTS))
        assert rig.streamer.counters.misses == EXPERTS
        assert rig.device.fetches


def test_what_has_descended_is_not_read(tiny: TinyStore) -> None:
    with rigged(tiny, 4, 12, exclusive=True) as rig:
        for pair in ((0, 1), (2, 3), (4, 5)):
            use_token(rig, 0, *pair)
        gone = sorted({0, 1, 2, 3} - in_vram(rig, 0))
        assert rig.device.fetches == len(gone) >= 2
        mark = len(rig.reader.calls)
        for expert in gone:
            assert not use_token(rig, 0, expert)
        assert len(rig.reader.calls) == mark


def test_what_is_lost_on_the_way_is_read_again(tiny: TinyStore) -> None:
    with rigged(tiny, 4, 8, exclusive=True) as rig:
        use_token(rig, 0, 0, 1)
        fetch = rig.device.fetch

        def lost(slot, record):
            ticket = fetch(slot, record)
            rig.device.copies[ticket].state = "bad"
            return ticket

        rig.device.fetch = lost  # type: ignore[method-assign]
        use_token(rig, 0, 2, 3)
        rig.check_idle()
        assert not in_ram(rig, 0)
        before = rig.streamer.counters.snapshot()
        use_token(rig, 0, 0, 1)
        assert rig.streamer.counters.since(before).misses == 2


@pytest.mark.parametrize("exclusive", [False, True])
def test_both_hold_together_what_neither_holds_alone(tiny: TinyStore, exclusive: bool) -> None:
    with rigged(tiny, 6, 8, exclusive=exclusive) as rig:
        for _ in range(6):
            for pair in ((0, 1), (2, 3), (4, 5), (6, 7)):
                use_token(rig, 0, *pair)
            use_token(rig, 1, 0, 1)
        before = rig.streamer.counters.snapshot()
        for _ in range(4):
            for pair in ((0, 1), (2, 3), (4, 5), (6, 7)):
                use_token(rig, 0, *pair)
            use_token(rig, 1, 0, 1)
        cost = rig.streamer.counters.since(before)
        assert cost.vram_misses
        assert (cost.misses == 0) == exclusive
        rig.check_idle()


def test_a_chunk_takes_nothing_out_of_ram(tiny: TinyStore) -> None:
    with rigged(tiny, 4, ALL, exclusive=True) as rig:
        for layer in range(LAYERS):
            use_sweep(rig, layer, np.arange(EXPERTS).reshape(-1, 2))
        assert all(in_ram(rig, layer) == set(range(EXPERTS)) for layer in range(LAYERS))
        rig.device.finish()
        rig.check_idle()


@pytest.mark.parametrize("exclusive", [False, True])
def test_ram_hears_of_uses_in_vram_where_it_will_have_the_experts_back(
    tiny: TinyStore, exclusive: bool
) -> None:
    with rigged(tiny, 4, 8, exclusive=exclusive) as rig:
        use_token(rig, 0, 0, 1)
        heard: list[tuple[int, list[int]]] = []
        rig.streamer.lending.heed = lambda *call: heard.append(call)  # type: ignore[assignment]
        use_token(rig, 0, 0, 1)
        use_token(rig, 0, 1, 2)
        assert heard == ([(0, [0, 1]), (0, [1])] if exclusive else [])
