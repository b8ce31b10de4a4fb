"""One token's experts in VRAM: the right bytes in every slot when the device comes to use them."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashmoe.errors import ReadError
from flashmoe.stream import lending
from flashmoe.stream.tiers import offers
from tests.stream.conftest import EXPERTS, LAYERS, TOP_K, TinyStore
from tests.stream.tiers.conftest import ALL, Rig, follow, rigged, some_token, use_sweep, use_token


def all_in_ram(rig: Rig) -> None:
    """Every expert has its slot there."""
    for layer in range(LAYERS):
        for first in range(0, EXPERTS, TOP_K):
            use_token(rig, layer, *range(first, first + TOP_K))


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 1 << 32),
    vram=st.integers(2 * TOP_K, ALL),
    ram=st.one_of(st.integers(TOP_K, ALL), st.just(ALL)),
    failing=st.sampled_from([0.0, 0.1]),
    exclusive=st.booleans(),
    share=st.sampled_from([offers.SHARE, 3]),
    saved=st.sampled_from([lending.SHARE, 4]),
)
def test_no_schedule_mixes_up_the_bytes(
    tiny: TinyStore,
    seed: int,
    vram: int,
    ram: int,
    failing: float,
    exclusive: bool,
    share: int,
    saved: int,
) -> None:
    parts, spare = patch.object(offers, "SHARE", share), patch.object(lending, "SHARE", saved)
    with parts, spare, rigged(tiny, vram, ram, seed, exclusive=exclusive) as rig:
        rig.fail(failing)
        for _ in range(8):
            some_token(rig)
            if rig.dice.random() < 0.2:
                rig.check_idle()
            if rig.dice.random() < 0.2 and not failing:
                use_sweep(rig, rig.dice.randrange(LAYERS), rig.some(3))
                rig.device.finish()
            if rig.dice.random() < 0.1 and not failing:
                rig.streamer.resize(ram - rig.dice.randrange(3))
            if rig.dice.random() < 0.1 and not failing:
                rig.streamer.resize(ram)
        rig.check_idle()


def test_a_ram_with_room_for_all_loses_nobody(tiny: TinyStore) -> None:
    """Not for guesses either: the device may be reading anywhere in it."""
    with patch.object(lending, "SHARE", 8), rigged(tiny, 3 * TOP_K, ALL) as rig:
        all_in_ram(rig)
        read = rig.streamer.counters.bytes_read
        for _ in range(6):
            some_token(rig)
            assert (rig.records >= 0).all()
        assert rig.streamer.counters.bytes_read == read


def test_what_is_there_moves_nothing(tiny: TinyStore) -> None:
    with rigged(tiny, 4, 8) as rig:
        assert not use_token(rig, 0, 3, 1)
        before, calls = rig.streamer.counters.snapshot(), len(rig.reader.calls)
        assert use_token(rig, 0, 1, 3)
        cost = rig.streamer.counters.since(before)
        assert (cost.vram_hits, cost.vram_misses, cost.copied_bytes) == (2, 0, 0)
        assert (cost.hits, cost.misses) == (0, 0)
        assert len(rig.reader.calls) == calls
        assert not use_token(rig, 0, 1, 2)
        cost = rig.streamer.counters.since(before)
        assert (cost.vram_hits, cost.vram_misses, cost.misses) == (3, 1, 1)
        assert cost.copied_bytes == rig.tiny.store.layout(0).record_bytes


def test_nobody_is_asked_for_what_ram_never_loses(tiny: TinyStore) -> None:
    with rigged(tiny, 2 * TOP_K, ALL) as rig:
        all_in_ram(rig)
        calls, before = len(rig.reader.calls), rig.streamer.counters.snapshot()
        for layer in range(LAYERS):
            device = follow(rig, {layer: [1, 6]})
            assert device.brought == 2 and not device.answers
        assert len(rig.reader.calls) == calls
        cost = rig.streamer.counters.since(before)
        assert (cost.hits, cost.misses, cost.vram_misses) == (2 * LAYERS, 0, 2 * LAYERS)


def test_what_a_chunk_has_read_is_found_too(tiny: TinyStore) -> None:
    with rigged(tiny, 2 * TOP_K, ALL) as rig:
        use_sweep(rig, 1, np.arange(EXPERTS)[None].repeat(2, 0))
        rig.device.finish()
        device = follow(rig, {1: [0, 1]})
        assert not device.answers


def places(rig: Rig) -> np.ndarray:
    """Where in RAM experts are, as the host knows it."""
    return np.array([rig.streamer.lending.places(layer, EXPERTS) for layer in range(LAYERS)])


@pytest.mark.parametrize("ram", [ALL - 1, 12])
@pytest.mark.parametrize("exclusive", [False, True])
def test_the_device_finds_what_is_in_ram_and_asks_for_the_rest(
    tiny: TinyStore, ram: int, exclusive: bool
) -> None:
    with rigged(tiny, 2 * TOP_K, ram, exclusive=exclusive) as rig:
        all_in_ram(rig)
        for _ in range(20):
            np.testing.assert_array_equal(rig.records, places(rig))
            layer, (first, second) = rig.dice.randrange(LAYERS), rig.some()[0].tolist()
            nowhere = {
                (layer, expert)
                for expert in (first, second)
                if rig.records[layer, expert] < 0 and rig.tier.table(layer)[expert] < 0
            }
            assert follow(rig, {layer: [first, second]}).answers.keys() == nowhere
            rig.tier._land(all_of_them=True)


def test_no_record_that_the_device_has_found_gives_way_to_a_read(tiny: TinyStore) -> None:
    """Of two slots in RAM the other one is being read into, for a guess."""
    for seed in range(20):
        with rigged(tiny, ALL - 4, TOP_K, seed) as rig:
            use_token(rig, 0, 0, 1)
            rig.streamer.lending.forget(0, [0, 1])
            use_sweep(rig, 1, np.array([[3]]))
            rig.device.finish()
            rig.tier._residence.drop(1, 3)
            assert rig.records[1, 3] >= 0 and rig.streamer.free_slots == 1
            device = follow(rig, {0: [0, 1], 1: [3, 7]}, {1: [4]})  # it compares what it uses
            assert list(device.answers) == [(1, 7)]
            assert ("guess", "expert 4 of layer 1") in rig.reader.calls
            rig.check_idle()


def test_what_came_early_gives_its_slot_in_ram_to_what_is_asked_for(tiny: TinyStore) -> None:
    with patch.object(offers, "SHARE", 4), rigged(tiny, ALL - 4, TOP_K) as rig:
        use_sweep(rig, 1, np.array([[2, 3]]).repeat(2, 0))
        rig.device.finish()
        for expert in (2, 3):
            rig.tier._residence.drop(1, expert)
        device = follow(rig, {1: [5, 6]}, {1: [2, 3]})
        assert device.brought == 4 and sorted(device.answers) == [(1, 5), (1, 6)]
        rig.check_idle()


def test_nobody_leaves_ram_while_the_device_runs_ahead(tiny: TinyStore) -> None:
    """Not for a guess either: only once it waits for an answer."""
    with rigged(tiny, ALL - 4, 3 * TOP_K) as rig:
        for layer in range(3):
            use_token(rig, layer, 0, 1)
        assert not rig.streamer.free_slots
        here, calls = rig.records.copy(), len(rig.reader.calls)
        follow(rig, {0: [0, 1]}, {1: [4, 5]})
        np.testing.assert_array_equal(rig.records, here)
        assert not any(call[0] == "guess" for call in rig.reader.calls[calls:])
        follow(rig, {0: [0, 2]}, {1: [4, 5]})
        assert any(call[0] == "guess" for call in rig.reader.calls[calls:])


def test_slots_in_ram_stay_free_for_what_is_guessed_while_nobody_may_leave(tiny: TinyStore) -> None:
    with patch.object(lending, "SHARE", 4), rigged(tiny, ALL - 4, 4 * TOP_K) as rig:
        for layer in range(LAYERS):
            use_token(rig, layer, 0, 1)
        calls = len(rig.reader.calls)
        device = follow(rig, {0: [0, 1]}, {1: [4]})
        assert not device.answers
        assert ("guess", "expert 4 of layer 1") in rig.reader.calls[calls:]
        np.testing.assert_array_equal(rig.records, places(rig))
        rig.check_idle()


def test_a_guess_that_has_come_is_found_by_the_device(tiny: TinyStore) -> None:
    """The host takes it in while it waits for the next letter; wrong ones keep no slot either."""
    found = 0
    for seed in range(20):
        with rigged(tiny, ALL - 4, 4 * TOP_K, seed) as rig:
            use_token(rig, 0, 0, 1)
            taken = rig.tier.begin()
            rig.tier.foresee(1, lambda: np.array([4, 5]))
            assert taken == rig.tier._offers.taken
            rig.tier.follow(0, np.array([0, 1]), {}, {}, [], lambda *_: None)
            for _ in range(1000):
                rig.tier.tend()
            assert not rig.streamer._reads.tickets
            found += int((rig.records[1, [4, 5]] >= 0).sum())
            np.testing.assert_array_equal(rig.records, places(rig))
            rig.tier.end()
            rig.check_idle()
    assert found


def test_once_ram_has_become_smaller_it_is_asked_again(tiny: TinyStore) -> None:
    with rigged(tiny, 2 * TOP_K, ALL) as rig:
        all_in_ram(rig)
        assert (rig.records >= 0).all()
        rig.streamer.resize(ALL - 1)
        ((layer, gone),) = np.argwhere(rig.records < 0).tolist()
        use_sweep(rig, layer, np.array([[expert] for expert in range(EXPERTS) if expert != gone]))
        rig.device.finish()
        assert follow(rig, {layer: [(gone + 1) % EXPERTS, gone]}).answers.keys() == {(layer, gone)}
        np.testing.assert_array_equal(rig.records, places(rig))


def test_the_device_may_run_ahead_as_far_as_slots_are_on_offer(tiny: TinyStore) -> None:
    """Two layers' misses are taken before the host has seen the first letter."""
    with rigged(tiny, ALL - 1, ALL) as rig:
        all_in_ram(rig)
        use_sweep(rig, 0, np.arange(EXPERTS)[None].repeat(2, 0))
        rig.device.finish()
        missing = np.argwhere(rig.tier.tables() < 0)
        layers = {int(layer): [int(expert)] for layer, expert in missing}
        routing = dict(sorted(layers.items()))
        taken = rig.tier.begin()
        assert len(routing) >= 1 and int(rig.ring[0]) - taken >= TOP_K
        rig.tier.abandon()
        assert follow(rig, routing).brought == len(routing)


