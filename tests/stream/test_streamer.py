"""The streamer on real files: right bytes, right counts, and faults that leave it usable."""

from __future__ import annotations

import gc
import os
import random
import weakref
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashmoe.errors import ReadError
from flashmoe.options import Runtime
from flashmoe.quant import Array
from flashmoe.store.layout import layer_file
from flashmoe.stream.cache import Cache
from flashmoe.stream.counters import Counters
from flashmoe.stream.streamer import Streamer
from tests.stream.conftest import EXPERTS, LAYERS, TOP_K, ScriptedReader, TinyStore, record_of

ALL = LAYERS * EXPERTS
ON, OFF = Runtime(io_threads=2), Runtime(io_threads=2, hints=False)


def streamed(tiny: TinyStore, streamer: Streamer, layer: int, ids: list[int]) -> list[int]:
    """Hold a routing to its end, compare every byte, and return the order of arrival."""
    order = []
    nbytes = tiny.store.layout(layer).nbytes
    with streamer.hold(layer, np.array(ids)) as experts:
        for expert, weights in experts:
            order.append(expert)
            assert record_of(weights) == tiny.records[layer][expert, :nbytes].tobytes()
    assert sorted(order) == sorted(set(ids))
    return order


def test_a_batch_is_all_that_is_there_and_stays(tiny: TinyStore) -> None:
    with closing(Streamer(tiny.store, ALL, ON)) as streamer:
        streamed(tiny, streamer, 0, [0, 2])
        with streamer.hold(0, np.array([0, 1, 2])) as experts:
            batches = [dict(batch) for batch in experts.batches()]
            assert [sorted(batch) for batch in batches] in ([[0, 2], [1]], [[0, 1, 2]])
            for expert, weights in (item for batch in batches for item in batch.items()):
                want = tiny.records[0][expert, : tiny.store.layout(0).nbytes]
                assert record_of(weights) == want.tobytes()
        with streamer.hold(0, np.arange(EXPERTS)) as experts:  # more than may stay together
            found = [expert for batch in experts.batches() for expert, _ in batch]
            assert found == list(range(EXPERTS))


@pytest.mark.parametrize("slots", [1, TOP_K, EXPERTS, ALL])
@pytest.mark.parametrize("hints", [True, False])
@pytest.mark.parametrize("direct", [True, False])
def test_every_expert_arrives_whole_whatever_the_slots(
    tiny: TinyStore, slots: int, hints: bool, direct: bool
) -> None:
    runtime = Runtime(io_threads=3, hints=hints, io="direct" if direct else "buffered")
    with closing(Streamer(tiny.store, slots, runtime)) as streamer:
        for _ in range(2):
            for layer in range(LAYERS):
                streamer.hint(layer, np.arange(EXPERTS))
                streamed(tiny, streamer, layer, list(range(EXPERTS)))
        counters = streamer.counters
        assert counters.hits + counters.misses == 2 * ALL
        sizes = [tiny.store.layout(layer).record_bytes for layer in range(LAYERS)]
        spared = 2 * sum(sizes) * EXPERTS - counters.bytes_read
        assert counters.hits == ALL if slots == ALL else counters.hits <= slots
        assert counters.hits * min(sizes) <= spared <= counters.hits * max(sizes)
        assert counters.wait_ms >= 0


@pytest.mark.parametrize("runtime", [ON, OFF])
@pytest.mark.parametrize("ids", [np.array([1, 2, 5]), np.array([[1, 2], [5, 2], [1, 2]])])
def test_what_is_elsewhere_is_neither_asked_for_nor_counted(
    tiny: TinyStore, runtime: Runtime, ids: Array
) -> None:
    with closing(Streamer(tiny.store, ALL, runtime)) as streamer:
        for _ in range(2):
            streamer.hint(1, ids, {2, 7})
            with streamer.hold(1, ids, {2, 7}) as experts:
                assert sorted(expert for expert, _ in experts) == [1, 5]
        with streamer.hold(1, ids, {1, 2, 5}) as experts:
            assert list(experts) == []
        assert counts(streamer) == (2, 2)
        assert streamer.counters.bytes_read == 2 * tiny.store.layout(1).record_bytes
        assert streamer.usage.counts()[1, [1, 2, 5]].tolist() == [
            3 * np.count_nonzero(ids == expert) for expert in (1, 2, 5)
        ]


