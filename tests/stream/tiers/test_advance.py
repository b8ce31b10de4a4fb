"""Copies for the next layer of a chunk, begun before anybody knows what that layer wants."""

from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import patch

import numpy as np
import pytest

from flashmoe.errors import DeviceError
from flashmoe.options import Runtime
from flashmoe.quant import Array
from flashmoe.stream.slots import State
from flashmoe.stream.streamer import Streamer
from flashmoe.stream.tiers.mover import Mover
from flashmoe.stream.tiers.residence import Residence
from flashmoe.stream.tiers.sweep import ChunkHold
from tests.stream.conftest import EXPERTS, LAYERS, TOP_K, TinyStore
from tests.stream.tiers.conftest import ALL, Rig, rigged, use_sweep, use_token

SLOTS = 24
AHEAD = SLOTS // 8


def chunk(*experts: int) -> Array:
    """A routing of several tokens that wants these, (T, TOP_K)."""
    return np.array([[expert] * TOP_K for expert in (*experts, experts[-1])])


EVERY = chunk(*range(EXPERTS))


def full(rig: Rig) -> Rig:
    """With all experts in RAM."""
    for layer in range(LAYERS):
        with rig.streamer.hold(layer, EVERY) as experts:
            assert len(list(experts)) == EXPERTS
    return rig


@pytest.fixture
def rig(tiny: TinyStore) -> Iterator[Rig]:
    with rigged(tiny, SLOTS, ALL) as made:
        yield full(made)


def early(rig: Rig) -> list[int]:
    """Who is copied ahead at the moment."""
    return [] if rig.tier._early is None else list(rig.tier._early.places)


def copied(rig: Rig) -> int:
    return len(rig.device.copied)


def test_the_first_experts_of_the_next_layer_follow_the_last_of_this(rig: Rig) -> None:
    with patch.object(rig.device, "_progress"), rig.tier.sweep(0, EVERY) as passing:
        for batch in passing.batches():  # the last of them is still to be computed
            rig.device.compute([(slot, rig.record(0, expert)) for expert, slot in batch])
            assert not early(rig) or copied(rig) == EXPERTS + AHEAD
    assert early(rig) == list(range(AHEAD)) and rig.device.copies
    before, mark = rig.streamer.counters.snapshot(), copied(rig)
    use_sweep(rig, 1, EVERY)
    cost = rig.streamer.counters.since(before)
    assert (cost.vram_hits, cost.vram_misses, cost.hits) == (0, EXPERTS, EXPERTS)
    assert copied(rig) - mark == EXPERTS - AHEAD + AHEAD  # its own, and the first of layer 2
    assert len(set(rig.device.copied)) == copied(rig) == 2 * EXPERTS + AHEAD
    rig.device.finish()
    rig.check_idle()
    assert (rig.tier.table(2)[:AHEAD] >= 0).all(), "what nobody took over has come all the same"


def test_a_chunk_copies_each_expert_once(rig: Rig) -> None:
    for layer in range(LAYERS):
        use_sweep(rig, layer, EVERY)
    assert not early(rig), "there is no layer behind the last"
    assert copied(rig) == LAYERS * EXPERTS
    sizes = [len(rig.record(layer, 0)) * EXPERTS for layer in range(LAYERS)]
    assert rig.streamer.counters.copied_bytes == sum(sizes)
    rig.device.finish()
    rig.check_idle()


def test_what_the_layer_does_not_want_stays_and_is_a_hit_later(rig: Rig) -> None:
    use_sweep(rig, 0, EVERY)
    before, mark = rig.streamer.counters.snapshot(), copied(rig)
    use_sweep(rig, 1, chunk(1, 5))
    cost = rig.streamer.counters.since(before)
    assert (cost.vram_misses, copied(rig) - mark) == (2, 1)
    rig.device.finish()
    rig.check_idle()
    before, mark = rig.streamer.counters.snapshot(), copied(rig)
    use_sweep(rig, 1, chunk(0, 1, 2, 5))
    assert rig.streamer.counters.since(before).vram_hits == 4 and copied(rig) == mark


