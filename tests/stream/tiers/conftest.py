"""A tier above a streamer, both on parts whose timing the test decides."""

from __future__ import annotations

import random
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np

from flashmoe.errors import ReadError
from flashmoe.options import Runtime
from flashmoe.quant import Array
from flashmoe.stream.streamer import Streamer
from flashmoe.stream.tiers import offers
from flashmoe.stream.tiers.vram import Vram
from tests.stream.conftest import EXPERTS, LAYERS, TOP_K, ScriptedReader, TinyStore
from tests.stream.tiers.device import ScriptedDevice

ALL = LAYERS * EXPERTS
THERE, ASKED = -1, -2


class Rig:
    """A store, its streamer with ``ram`` slots, and a tier of ``vram`` slots above."""

    def __init__(
        self,
        tiny: TinyStore,
        vram: int,
        ram: int,
        seed: int = 0,
        runtime: Runtime = Runtime(io_threads=2),
        exclusive: bool = False,
    ) -> None:
        self.tiny = tiny
        self.dice = random.Random(seed)
        self.reader = ScriptedReader(self.dice)
        with patch("flashmoe.stream.streamer.DirectReader", lambda threads: self.reader):
            self.streamer = Streamer(tiny.store, ram, runtime)
        self.streamer.lending.keep()
        sizes = [tiny.store.layout(layer).record_bytes for layer in range(LAYERS)]
        self.device = ScriptedDevice(vram, max(sizes), self.dice)
        self.ring, self.records = offers.memory(), np.zeros((LAYERS, EXPERTS), np.int32)
        self.tier = Vram(
            tiny.store,
            vram,
            self.device,
            self.streamer,
            exclusive=exclusive,
            records=self.records,
            ring=self.ring,
        )

    def close(self) -> None:
        self.streamer.close()

    def fail(self, chance: float) -> None:
        """From now on reads and copies fail with this chance."""
        self.reader.failing = self.device.failing = chance

    def record(self, layer: int, expert: int) -> bytes:
        return self.tiny.records[layer][expert].tobytes()

    def some(self, tokens: int = 1) -> Array:
        """A routing at random."""
        return np.array([self.dice.sample(range(EXPERTS), TOP_K) for _ in range(tokens)])

    def check_idle(self) -> None:
        """Nobody passes: the tables tell of whole experts, and nothing is pinned."""
        self.tier._give_up_early()
        self.tier._land(all_of_them=True)
        self.tier._offers.withdraw()
        residence = self.tier._residence
        assert not self.device.copies
        assert not residence.cache.pinned
        assert len(residence.cache) + residence.cache.free == self.tier.slots
        for layer in range(LAYERS):
            for expert, slot in enumerate(self.tier.table(layer).tolist()):
                inside = residence.cache.slots_of(layer, [expert])[0]
                assert inside == slot, "the table and the cache disagree"
                if slot >= 0:
                    record = self.record(layer, expert)
                    assert self.device.arena[slot, : len(record)].tobytes() == record
        self.streamer._reads.let_go()
        self.streamer._reads.settle(list(self.streamer._reads.tickets))
        assert not self.streamer._cache.pinned
        assert not self.streamer.lending._reserved
        for layer in range(LAYERS):
            for expert, slot in enumerate(self.streamer._cache.slots_of(layer, range(EXPERTS))):
                if slot >= 0:
                    memory, (start,), nbytes = self.streamer.lending.spans(layer, [expert])
                    found = memory[start : start + nbytes]
                    assert found.tobytes() == self.record(layer, expert), "RAM has another expert"