def test_ids_may_repeat_and_have_any_shape(tiny: TinyStore) -> None:
    with closing(Streamer(tiny.store, ALL, OFF)) as streamer:
        with streamer.hold(1, np.array([[3, 5], [5, 3], [0, 3]])) as experts:
            assert sorted(expert for expert, _ in experts) == [0, 3, 5]
        assert streamer.counters.misses == 3
        with streamer.hold(1, np.array([], np.int64)) as experts:
            assert list(experts) == []


def test_what_is_in_memory_comes_first(tiny: TinyStore) -> None:
    with closing(Streamer(tiny.store, ALL, OFF)) as streamer:
        streamed(tiny, streamer, 0, [2, 6])
        assert streamed(tiny, streamer, 0, [0, 1, 2, 6])[:2] == [2, 6]


Routings = list[tuple[int, list[int]]]
routings = st.lists(
    st.tuples(
        st.integers(0, LAYERS - 1),
        st.lists(st.integers(0, EXPERTS - 1), min_size=TOP_K, max_size=TOP_K, unique=True),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=25, deadline=None)
@given(routings=routings, slots=st.integers(TOP_K, 9))
def test_counts_are_those_of_the_policy_with_hints_and_without(
    tiny: TinyStore, routings: Routings, slots: int
) -> None:
    policy, hits, misses, nbytes = Cache(slots, LAYERS, TOP_K), 0, 0, 0
    for layer, ids in routings:
        present = [policy.lookup((layer, e)) is not None for e in sorted(ids)]
        hits += sum(present)
        misses += len(ids) - sum(present)
        nbytes += tiny.store.layout(layer).record_bytes * (len(ids) - sum(present))
        for expert, here in zip(sorted(ids), present, strict=True):
            if not here:
                policy.admit((layer, expert))
    for runtime in (ON, OFF):
        with closing(Streamer(tiny.store, slots, runtime)) as streamer:
            for layer, ids in routings:
                streamer.hint(layer, np.array(ids))
                streamed(tiny, streamer, layer, ids)
            found = streamer.counters
            assert (found.hits, found.misses, found.bytes_read) == (hits, misses, nbytes)


def counts(streamer: Streamer) -> tuple[int, int]:
    return streamer.counters.hits, streamer.counters.misses


def test_hold_counts_and_takes_the_last_hint_for_its_own(tiny: TinyStore) -> None:
    with closing(Streamer(tiny.store, ALL, ON)) as streamer:
        streamer.hint(0, np.array([1, 2]))
        assert counts(streamer) == (0, 0)
        streamed(tiny, streamer, 0, [1, 2])
        assert counts(streamer) == (0, 2)
        streamed(tiny, streamer, 0, [1, 2])
        assert counts(streamer) == (2, 2)
        streamer.hint(0, np.array([3, 4]))  # foretold, before the routing is known
        streamer.hint(0, np.array([3, 5]))
        streamed(tiny, streamer, 0, [3, 5])
        assert counts(streamer) == (3, 3)


def test_a_hint_that_no_hold_follows_falsifies_nothing(tiny: TinyStore) -> None:
    with closing(Streamer(tiny.store, ALL, ON)) as streamer:
        streamer.hint(1, np.array([1, 2]))
        streamed(tiny, streamer, 1, [5])
        assert counts(streamer) == (0, 1)
        streamed(tiny, streamer, 1, [1, 2])
        assert counts(streamer) == (2, 1)
        streamed(tiny, streamer, 1, [1, 2])
        assert counts(streamer) == (4, 1)


def test_holding_keeps_an_expert_that_was_only_hinted_before(tiny: TinyStore) -> None:
    with closing(Streamer(tiny.store, 2, ON)) as streamer:
        streamer.hint(1, np.array([1]))
        streamed(tiny, streamer, 1, [5])
        streamed(tiny, streamer, 1, [1])
        streamed(tiny, streamer, 2, [0])  # 5 leaves, since 1 was asked last
        streamed(tiny, streamer, 1, [1])
        assert counts(streamer) == (2, 2)


@pytest.mark.parametrize("slots", [3, 5, EXPERTS])
def test_all_experts_stay_valid_together_where_there_are_slots_for_them(
    tiny: TinyStore, slots: int
) -> None:
    with closing(Streamer(tiny.store, slots, ON)) as streamer:
        for layer in (0, 2, 1, 0):
            streamer.hint(3 - layer, np.arange(EXPERTS))  # takes every slot it can
            ids = np.random.default_rng(layer).permutation(EXPERTS)[: min(slots, 2 * TOP_K)]
            with streamer.hold(layer, ids) as experts:
                taken = dict(experts)
                assert sorted(taken) == sorted(ids)
                streamer.hint((layer + 1) % 4, np.arange(EXPERTS))
                nbytes = tiny.store.layout(layer).nbytes
                for expert, weights in taken.items():
                    assert record_of(weights) == tiny.records[layer][expert, :nbytes].tobytes()


def test_more_experts_a_token_than_the_models_own_stay_together_too(tiny: TinyStore) -> None:
    with closing(Streamer(tiny.store, ALL, ON, top_k=EXPERTS)) as streamer:
        assert streamer.least_slots == 2 * EXPERTS
        streamed(tiny, streamer, 0, list(range(EXPERTS)))
        with streamer.hold(0, np.arange(EXPERTS)) as experts:
            assert [len(batch) for batch in experts.batches()] == [EXPERTS]


def test_experts_cannot_be_written_to(tiny: TinyStore) -> None:
    with (
        closing(Streamer(tiny.store, TOP_K, ON)) as streamer,
        streamer.hold(1, np.arange(EXPERTS)) as experts,
    ):
        for _, weights in experts:
            for matrix in (weights.gate, weights.up, weights.down):
                assert not any(array.flags.writeable for array in matrix.arrays())


def test_a_second_hold_ends_the_first_which_says_so(tiny: TinyStore) -> None:
    with closing(Streamer(tiny.store, TOP_K, ON)) as streamer:
        with pytest.raises(RuntimeError, match="do not nest"), streamer.hold(0, np.array([1])):
            streamed(tiny, streamer, 1, [1, 2])
        with pytest.raises(RuntimeError, match="ended"), streamer.hold(0, np.array([1])) as experts:
            streamed(tiny, streamer, 1, [1, 2])
            next(experts)
        streamed(tiny, streamer, 0, [1])
        streamed(tiny, streamer, 0, [1])


def test_closing_inside_a_hold_is_seen_at_the_next_expert(tiny: TinyStore) -> None:
    streamer = Streamer(tiny.store, TOP_K, ON)
    with streamer.hold(0, np.array([1, 2])) as experts:
        expert, weights = next(experts)
        streamer.close()
        nbytes = tiny.store.layout(0).nbytes
        assert record_of(weights) == tiny.records[0][expert, :nbytes].tobytes()
        with pytest.raises(RuntimeError, match="close"):
            next(experts)


def test_a_streamer_that_is_dropped_gives_everything_back_at_once(tiny: TinyStore) -> None:
    """Gigabytes do not wait for a collection of cycles."""
    streamer = Streamer(tiny.store, TOP_K, ON)
    streamed(tiny, streamer, 0, [0, 1])
    streamer.hint(1, np.array([2]))
    left = weakref.ref(streamer._reader), weakref.ref(streamer._slots)
    gc.disable()
    try:
        del streamer
        assert [reference() for reference in left] == [None, None]
    finally:
        gc.enable()


def test_a_forked_child_is_refused_and_can_leave(tiny: TinyStore) -> None:
    with closing(Streamer(tiny.store, TOP_K, ON)) as streamer:
        streamed(tiny, streamer, 0, [0, 1])
        child = os.fork()
        if not child:
            verdict = 1
            try:
                for _ in range(2):
                    with pytest.raises(RuntimeError, match=r"forked.*open the store again"):
                        streamed(tiny, streamer, 1, [2])
                streamer.close()
                del streamer
                gc.collect()
                verdict = 0
            finally:
                os._exit(verdict)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        streamed(tiny, streamer, 1, [2])


def test_a_hint_does_nothing_where_hints_are_off(tiny: TinyStore) -> None:
    streamer = Streamer(tiny.store, ALL, OFF)
    streamer.hint(0, np.arange(EXPERTS))
    streamer.close()
    assert streamer.counters == Counters()


def test_counters_can_be_subtracted(tiny: TinyStore) -> None:
    with closing(Streamer(tiny.store, ALL, OFF)) as streamer:
        streamed(tiny, streamer, 0, [1, 2])
        before = streamer.counters.snapshot()
        streamed(tiny, streamer, 0, [2, 3])
        step = streamer.counters.since(before)
        assert (step.hits, step.misses) == (1, 1)
        assert step.bytes_read == tiny.store.layout(0).record_bytes
        assert before.misses == 2


@pytest.mark.parametrize("slots", [1, 3, ALL])
@pytest.mark.parametrize("taken", [0, 1, 2])
def test_leaving_early_leaves_everything_usable(tiny: TinyStore, slots: int, taken: int) -> None:
    with closing(Streamer(tiny.store, slots, ON)) as streamer:
        streamer.hint(0, np.arange(EXPERTS))
        with pytest.raises(KeyError, match="consumer"), streamer.hold(0, np.arange(8)) as experts:
            for _ in range(taken):
                next(experts)
            raise KeyError("consumer")
        with pytest.raises(RuntimeError, match="has ended"):
            next(experts)
        for layer in range(LAYERS):
            streamed(tiny, streamer, layer, list(range(EXPERTS)))


@pytest.mark.parametrize("hints", [True, False])
@pytest.mark.parametrize("slots", [1, TOP_K, ALL])
def test_a_damaged_record_is_named_and_can_be_read_once_mended(
    own: TinyStore, slots: int, hints: bool
) -> None:
    own.damage(1, 2)
    with closing(Streamer(own.store, slots, Runtime(io_threads=2, hints=hints))) as streamer:
        for _ in range(2):
            streamer.hint(1, np.array([2, 3]))
            with pytest.raises(ReadError, match="expert 2 of layer 1") as refusal:
                streamed(own, streamer, 1, [2, 3])
            assert layer_file(1) in str(refusal.value)
        streamed(own, streamer, 1, [3, 4])
        own.damage(1, 2)
        streamer.hint(1, np.array([2, 3]))
        streamed(own, streamer, 1, [2, 3])


def test_a_file_cut_short_while_open_is_named_and_can_be_mended(own: TinyStore) -> None:
    path = own.store.path / layer_file(3)
    whole = path.read_bytes()
    with closing(Streamer(own.store, TOP_K, OFF)) as streamer:
        os.truncate(path, len(whole) - 100)
        streamed(own, streamer, 3, [0, 1])
        with pytest.raises(ReadError, match="expert 7 of layer 3"):
            streamed(own, streamer, 3, [0, 7])
        with open(path, "r+b") as file:
            file.write(whole)
        streamed(own, streamer, 3, [0, 7])


def test_a_hinted_read_that_fails_and_is_never_held_harms_nobody(own: TinyStore) -> None:
    own.damage(0, 0)
    with closing(Streamer(own.store, 1, ON)) as streamer:
        streamer.hint(0, np.array([0]))
        streamed(own, streamer, 2, [4])
        streamer.hint(0, np.array([0]))


def test_a_missing_file_is_refused_at_the_start(own: TinyStore) -> None:
    (own.store.path / layer_file(2)).unlink()
    with pytest.raises(ReadError, match=layer_file(2)):
        Streamer(own.store, TOP_K, ON)


def test_calls_that_only_a_bug_makes_are_errors(tiny: TinyStore) -> None:
    streamer = Streamer(tiny.store, TOP_K, ON)
    with streamer.hold(0, np.array([1])) as experts:
        assert [expert for expert, _ in experts] == [1]
    for ids in ([-1], [EXPERTS]):
        with pytest.raises(ValueError, match="not all below 8"), streamer.hold(0, np.array(ids)):
            pass
    streamer.close()
    streamer.close()
    with pytest.raises(RuntimeError, match="closed"):
        streamer.hint(0, np.array([1]))
    with pytest.raises(RuntimeError, match="closed"), streamer.hold(0, np.array([1])):
        pass


@contextmanager
def scripted(tiny: TinyStore, slots: int, reader: ScriptedReader) -> Iterator[Streamer]:
    """A streamer on a disk whose timing the test decides."""
    with patch("flashmoe.stream.streamer.DirectReader", lambda threads: reader):
        streamer = Streamer(tiny.store, slots, ON)
    with closing(streamer):
        yield streamer


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 1 << 32),
    slots=st.integers(1, 12),
    failing=st.sampled_from([0.0, 0.2]),
)
def test_no_schedule_of_the_disk_mixes_up_the_bytes(
    tiny: TinyStore, seed: int, slots: int, failing: float
) -> None:
    """Random hints, windows, early exits and failures, with hints for other layers in between."""
    dice = random.Random(seed)
    reader = ScriptedReader(dice, failing)

    def some_ids() -> list[int]:
        return dice.sample(range(EXPERTS), dice.randint(1, EXPERTS))

    with scripted(tiny, slots, reader) as streamer:
        for _ in range(8):
            layer, ids = dice.randrange(LAYERS), some_ids()
            wanted = {f"expert {expert} of layer {layer}" for expert in ids}
            streamer.foresee((layer + 1) % LAYERS, lambda: np.array(some_ids()))
            if dice.random() < 0.6:
                streamer.hint(layer, np.array(ids if dice.random() < 0.7 else some_ids()))
            taken, leave = [], dice.random() < 0.2
            try:
                with streamer.hold(layer, np.array(ids)) as experts:
                    for expert, weights in experts:
                        taken.append(expert)
                        if dice.random() < 0.3:
                            streamer.hint(dice.randrange(LAYERS), np.array(some_ids()))
                        want = tiny.records[layer][expert, : tiny.store.layout(layer).nbytes]
                        assert record_of(weights) == want.tobytes()
                        if leave and dice.random() < 0.3:
                            break
                    else:
                        assert sorted(taken) == sorted(ids)
            except ReadError as refusal:
                assert failing and any(label in str(refusal) for label in wanted)
            assert wanted.isdisjoint(read.label for read in reader.reads.values())
        reader.failing = 0.0
        for layer in range(LAYERS):
            streamer.hint(layer, np.arange(EXPERTS))
        for layer in range(LAYERS):
            with suppress(ReadError):  # a hinted read that failed before
                streamed(tiny, streamer, layer, list(range(EXPERTS)))
            streamed(tiny, streamer, layer, list(range(EXPERTS)))