def test_where_all_fit_nobody_leaves(tiny: TinyStore) -> None:
    with rigged(tiny, ALL, ALL) as rig:
        for _ in range(2):
            all_in_ram(rig)
        assert rig.tier.whole
        before = rig.streamer.counters.snapshot()
        all_in_ram(rig)
        assert rig.streamer.counters.since(before).vram_misses == 0


@pytest.mark.parametrize("there", [True, False])
def test_a_guess_reads_what_is_nowhere_and_nothing_else(tiny: TinyStore, there: bool) -> None:
    """Whether the layer before lacks something or not."""
    with rigged(tiny, ALL - 4, ALL - 1) as rig:
        for pair in ((0, 1), (2, 3)):
            use_token(rig, 1, *pair)
        if there:
            use_token(rig, 0, 0, 1)
        assert not rig.tier.lasting
        mark = len(rig.reader.calls)
        follow(rig, {0: [0, 1]}, {1: [0, 2, 4, 5]})
        asked = [call for call in rig.reader.calls[mark:] if call[0] == "guess"]
        assert asked == [("guess", f"expert {expert} of layer 1") for expert in (4, 5)]


def test_what_came_early_is_there_chosen_or_not(tiny: TinyStore) -> None:
    with patch.object(offers, "SHARE", 4), rigged(tiny, ALL - 4, ALL) as rig:
        all_in_ram(rig)
        # The last layer, behind which nothing is copied ahead.
        use_sweep(rig, LAYERS - 1, np.arange(EXPERTS)[None].repeat(2, 0))
        rig.device.finish()
        absent = [int((rig.tier.table(n) < 0).sum()) for n in range(LAYERS - 1)]
        layer, *_ = (n for n, count in enumerate(absent) if 3 <= count < EXPERTS)
        first, second, third = np.flatnonzero(rig.tier.table(layer) < 0)[:3].tolist()
        there = int(np.flatnonzero(rig.tier.table(layer) >= 0)[0])
        before = rig.streamer.counters.snapshot()
        device = follow(rig, {layer: [first, third]}, {layer: [there, first, second]})
        cost = rig.streamer.counters.since(before)
        assert device.brought == 3 and not device.answers
        assert (cost.vram_hits, cost.vram_misses, cost.hits) == (0, 2, 2)
        assert cost.copied_bytes == 3 * rig.tiny.store.layout(layer).record_bytes
        assert (rig.tier.table(layer)[[first, second, third]] >= 0).all()
        rig.check_idle()


