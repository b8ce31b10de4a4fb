"""Law 1: placement decides speed, never the answer. Every comparison here is bit for bit."""

import itertools
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from flashmoe.engine import Engine
from flashmoe.options import Budget, Runtime, Sampling
from flashmoe.quant import Affine, Plain
from flashmoe.store.spread import spread
from tests.synthetic import DENSE, HYBRID, write_store

IDS = [int(i) for i in np.random.default_rng(5).integers(0, 96, 40)]
STORES = {"hybrid": (HYBRID, Affine(4, 32)), "dense": (DENSE, Affine(4, 32)),
          "plain": (HYBRID, Plain("BF16"))}  # fmt: skip


@pytest.fixture(scope="module", params=STORES)
def path(request, tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("p") / "store", *STORES[request.param])


def answer(engine):
    """Logits of a prompt in two chunks and of eight decoded tokens, and those tokens."""
    session = engine.session()
    prompt = session.logits(IDS)
    steps = list(session.generate(IDS[:3], Sampling(temperature=0, max_tokens=8)))
    session.logits([1])
    return prompt, session.logits([2]), [step.id for step in steps]


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture(scope="module")
def reference(path):
    with Engine.open(path) as engine:
        assert engine.plan.slots == engine.plan.experts_total
        return answer(engine)


def placements(plan, layers):
    """The smallest cache, one slot a layer more, half, and all experts in memory."""
    floor, total = plan.floor_slots, plan.experts_total
    sizes = (floor, floor + layers, total // 2, total)
    return sorted({min(max(size, floor), total) for size in sizes})


def test_slots_hints_threads_and_io_do_not_change_a_bit(path, reference):
    with Engine.open(path) as engine:
        sizes = placements(engine.plan, engine.shape.layers)
    assert len(sizes) >= 2
    runtimes = [
        Runtime(hints=hints, threads=threads, io=io, io_threads=depth, chunk_tokens=128)
        for hints, threads, io, depth in ((True, 1, "direct", 4), (False, 2, "buffered", 1))
    ]
    misses, guessed = set(), 0
    for slots, runtime in itertools.product(sizes, runtimes):
        with Engine.open(path, budget=Budget(slots=slots), runtime=runtime) as engine:
            assert engine.plan.slots == slots
            assert same(answer(engine), reference), f"{slots} slots, {runtime}"
            misses.add(engine.counters.misses)
            guessed += engine.counters.guessed
            assert runtime.hints or not engine.counters.guessed
    assert len(misses) > 1  # the placements did differ
    # A dense model's floor is a whole layer, beside which half of all has no room for guesses.
    assert guessed or DENSE.experts == engine.shape.experts


def test_a_prompt_in_several_chunks_does_not_change_a_bit_at_any_cache_size(path):
    """Nor does what is read ahead of them, and no record is read twice in a chunk."""
    found, guessed = [], 0
    with Engine.open(path) as engine:
        sizes = placements(engine.plan, engine.shape.layers)
        total = engine.plan.experts_total
    for slots, hints in itertools.product(sizes, (True, False)):
        runtime = Runtime(hints=hints, chunk_tokens=16, profile=False)
        with Engine.open(path, budget=Budget(slots=slots), runtime=runtime) as engine:
            found.append(answer(engine)[:2])
            guessed += engine.counters.guessed
            session, before = engine.session(), engine.counters
            session.logits(IDS[:16])
            cost = engine.counters.since(before)
            wrong = cost.guessed - cost.guessed_right
            assert cost.hits + cost.misses <= total
            largest = max(entry.layout.record_bytes for entry in engine.store.manifest.layers)
            assert cost.bytes_read <= (cost.misses + wrong) * largest
    assert all(same(one, found[0]) for one in found)
    assert guessed


@pytest.mark.parametrize("hints", [True, False])
def test_leaving_the_experts_to_the_page_cache_does_not_change_a_bit(path, reference, hints):
    with Engine.open(path, runtime=Runtime(io="os", hints=hints)) as engine:
        assert engine.plan.slots == engine.plan.floor_slots
        assert same(answer(engine), reference)
        assert engine.counters.misses > engine.counters.hits  # hardly anything is kept


@pytest.mark.parametrize("mirror", [False, True])
def test_drives_do_not_change_a_bit(path, reference, tmp_path, mirror):
    """Equal shares or copies, on one drive or two, with and without the store's own files."""
    places = [tmp_path / "a", tmp_path / "b"]
    with TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as other:
        places.append(Path(other) / "c")
        spread(path, places, mirror=mirror)
        bare = tmp_path / "bare"
        shutil.copytree(path, bare, ignore=shutil.ignore_patterns("layer-*"))
        for own in (path, bare):
            runtime = Runtime(io_threads=2, store_dirs=tuple(places), profile=False)
            with Engine.open(own, budget=Budget(slots=6), runtime=runtime) as engine:
                assert same(answer(engine), reference)
                drives, counted = engine.drives, engine.counters
                in_vain = sum(drive.reads for drive in drives) - counted.misses
                assert 0 <= in_vain <= counted.guessed - counted.guessed_right
                assert mirror or own is path or all(drive.reads for drive in drives)


def test_cold_and_warm_are_the_same(path, reference):
    with Engine.open(path) as engine:
        slots = engine.plan.experts_total * 3 // 4  # more than one sweep over the layers
    with Engine.open(path, budget=Budget(slots=slots)) as engine:
        assert same(answer(engine), reference)
        first = engine.counters
        assert same(answer(engine), reference)
        assert engine.counters.since(first).hits > 0


def test_another_session_in_between_does_not_matter(path, reference):
    with Engine.open(path, budget=Budget(slots=6)) as engine:
        other = engine.session()
        session = engine.session()
        prompt = session.logits(IDS)
        other.logits(IDS[::-1])
        assert np.array_equal(prompt, reference[0])
        steps = [
            step.id
            for step in session.generate(IDS[:3], Sampling(temperature=0, max_tokens=8))
            if other.logits([step.id]) is not None
        ]
        assert steps == reference[2]


def test_a_cache_that_shrinks_and_grows_in_between(path, reference):
    with Engine.open(path) as engine:
        streamer, changes = engine.streamer, []

        class Restless:
            def tend(self, streamer):
                if len(changes) % 3 == 2:
                    changes.append(streamer.grow(5))
                else:
                    changes.append(-streamer.shrink(4))

            def note(self, streamer, nbytes):
                self.tend(streamer)

        streamer._relief = Restless()
        assert same(answer(engine), reference)
        can = streamer.least_slots < engine.plan.slots  # a dense layer always uses all it has
        assert (min(changes) < 0 < max(changes)) == can
        assert (streamer.least_slots <= streamer.slots < engine.plan.slots) == can


def test_a_second_start_is_warm_and_says_the_same(path, reference):
    (path / "usage.json").unlink(missing_ok=True)
    with Engine.open(path, runtime=Runtime(profile=False)) as engine:
        slots = engine.plan.experts_total * 3 // 4
    found = []
    for number in range(3):
        runtime = Runtime(profile=number < 2)
        with Engine.open(path, budget=Budget(slots=slots), runtime=runtime) as engine:
            while engine.streamer._warmup:  # what is not there yet would be a miss
                engine.streamer._warmup.land()
            assert (engine.streamer._warmup.landed > 0) == (number == 1)
            session = engine.session()
            next(iter(session.generate(IDS[:1], Sampling(temperature=0))))
            found.append(engine.counters)
            assert same(answer(engine), reference)
    first, second, third = found
    assert first.hits == third.hits == 0 < second.hits
    (path / "usage.json").unlink()