class Pass:
    """The device of a decode step: it goes through layers on its own, gives slots on offer to what
    it misses and brings it from RAM, as source/experts.cu does; ``step`` by step, whenever it is
    let. ``routing`` are experts by layer, of which some are anticipated as ``early``, if the device
    finds them in RAM."""

    def __init__(
        self, rig: Rig, routing: dict[int, list[int]], early: dict[int, list[int]], taken: int
    ) -> None:
        self.rig = rig
        self.letters: dict[int, tuple[dict[int, int], list[int], list[int], list[int]]] = {}
        self.answers: dict[tuple[int, int], int] = {}
        self.given_up = self.over = False
        self.brought = 0
        self._taken, self._offered = taken, int(rig.ring[0])
        self._steps = self._run(routing, early)

    def step(self) -> None:
        """A little time passes on the device."""
        if not self.over:
            self.over = next(self._steps, True)

    def finish(self) -> None:
        """Let it come to its end, or to where it waits for the host for ever."""
        for _ in range(1000):
            self.step()

    def _run(self, routing: dict[int, list[int]], guesses: dict[int, list[int]]) -> Iterator[bool]:
        rig, order = self.rig, list(routing)
        coming: Iterator[bool] = iter(())  # of this layer, what is brought early
        early: dict[int, tuple[int, int]] = {}
        for layer, following in zip(order, [*order[1:], None], strict=True):
            ids, ahead = routing[layer], rig.tier.lasting and following is not None
            yield False
            if layer == order[0] or not rig.tier.lasting:
                early = self._anticipate(layer, guesses.get(layer, []), self._offered)
                yield from self._bring_all(layer, early)
            found = yield from self._find(layer, ids, early)
            if found is None:
                return
            slots, sources, known = found
            early = {}
            yield False
            own = {i: (s, of) for i, s, of in zip(ids, slots, sources, strict=True) if of != THERE}
            if rig.dice.random() < 0.5:  # what comes beside comes later
                yield from self._bring_all(layer, own)
                own = {}
            yield from coming
            if ahead:
                early = self._anticipate(following, guesses.get(following, []), known)
            yield from self._bring_all(layer, own)
            for expert, slot in zip(ids, slots, strict=True):
                if not self.given_up:
                    record = rig.record(layer, expert)
                    found = rig.device.arena[slot, : len(record)].tobytes()
                    assert found == record, "a slot is not what it should be"
            coming = self._bring_all(following, early) if ahead else iter(())
            for _ in range(rig.dice.choice([0, 1, 9])):  # before the next letter, or behind it
                yield next(coming, False)
            yield False

    def _find(
        self, layer: int, ids: list[int], early: dict[int, tuple[int, int]]
    ) -> Generator[bool, None, tuple[list[int], list[int], int] | None]:
        """Slots and sources of what was chosen, and how many slots were on offer before; the letter
        is written. None if the pass is given up."""
        rig = self.rig
        while True:
            yield False
            table = rig.tier.table(layer)[ids].tolist()
            slots = [early.get(i, (slot, 0))[0] for i, slot in zip(ids, table, strict=True)]
            latest, sources = int(rig.ring[0]), rig.records[layer][ids].tolist()
            absent = [k for k, slot in enumerate(slots) if slot < 0]
            if self._offered - self._taken & 0xFFFFFFFF >= len(absent):
                break
            if self.given_up:
                return None
            self._offered = latest
        for k in absent:
            slots[k] = self._take()
        known, self._offered = self._offered, latest
        wanted = [ASKED if source < 0 else source for source in sources]
        told = [wanted[k] if k in absent else THERE for k in range(len(ids))]
        self.letters[layer] = {e: slot for e, (slot, _) in early.items()}, ids, slots, told
        return slots, told, known

    def _anticipate(
        self, layer: int, guesses: list[int], offered: int
    ) -> dict[int, tuple[int, int]]:
        """Slots, and where in RAM their experts are, of those that were on offer by then."""
        rig, early = self.rig, dict[int, tuple[int, int]]()
        for expert in guesses:
            left = offered - self._taken & 0xFFFFFFFF
            source = int(rig.records[layer, expert])
            known = rig.tier.table(layer)[expert] < 0 <= source
            if known and len(early) < 2 and TOP_K < left < 1 << 31:
                early[expert] = self._take(), source
        self._offered = int(rig.ring[0])
        return early

    def _bring_all(self, layer: int, places: dict[int, tuple[int, int]]) -> Iterator[bool]:
        for expert, (slot, source) in places.items():
            yield from self._bring(layer, expert, slot, source)

    def _take(self) -> int:
        ring = self.rig.ring[offers.FIRST :]
        slot = int(ring[self._taken % len(ring)])
        self._taken = self._taken + 1 & 0xFFFFFFFF
        return slot

    def _bring(self, layer: int, expert: int, slot: int, source: int) -> Iterator[bool]:
        while source < 0:
            source = self.answers.get((layer, expert), ASKED)
            if source < 0 and self.given_up:
                return
            yield False
        streamer, size = self.rig.streamer, self.rig.tiny.store.layout(layer).record_bytes
        start = source * streamer._slots.slot_bytes
        for part in (slice(0, size // 2), slice(size // 2, size)):
            bytes_ = streamer.lending.keep()[start : start + size][part]
            self.rig.device.arena[slot, part] = bytes_
            yield False
        self.brought += 1


def follow(
    rig: Rig, routing: dict[int, list[int]], guesses: dict[int, list[int]] | None = None
) -> Pass:
    """A token through some layers, host and device by turns, with ``guesses`` of the next ones; a
    failure ends it, and goes on."""
    taken = rig.tier.begin()
    device = rig.device.running = Pass(rig, routing, guesses or {}, taken)
    try:
        for layer in routing:
            for _ in range(1000):
                if layer in device.letters:
                    break
                rig.tier.tend()
                device.step()
            earlier, ids, slots, sources = device.letters[layer]
            given = {i: s for i, s, of in zip(ids, slots, sources, strict=True) if of != THERE}
            asked = [expert for expert, of in zip(ids, sources, strict=True) if of == ASKED]

            def answer(expert: int, slot: int, layer: int = layer) -> None:
                assert (layer, expert) not in device.answers
                device.answers[layer, expert] = slot
                rig.device.pass_time()

            early = (guesses or {}).get(layer + 1)
            if early is not None and not rig.tier.lasting:
                rig.tier.foresee(layer + 1, lambda early=early: np.array(early))
            rig.tier.follow(layer, np.array(ids), earlier, given, asked, answer)
            rig.device.pass_time()
        device.finish()
        assert device.over, "the device waits for ever"
        rig.tier.end()
    except BaseException:
        device.given_up = True
        device.finish()
        assert device.over, "the device waits for ever, though it was let go"
        rig.device.running = None
        rig.tier.abandon()
        raise
    rig.device.running = None
    return device


def use_token(rig: Rig, layer: int, *experts: int) -> bool:
    """A token through one layer; whether all was there."""
    return follow(rig, {layer: list(experts)}).brought == 0


def some_token(rig: Rig) -> None:
    """A token through all layers, at random; reads may fail."""
    routing, guesses = (
        {layer: rig.some().ravel().tolist() for layer in range(LAYERS)} for _ in range(2)
    )
    try:
        follow(rig, routing, guesses)
    except ReadError:
        assert rig.reader.failing


def use_sweep(rig: Rig, layer: int, ids: Array) -> list[list[int]]:
    """Pass a routing to its end, and compute with every batch."""
    found = []
    with rig.tier.sweep(layer, ids) as passing:
        lost = rig.device.lost
        for batch in passing.batches():
            found.append([expert for expert, _ in batch])
            rig.device.compute([(slot, rig.record(layer, expert)) for expert, slot in batch])
        assert rig.device.lost == lost, "what was computed was not there"
    assert [expert for batch in found for expert in batch] == np.unique(ids).tolist()
    return found


@contextmanager
def rigged(tiny: TinyStore, *arguments: int, **options: Any) -> Iterator[Rig]:
    """A rig, as its constructor says."""
    with closing(Rig(tiny, *arguments, **options)) as rig:
        yield rig
