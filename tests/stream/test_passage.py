"""A chunk's experts: in file order, each read once, whatever is cached, however slow the disk."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashmoe.errors import ReadError
from flashmoe.options import Runtime
from flashmoe.quant import Array
from flashmoe.stream.sizes import BATCH_EXPERTS
from flashmoe.stream.streamer import Streamer
from tests.stream.conftest import EXPERTS, LAYERS, TOP_K, ScriptedReader, TinyStore, record_of

ALL = LAYERS * EXPERTS
ON, OFF = Runtime(io_threads=2), Runtime(io_threads=2, hints=False)


@contextmanager
def scripted(tiny: TinyStore, slots: int, reader: ScriptedReader) -> Iterator[Streamer]:
    with patch("flashmoe.stream.streamer.DirectReader", lambda threads: reader):
        streamer = Streamer(tiny.store, slots, ON)
    with closing(streamer):
        yield streamer


def chunk(*experts: int) -> Array:
    """A routing of several tokens that wants these, (T, TOP_K)."""
    return np.array([[expert] * TOP_K for expert in (*experts, experts[-1])])


def passed(tiny: TinyStore, streamer: Streamer, layer: int, ids: Array) -> list[list[int]]:
    """Hold a chunk's routing to its end in batches, compare every byte of each batch at once."""
    nbytes, found = tiny.store.layout(layer).nbytes, []
    with streamer.hold(layer, ids) as experts:
        for batch in experts.batches():
            found.append([expert for expert, _ in batch])
            for expert, weights in batch:
                assert record_of(weights) == tiny.records[layer][expert, :nbytes].tobytes()
    flat = [expert for batch in found for expert in batch]
    assert flat == np.unique(ids).tolist()
    return found


@pytest.mark.parametrize("runtime", [ON, OFF])
@pytest.mark.parametrize("slots", [1, TOP_K, 5, ALL])
def test_experts_come_in_file_order_whatever_is_cached(
    tiny: TinyStore, slots: int, runtime: Runtime
) -> None:
    with closing(Streamer(tiny.store, slots, runtime)) as streamer:
        for cached in ([7], [0, 6], [3, 4]):
            for wanted in ([0, 1, 2, 3, 4, 5, 6, 7], [2, 6, 7], [5], [1, 3]):
                with streamer.hold(1, np.array(cached[:slots])) as experts:
                    assert sorted(expert for expert, _ in experts) == cached[:slots]
                streamer.hint(1, chunk(*wanted))
                passed(tiny, streamer, 1, chunk(*wanted))


def test_a_batch_is_of_what_is_there_and_bounded(tiny: TinyStore) -> None:
    with closing(Streamer(tiny.store, ALL, OFF)) as streamer:
        passed(tiny, streamer, 0, chunk(0, 1, 2, 5))
        assert passed(tiny, streamer, 0, chunk(0, 1, 2, 5)) == [[0, 1, 2, 5]]
        with patch("flashmoe.stream.passage.BATCH_EXPERTS", 3):
            assert passed(tiny, streamer, 0, chunk(0, 1, 2, 5)) == [[0, 1, 2], [5]]
        with streamer.hold(0, chunk(0, 1, 2, 5)) as experts:
            assert [expert for expert, _ in experts] == [0, 1, 2, 5]
    assert BATCH_EXPERTS <= 16


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 1 << 32),
    slots=st.integers(1, 14),
    failing=st.sampled_from([0.0, 0.1]),
)
def test_no_schedule_of_the_disk_mixes_up_the_bytes(
    tiny: TinyStore, seed: int, slots: int, failing: float
) -> None:
    """Chunks and single tokens by turns, right and wrong expectations, failures, early leaves."""
    dice = random.Random(seed)
    reader = ScriptedReader(dice, failing)

    def some() -> Array:
        tokens = dice.choice([1, 1, 3, 9])
        return np.array([dice.sample(range(EXPERTS), TOP_K) for _ in range(tokens)])

    with scripted(tiny, slots, reader) as streamer:
        for _ in range(12):
            layer, ids = dice.randrange(LAYERS), some()
            early = ids if dice.random() < 0.5 else some()
            try:
                streamer.expect(layer, 9, lambda e=early: e, at_once=dice.random() < 0.5)
                if dice.random() < 0.7:
                    streamer.hint(layer, ids)
                streamer.expect((layer + 1) % LAYERS, 9, some)
                if len(ids) > 1 and dice.random() < 0.8:
                    passed(tiny, streamer, layer, ids)
                else:
                    with streamer.hold(layer, ids) as experts:
                        next(experts)
            except ReadError:
                assert failing
        reader.failing = 0.0
        for layer in range(LAYERS):
            with suppress(ReadError):  # a read ahead that failed before
                passed(tiny, streamer, layer, chunk(*range(EXPERTS)))
            passed(tiny, streamer, layer, chunk(*range(EXPERTS)))
        streamer._reads.let_go()
        streamer._reads.settle(list(streamer._reads.tickets))
        assert not streamer._cache.pinned


