"""A tier above a streamer, both on parts whose timing the test decides."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np

from flashmoe.errors import DeviceError, ReadError
from flashmoe.options import Runtime
from flashmoe.quant import Array
from flashmoe.stream.streamer import Streamer
from flashmoe.stream.tiers.vram import Vram
from tests.stream.conftest import EXPERTS, LAYERS, TOP_K, ScriptedReader, TinyStore
from tests.stream.tiers.device import ScriptedDevice

ALL = LAYERS * EXPERTS


class Rig:
    """A store, its streamer with ``ram`` slots, and a tier of ``vram`` slots above."""

    def __init__(
        self,
        tiny: TinyStore,
        vram: int,
        ram: int,
        seed: int = 0,
        spare: int = 0,
        runtime: Runtime = Runtime(io_threads=2),
        exclusive: bool = False,
    ) -> None:
        self.tiny = tiny
        self.dice = random.Random(seed)
        self.reader = ScriptedReader(self.dice)
        with patch("flashmoe.stream.streamer.DirectReader", lambda threads: self.reader):
            self.streamer = Streamer(tiny.store, ram, runtime)
        sizes = [tiny.store.layout(layer).record_bytes for layer in range(LAYERS)]
        self.device = ScriptedDevice(vram, max(sizes), self.dice)
        self.tier = Vram(
            tiny.store, vram, self.device, self.streamer, spare=spare, exclusive=exclusive
        )

    def close(self) -> None:
        self.streamer.close()

    def fail(self, chance: float) -> None:
        """From now on reads and copies fail with this chance."""
        self.reader.failing = self.device.failing = chance

    def uses(self, layer: int, ids: Array, slots: Array) -> list[tuple[int, bytes]]:
        """What must be in the slots."""
        pairs = zip(ids.ravel().tolist(), slots.ravel().tolist(), strict=True)
        return [(slot, self.record(layer, expert)) for expert, slot in pairs]

    def record(self, layer: int, expert: int) -> bytes:
        return self.tiny.records[layer][expert].tobytes()

    def some(self, tokens: int = 1) -> Array:
        """A routing at random."""
        return np.array([self.dice.sample(range(EXPERTS), TOP_K) for _ in range(tokens)])

    def check_idle(self) -> None:
        """No hold is open: the table tells of whole experts, and nothing is pinned."""
        self.tier._land(all_of_them=True)
        residence = self.tier._residence
        assert not residence.copies.flying and not self.device.copies
        assert not residence.cache.pinned
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
                    found = self.streamer.lending.record(layer, expert)
                    assert found.tobytes() == self.record(layer, expert), "RAM has another expert"


def use_hold(rig: Rig, layer: int, *experts: int) -> bool:
    """Hold a token's routing and compute with it; whether it was ready."""
    ids = np.array([experts])
    with rig.tier.hold(layer, ids) as hold:
        hold.wait()
        rig.device.compute(rig.uses(layer, ids, hold.slots))
        rig.device.finish()
    return hold.ready


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


class RunningAhead:
    """The device of a decode step: it goes through layers on its own as far as its copy of the
    table says, and waits where an expert is missing until the host lets it go on."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.table = np.full((LAYERS, EXPERTS), -1)

    def hear(self, *, still: bool) -> None:
        """Take over what has changed; only while it stands still does anybody leave."""
        for layer, expert, slot in self.rig.tier.changes():
            assert still or slot >= 0, "a slot was taken while the device may read it"
            self.table[layer, expert] = slot

    def token(self, hinting: float = 0.0) -> None:
        """One token through all layers; failures end it, and so does a hold left early."""
        rig, device = self.rig, self.rig.device
        routing = [rig.some() for _ in range(LAYERS)]
        at = 0
        for layer, ids in enumerate(routing):
            if at == layer:
                device.finish()  # it has come so far: its router has spoken
            at = self._run(routing, at)
            if rig.dice.random() < hinting:
                early = rig.some().ravel()
                rig.tier.foresee((layer + 1) % LAYERS, lambda e=early: e)
            if rig.dice.random() < hinting:
                rig.tier.hint(layer, rig.some() if rig.dice.random() < 0.3 else ids)
            try:
                if not self._hold(layer, ids, waits=at == layer, hinting=hinting):
                    break
            except (ReadError, DeviceError):
                assert rig.reader.failing
                break
            at = max(at, layer + 1)
        device.finish()
        rig.tier.tend()
        self.hear(still=True)

    def _run(self, routing: list[Array], at: int) -> int:
        """It goes on from a layer, as far as it knows all and time lets; where it is then."""
        while at < LAYERS and self.rig.dice.random() < 0.8:
            slots = self.table[at, routing[at]]
            if (slots < 0).any():
                break
            self.rig.device.compute(self.rig.uses(at, routing[at], slots))
            at += 1
        return at

    def _hold(self, layer: int, ids: Array, *, waits: bool, hinting: float) -> bool:
        """The host comes to a layer, at which the device waits or which it has passed; False
        where the hold was left before its time."""
        rig = self.rig
        with rig.tier.hold(layer, ids) as held:
            assert waits or held.ready
            if rig.dice.random() < hinting:
                rig.tier.hint((layer + 1) % LAYERS, rig.some())
            if not held.ready and rig.dice.random() < 0.05:
                return False
            held.wait()
            self.hear(still=not held.ready)
            if waits:
                rig.device.compute(rig.uses(layer, ids, held.slots))
        return True


@contextmanager
def rigged(tiny: TinyStore, *arguments: int, **options: Any) -> Iterator[Rig]:
    """A rig, as its constructor says."""
    with closing(Rig(tiny, *arguments, **options)) as rig:
        yield rig