def test_nothing_is_guessed_where_ram_has_room_for_all(tiny: TinyStore) -> None:
    with rigged(tiny, 8, ALL) as rig:
        assert rig.tier.lasting


def test_a_read_that_fails_costs_what_has_not_come(tiny: TinyStore) -> None:
    with rigged(tiny, 8, 8) as rig:
        use_token(rig, 0, 0, 1)
        rig.reader.failing = 1.0
        with pytest.raises(ReadError):
            follow(rig, {0: [1, 2], 1: [0, 1]})
        rig.fail(0.0)
        rig.check_idle()
        assert (rig.tier.table(0) >= 0).tolist() == [True, True] + [False] * 6
        assert use_token(rig, 0, 0, 1)
        assert not use_token(rig, 0, 1, 2)


def test_what_the_device_took_without_being_heard_is_offered_again(tiny: TinyStore) -> None:
    with rigged(tiny, 8, 8) as rig:
        use_token(rig, 0, 0, 1)
        free = len(rig.tier._offers._slots)
        rig.tier.begin()  # a token whose letters nobody reads
        rig.tier.abandon()
        assert len(rig.tier._offers._slots) == free
        use_token(rig, 1, 0, 1)
        rig.check_idle()


def test_slots_are_taken_in_their_order(tiny: TinyStore) -> None:
    with rigged(tiny, 8, 8) as rig:
        rig.tier.begin()
        first, second = list(rig.tier._offers._slots)[:2]
        with pytest.raises(RuntimeError, match="not the next on offer"):
            rig.tier.follow(0, np.array([0, 1]), {}, {0: second, 1: first}, [], lambda *_: None)
        assert not use_token(rig, 0, 0, 1)  # starts anew