def test_experts_come_in_the_order_in_which_their_reads_end(tiny: TinyStore) -> None:
    reader = ScriptedReader(random.Random(3))
    with scripted(tiny, ALL, reader) as streamer:
        orders = [tuple(streamed(tiny, streamer, layer, list(range(4)))) for layer in range(4)]
    assert len(set(orders)) >= 3


def test_hinted_reads_wait_for_demanded_ones_and_hold_promotes_them(tiny: TinyStore) -> None:
    reader = ScriptedReader(random.Random(0))
    with scripted(tiny, ALL, reader) as streamer:
        streamer.hint(0, np.array([3]))
        streamed(tiny, streamer, 0, [3, 4])
    labels = [(kind, label.split()[1]) for kind, label in reader.calls]
    assert labels == [("hint", "3"), ("promote", "3"), ("demand", "4")]


def test_a_hint_displaces_neither_its_own_routing_nor_what_is_held(tiny: TinyStore) -> None:
    with closing(Streamer(tiny.store, 3, ON)) as streamer:
        streamed(tiny, streamer, 0, [0, 1, 2])
        before = streamer.counters.snapshot()
        streamer.hint(0, np.array([0, 1, 5, 6, 7]))
        assert list(streamer._reads.tickets) == [(0, 5)]  # where 2 was; no other slot may be had
        streamer._reads.put_away([(0, 5)], block=True)  # a read counts once it is collected
        streamed(tiny, streamer, 0, [0, 1])
        step = streamer.counters.since(before)
        assert (step.hits, step.misses) == (2, 0)
        assert step.bytes_read == tiny.store.layout(0).record_bytes
        with streamer.hold(0, np.array([0, 1])) as experts:
            _, weights = next(experts)
            held = record_of(weights)
            streamer.hint(2, np.arange(EXPERTS))
            assert record_of(weights) == held == tiny.records[0][0, : len(held)].tobytes()


def test_a_hold_takes_slots_back_from_hints_for_others(tiny: TinyStore) -> None:
    for seed in range(20):
        reader = ScriptedReader(random.Random(seed))
        with scripted(tiny, 2, reader) as streamer:
            streamer.hint(0, np.array([0, 1]))
            streamed(tiny, streamer, 1, [0, 1, 2, 3])