def test_what_is_not_wanted_does_not_keep_others_out(rig: Rig) -> None:
    """Though it is pinned for as long as its layer passes."""
    use_sweep(rig, 0, EVERY)
    with patch.object(rig.device, "_progress"):
        use_sweep(rig, 1, chunk(*range(AHEAD, EXPERTS)))
    rig.device.finish()
    rig.check_idle()


def test_the_first_comes_though_those_behind_it_have_more_slots_than_the_window(
    tiny: TinyStore,
) -> None:
    """It was in no memory when the others were copied ahead."""
    steps = iter(range(1000))
    bring = ChunkHold._bring

    def counted(hold: ChunkHold, expert: int) -> None:
        assert next(steps, None) is not None, "it goes round for ever"
        bring(hold, expert)

    with rigged(tiny, ALL, ALL) as made, patch.object(ChunkHold, "_bring", counted):
        rig = full(made)
        streamer = rig.streamer
        streamer._slots.move(streamer._cache.drop((1, 0)), State.FREE)
        use_sweep(rig, 0, chunk(*range(EXPERTS)))
        assert len(early(rig)) >= ChunkHold(*_parts(rig), 1, TOP_K)._window
        use_sweep(rig, 1, chunk(*range(EXPERTS)))


def _parts(rig: Rig) -> tuple[Residence, Streamer, Mover]:
    return rig.tier._residence, rig.streamer, rig.tier._mover


def test_a_token_or_another_layer_ends_it(rig: Rig) -> None:
    for go_on in (
        lambda: use_token(rig, 2, 0, 1),
        lambda: use_sweep(rig, 3, chunk(0, 1)),
        lambda: use_sweep(rig, 0, chunk(0, 1)),
        rig.tier.empty,
    ):
        use_sweep(rig, 0, EVERY)
        assert len(early(rig)) or rig.tier.table(1)[:AHEAD].min() >= 0
        go_on()
        assert not early(rig)
        rig.device.finish()
        rig.check_idle()


@pytest.mark.parametrize("wanted", [True, False])
def test_a_copy_that_fails_is_told_if_its_layer_passes(own: TinyStore, wanted: bool) -> None:
    with rigged(own, SLOTS, ALL) as rig:
        full(rig)
        with patch.object(rig.device, "_progress"):
            with rig.tier.sweep(0, EVERY) as passing:
                for batch in passing.batches():
                    rig.device.compute([(slot, rig.record(0, expert)) for expert, slot in batch])
                    if early(rig):
                        rig.device.copies[max(rig.device.copies)].doomed = True
            if wanted:
                with pytest.raises(DeviceError, match="lost a copy"):
                    use_sweep(rig, 1, EVERY)
            else:
                use_sweep(rig, 2, EVERY)
        rig.device.finish()
        rig.check_idle()
        assert (rig.tier.table(1)[:AHEAD] < 0).all()
        for layer in range(LAYERS):
            use_sweep(rig, layer, EVERY)
        rig.device.finish()
        rig.check_idle()


def test_only_where_it_pays(tiny: TinyStore) -> None:
    def after(rig: Rig, ids: Array) -> list[int]:
        use_sweep(rig, 0, ids)
        return early(rig)

    with rigged(tiny, SLOTS, ALL) as rig:
        assert not after(full(rig), chunk(*range(EXPERTS - 1))), "the layer wants fewer"
        assert not after(rig, np.arange(EXPERTS)[None]), "one token"
        assert len(after(rig, EVERY)) == AHEAD
    with rigged(tiny, SLOTS, ALL - 1) as rig:
        assert not after(rig, EVERY), "RAM may lose it"
    with rigged(tiny, SLOTS, ALL) as rig:
        assert not after(rig, EVERY), "it is on the disk"
    with rigged(tiny, SLOTS, ALL, 0, Runtime(io_threads=2, hints=False)) as rig:
        assert not after(full(rig), EVERY), "hints are off"