def test_counts_of_slots_begin_again(tiny: TinyStore) -> None:
    """After 2^32 of them."""
    with rigged(tiny, 8, ALL) as rig:
        offers = rig.tier._offers
        offers.taken = offers._offered = (1 << 32) - 2
        rig.ring[0] = offers._offered
        for layer in range(LAYERS):
            use_token(rig, layer, 0, 1)
        assert offers.taken == 2 * LAYERS - 2
        rig.check_idle()


def test_after_forgetting_nothing_is_there(tiny: TinyStore) -> None:
    with rigged(tiny, 4, 8) as rig:
        use_token(rig, 0, 1, 2)
        generation = rig.tier.generation
        rig.tier.empty()
        assert rig.tier.generation > generation
        assert (rig.tier.tables() == -1).all()
        assert not use_token(rig, 0, 1, 2)


def test_the_streamer_may_forget_everything_in_between(tiny: TinyStore) -> None:
    with rigged(tiny, 4, ALL) as rig:
        use_token(rig, 1, 2, 5)
        rig.streamer.empty()
        assert not use_token(rig, 1, 2, 5)
        rig.check_idle()


def test_too_few_slots_are_refused(tiny: TinyStore) -> None:
    with (
        rigged(tiny, 2 * TOP_K - 1, 8) as rig,
        pytest.raises(ValueError, match="too few for twice"),
    ):
        rig.tier.begin()


def test_what_was_chosen_before_a_start_is_kept_longer(tiny: TinyStore) -> None:
    shares = np.zeros((LAYERS, EXPERTS))
    shares[0, [0, 1]] = 1.0
    left = []
    for warm in (False, True):
        with rigged(tiny, 8, ALL) as rig:
            if warm:
                rig.tier.warm(shares)
            for pair in ((0, 1), (2, 3), (4, 5), (2, 3), (6, 7)):
                use_token(rig, 0, *pair)
            left.append(use_token(rig, 0, 0, 1))
    assert left == [False, True]


def test_a_record_that_has_moved_in_ram_is_not_read_where_it_was(tiny: TinyStore) -> None:
    """A budget took slots and gave them back while chunks passed: as many are free as before."""
    with rigged(tiny, 2 * TOP_K, ALL) as rig:
        all_in_ram(rig)
        follow(rig, {0: [0, 1]})
        before = rig.records.copy()
        rig.streamer.resize(ALL - 6)
        rig.streamer.resize(ALL)
        gone = np.argwhere(places(rig) < 0)
        assert len(gone) == 6
        for layer, expert in gone[::-1].tolist():
            use_sweep(rig, layer, np.array([[expert]]))
            rig.device.finish()
        assert rig.streamer.free_slots == 0
        for layer in range(LAYERS):
            for first in range(0, EXPERTS, TOP_K):
                follow(rig, {layer: [first, first + 1]})
        assert (rig.records != before).any()


@pytest.mark.parametrize("layer", range(LAYERS - 1))
@pytest.mark.parametrize("first", range(0, EXPERTS, TOP_K))
def test_memory_that_becomes_short_in_a_token_takes_no_record_from_the_device(
    tiny: TinyStore, layer: int, first: int
) -> None:
    """It looks by itself where they are, after a read for a layer before."""
    with rigged(tiny, 2 * TOP_K, ALL) as rig:
        for known in range(LAYERS - 1):
            for expert in range(0, EXPERTS, TOP_K):
                use_token(rig, known, expert, expert + 1)
        use_token(rig, LAYERS - 1, 0, 1)
        relief = rig.streamer._relief
        with patch.object(relief, "note", lambda cache, nbytes: cache.shrink(8)):
            follow(rig, {LAYERS - 1: [2, 3], layer: [first, first + 1]})
        rig.check_idle()