def sweep(tiny: TinyStore, streamer: Streamer, wanted: list[list[int]], early: bool) -> None:
    """A chunk through all layers, each expected before the one before it is hinted."""
    if early:
        streamer.expect(0, 8, lambda: chunk(*wanted[0]), at_once=True)
    for layer, experts in enumerate(wanted):
        if early and layer + 1 < LAYERS:
            streamer.expect(layer + 1, 8, lambda e=wanted[layer + 1]: chunk(*e))
        streamer.hint(layer, chunk(*experts))
        passed(tiny, streamer, layer, chunk(*experts))


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 1 << 32), slots=st.integers(TOP_K, 20), early=st.booleans())
def test_a_chunk_reads_each_record_at_most_once(
    tiny: TinyStore, seed: int, slots: int, early: bool
) -> None:
    """At the smallest cache too, after decoding and after other chunks; hits read nothing."""
    dice = random.Random(seed)
    reader = ScriptedReader(dice)
    sizes = [tiny.store.layout(layer).record_bytes for layer in range(LAYERS)]
    with scripted(tiny, slots, reader) as streamer:
        for _ in range(6):
            for layer in range(LAYERS):
                with streamer.hold(layer, np.array(dice.sample(range(EXPERTS), TOP_K))):
                    pass
        streamer._reads.settle(list(streamer._reads.tickets))
        for _ in range(3):
            wanted = [
                sorted(dice.sample(range(EXPERTS), dice.randint(TOP_K, EXPERTS)))
                for _ in range(LAYERS)
            ]
            before, mark = streamer.counters.snapshot(), len(reader.calls)
            sweep(tiny, streamer, wanted, early)
            begun = Counter(
                label for kind, label in reader.calls[mark:] if kind in ("demand", "hint")
            )
            begun.subtract(label for kind, label in reader.calls[mark:] if kind == "cancel")
            assert max(begun.values()) <= 1
            cost = streamer.counters.since(before)
            assert cost.hits + cost.misses == sum(map(len, wanted))
            assert sum(begun.values()) == cost.misses  # what was expected was right
            missed = {label for label, count in begun.items() if count}
            nbytes = sum(sizes[int(label.split()[-1])] for label in missed)
            assert cost.bytes_read == nbytes


def test_what_is_in_memory_is_kept_for_its_turn(tiny: TinyStore) -> None:
    with closing(Streamer(tiny.store, 3, OFF)) as streamer:
        with streamer.hold(0, np.array([6, 7])) as experts:
            assert len(list(experts)) == 2
        before = streamer.counters.snapshot()
        passed(tiny, streamer, 0, chunk(*range(EXPERTS)))
        cost = streamer.counters.since(before)
        assert (cost.hits, cost.misses) == (2, EXPERTS - 2)
        assert cost.bytes_read == (EXPERTS - 2) * tiny.store.layout(0).record_bytes


def test_where_no_slot_is_left_the_last_in_order_is_read_again_and_missed(tiny: TinyStore) -> None:
    with closing(Streamer(tiny.store, 3, OFF)) as streamer:
        with streamer.hold(0, np.array([5, 6, 7])) as experts:
            assert len(list(experts)) == 3
        before = streamer.counters.snapshot()
        passed(tiny, streamer, 0, chunk(*range(EXPERTS)))
        cost = streamer.counters.since(before)
        assert (cost.hits, cost.misses) == (2, EXPERTS - 2)
        assert cost.bytes_read == (EXPERTS - 2) * tiny.store.layout(0).record_bytes


def test_reads_are_asked_for_in_file_order_ahead_of_the_arithmetic(tiny: TinyStore) -> None:
    reader = ScriptedReader(random.Random(1))
    with scripted(tiny, 4, reader) as streamer, streamer.hold(2, chunk(*range(EXPERTS))) as experts:
        for count, batch in enumerate(experts.batches()):
            asked = [label for kind, label in reader.calls if kind == "demand"]
            assert asked == [f"expert {expert} of layer 2" for expert in range(len(asked))]
            assert len(asked) == EXPERTS or len(asked) >= batch[-1][0] + 2, count


def test_the_kernel_delivered_what_the_counters_say(tmp_path: Path, own: TinyStore) -> None:
    """By the system's own count, where reads go past the page cache."""
    try:
        Path("/proc/self/io").read_text()
    except OSError:
        pytest.skip("this system does not count a process's reads")
    with closing(Streamer(own.store, 2 * TOP_K, Runtime(io_threads=2))) as streamer:
        if not all(streamer._reader.is_direct(file) for file in streamer.drives.files):
            pytest.skip("this file system has no direct reads")
        passed(own, streamer, 0, chunk(0))
        before, mark = streamer.counters.snapshot(), read_bytes()
        sweep(own, streamer, [list(range(EXPERTS))] * LAYERS, early=False)
        cost = streamer.counters.since(before)
        sizes = [own.store.layout(layer).record_bytes for layer in range(LAYERS)]
        touched = EXPERTS * sum(sizes)
        assert touched - max(sizes) <= cost.bytes_read <= touched
        assert read_bytes() - mark == cost.bytes_read


def read_bytes() -> int:
    """What this process has caused to be fetched from storage."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def test_a_chunk_that_fails_leaves_nothing_pinned(own: TinyStore) -> None:
    own.damage(1, 5)
    with closing(Streamer(own.store, 6, ON)) as streamer:
        streamer.expect(1, 8, lambda: chunk(*range(EXPERTS)), at_once=True)
        with pytest.raises(ReadError, match="expert 5 of layer 1"):
            passed(own, streamer, 1, chunk(*range(EXPERTS)))
        assert not streamer._reads.tickets
        assert not streamer._cache.pinned
        own.damage(1, 5)
        passed(own, streamer, 1, chunk(*range(EXPERTS)))


def test_every_layer_is_read_ahead(tiny: TinyStore) -> None:
    """Not only every other one: what is expected next outlives the hint of the layer at hand."""
    wanted, asked = [list(range(EXPERTS))] * LAYERS, []
    with scripted(tiny, 14, ScriptedReader(random.Random(1))) as streamer:
        choose = streamer._ahead._policy.choose

        def chosen(layer, tokens, early):
            asked.append(layer)
            return choose(layer, tokens, early)

        with patch.object(streamer._ahead._policy, "choose", chosen):
            sweep(tiny, streamer, wanted, True)
    assert asked == list(range(LAYERS))
