"""A KeyboardInterrupt between any two bytecodes of stream/ costs the cache, never the answer.

The interrupts are not left to chance: a trace function raises before the n-th line, or the n-th
bytecode, that a scenario executes inside ``stream/``, for one n after the other.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from types import FrameType
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

import flashmoe.stream
from flashmoe.engine import Engine
from flashmoe.errors import ReadError
from flashmoe.options import Budget, Runtime
from flashmoe.stream.slots import Slots, State
from flashmoe.stream.streamer import Streamer
from tests.stream.conftest import EXPERTS, LAYERS, TinyStore, record_of
from tests.synthetic import HYBRID, write_store

INSIDE = os.path.dirname(flashmoe.stream.__file__) + os.sep
RUNTIME = Runtime(io_threads=2, io="buffered")
SLOTS = 3


class Interrupt:
    """Raises KeyboardInterrupt before the ``at``-th step inside stream/; ``fired`` tells."""

    def __init__(self, at: int, *, opcodes: bool) -> None:
        self.left = at
        self.event = "opcode" if opcodes else "line"
        self.fired = False

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(INSIDE):
            return None
        if self.event == "opcode":
            frame.f_trace_opcodes = True
        if event == self.event and not self.fired:
            self.left -= 1
            if self.left < 0:
                self.fired = True
                raise KeyboardInterrupt
        return self

    def during(self, act: Callable[[], None]) -> KeyboardInterrupt | None:
        """Run ``act``; the interrupt, if it came."""
        before = sys.gettrace()
        sys.settrace(self)
        try:
            act()
        except KeyboardInterrupt as interrupt:
            return interrupt
        finally:
            sys.settrace(before)
        return None


def use(tiny: TinyStore, streamer: Streamer) -> None:
    """Every way through the streamer: misses, hits, evictions, windows, hints, an early leave."""
    streamer.hint(0, np.array([0, 1]))
    check(tiny, streamer, 0, [0, 1])
    streamer.hint(1, np.array([4, 5]))  # read, but not asked for next
    streamer.foresee(2, lambda: np.array([3, 6, 1, 7]))
    check(tiny, streamer, 0, [1, 2])
    check(tiny, streamer, 2, [0, 3, 5, 6])
    with streamer.hold(3, np.arange(4)) as experts:
        next(experts)
        streamer.hint(1, np.array([4, 7]))


def check(tiny: TinyStore, streamer: Streamer, layer: int, ids: list[int]) -> None:
    """Hold a routing, and compare every byte: together where there are slots for all."""
    nbytes = tiny.store.layout(layer).nbytes
    with streamer.hold(layer, np.array(ids)) as experts:
        found = {expert: (record_of(weights), weights) for expert, weights in experts}
        assert sorted(found) == ids
        for expert, (bytes_then, weights) in found.items():
            assert bytes_then == tiny.records[layer][expert, :nbytes].tobytes()
            assert len(ids) > SLOTS or record_of(weights) == bytes_then


def check_everything(tiny: TinyStore, streamer: Streamer) -> None:
    """Right bytes for every expert, and no slot lost: ``SLOTS`` experts fit in together."""
    for layer in range(LAYERS):
        check(tiny, streamer, layer, list(range(EXPERTS)))
    check(tiny, streamer, 1, list(range(SLOTS)))
    states = [streamer._slots.state(slot) for slot in range(SLOTS)]
    assert states == [State.READY] * SLOTS
    assert not streamer._cache.pinned
    assert not streamer._reads.tickets and not streamer._reader._requests


def interrupted(tiny: TinyStore, at: int, *, opcodes: bool) -> bool:
    """Interrupt a new streamer at one step, then again while it recovers; whether it came."""
    with closing(Streamer(tiny.store, SLOTS, RUNTIME)) as streamer:
        check(tiny, streamer, 0, list(range(SLOTS)))
        first = Interrupt(at, opcodes=opcodes).during(lambda: use(tiny, streamer))
        if first is None:
            return False
        again = Interrupt(at * 7 % 61, opcodes=opcodes).during(lambda: use(tiny, streamer))
        assert again is not None
        check_everything(tiny, streamer)
        # What the tracebacks kept alive, holds among it, goes only now.
        del first, again
        if at % 64 == 0:
            gc.collect()
        check(tiny, streamer, 0, list(range(SLOTS)))
        return True


def test_an_interrupt_before_any_line(tiny: TinyStore) -> None:
    at = 0
    while interrupted(tiny, at, opcodes=False):
        at += 1
    assert at > 300


def test_an_interrupt_before_any_bytecode(tiny: TinyStore) -> None:
    """A sample, a prime apart; each run has its own timing of the disk besides."""
    at = 0
    while interrupted(tiny, at, opcodes=True):
        at += 47
    assert at > 2000


def test_one_streamer_survives_a_thousand_interrupts(tiny: TinyStore) -> None:
    dice = np.random.default_rng(8)
    came = 0
    with closing(Streamer(tiny.store, SLOTS, RUNTIME)) as streamer:
        for _ in range(1000):
            at = int(dice.integers(0, 700))
            came += Interrupt(at, opcodes=False).during(lambda: use(tiny, streamer)) is not None
        check_everything(tiny, streamer)
    assert came > 800


def test_a_slot_that_changed_hands_halfway_is_not_believed(tiny: TinyStore) -> None:
    """The cache has given the slot to another expert, whose bytes are not in it yet."""
    with closing(Streamer(tiny.store, SLOTS, RUNTIME)) as streamer:
        check(tiny, streamer, 0, [0, 1, 2])

        def interrupt(slots: Slots, places: list[int]) -> None:
            raise KeyboardInterrupt

        with patch.object(Slots, "load", interrupt), pytest.raises(KeyboardInterrupt):
            check(tiny, streamer, 0, [3])
        check(tiny, streamer, 0, [3])
        check_everything(tiny, streamer)


def test_a_read_whose_ticket_was_lost_is_waited_for(tiny: TinyStore) -> None:
    with closing(Streamer(tiny.store, SLOTS, RUNTIME)) as streamer:
        native = streamer._reader._reader
        submit, lost = native.submit_records, list[int]()

        class Lost:
            def __getattr__(self, name: str) -> Any:
                return getattr(native, name)

            def submit_records(self, *arguments: Any) -> int:
                lost.append(submit(*arguments))
                raise KeyboardInterrupt

        streamer._reader._reader = Lost()  # type: ignore[assignment]
        for _ in range(5):
            with pytest.raises(KeyboardInterrupt):
                check(tiny, streamer, 0, [3])
        streamer._reader._reader = native
        check_everything(tiny, streamer)
        for ticket in lost:
            with pytest.raises(IndexError, match="forgotten"):
                native.done(ticket)


def test_a_failed_read_costs_nothing_but_itself(own: TinyStore) -> None:
    own.damage(0, 1)
    with closing(Streamer(own.store, EXPERTS, RUNTIME)) as streamer:
        check(own, streamer, 0, [0, 2, 3])
        with pytest.raises(ReadError):
            check(own, streamer, 0, [0, 1, 2])
        before = streamer.counters.snapshot()
        check(own, streamer, 0, [0, 2, 3])
        assert streamer.counters.since(before).hits == 3


def test_interrupted_passes_do_not_change_the_logits(tmp_path: Any) -> None:
    path, ids = write_store(tmp_path / "store", HYBRID), list(range(20))
    runtime = Runtime(threads=1, chunk_tokens=8)
    with Engine.open(path, budget=Budget(slots=6), runtime=runtime) as engine:
        wanted = engine.session().logits(ids)
        for at in range(3, 2000, 41):
            session = engine.session()
            with suppress(KeyboardInterrupt):
                interrupt = Interrupt(at, opcodes=False).during(lambda s=session: s.logits(ids))
                assert interrupt is not None
            np.testing.assert_array_equal(engine.session().logits(ids), wanted)
