"""A KeyboardInterrupt between any two lines or bytecodes costs what is in VRAM, never a byte."""

from __future__ import annotations

import numpy as np
import pytest

from tests.stream.conftest import EXPERTS, LAYERS, TinyStore
from tests.stream.test_interrupts import Interrupt
from tests.stream.tiers.conftest import Rig, follow, rigged, use_sweep, use_token

SLOTS = 4


def use(rig: Rig) -> None:
    """Every way through the tier: hits, misses, evictions, an early leave."""
    follow(rig, {0: [0, 1], 1: [4, 5], 2: [1, 3]})
    follow(rig, {0: [1, 2], 1: [4, 5], 3: [6, 7]})
    use_sweep(rig, 1, np.array([[0, 1], [4, 5], [6, 7]]))
    rig.tier.begin()
    rig.tier.abandon()
    with rig.tier.sweep(3, np.array([[0, 1], [2, 3]])) as passing:
        next(passing.batches())
    follow(rig, {0: [0, 1], 2: [1, 3]})


def interrupted(tiny: TinyStore, at: int, *, opcodes: bool) -> bool:
    """Interrupt a new tier at one step, then again while it recovers; whether it came."""
    with rigged(tiny, SLOTS, 9, at, exclusive=True) as rig:
        use_token(rig, 0, 2, 3)
        if Interrupt(at, opcodes=opcodes).during(lambda: use(rig)) is None:
            return False
        rig.device.finish()
        assert Interrupt(at * 7 % 61, opcodes=opcodes).during(lambda: use(rig)) is not None
        rig.device.finish()
        for layer in range(LAYERS):
            for expert in range(0, EXPERTS, 2):
                use_token(rig, layer, expert, expert + 1)
        rig.check_idle()
        assert len(rig.tier._residence.cache) + rig.tier._residence.cache.free == SLOTS
        return True


@pytest.mark.parametrize(("opcodes", "step", "least"), [(False, 17, 300), (True, 197, 2000)])
def test_an_interrupt_anywhere(tiny: TinyStore, opcodes: bool, step: int, least: int) -> None:
    at = 0
    while interrupted(tiny, at, opcodes=opcodes):
        at += step
    assert at > least


def use_ahead(rig: Rig) -> None:
    """Copies ahead of a layer that passes, of one that another layer passes instead of, and of
    one that a token comes before."""
    every = np.arange(EXPERTS).repeat(2).reshape(EXPERTS, 2)
    for layer in (0, 1, 3, 1):
        use_sweep(rig, layer, every)
    rig.device.finish()  # what a token brings comes behind that
    follow(rig, {0: [0, 1], 2: [1, 3]})
    use_sweep(rig, 2, every)


@pytest.mark.parametrize(("opcodes", "step", "least"), [(False, 47, 1500), (True, 809, 9000)])
def test_an_interrupt_while_the_next_layer_is_copied(
    tiny: TinyStore, opcodes: bool, step: int, least: int
) -> None:
    at = 0
    while True:
        with rigged(tiny, 3 * EXPERTS, LAYERS * EXPERTS, at) as rig:
            for layer in range(LAYERS):
                with rig.streamer.hold(layer, np.arange(EXPERTS)[None].repeat(2, 0)) as experts:
                    list(experts)
            if Interrupt(at, opcodes=opcodes).during(lambda rig=rig: use_ahead(rig)) is None:
                break
            rig.device.finish()
            Interrupt(at * 7 % 61, opcodes=opcodes).during(lambda rig=rig: use_ahead(rig))
            rig.device.finish()
            use_ahead(rig)
            rig.device.finish()
            rig.check_idle()
        at += step
    assert at > least


def test_what_an_interrupt_has_left_is_never_taken_for_the_whole_model(tiny: TinyStore) -> None:
    """The device is given a copy of the table then, and nobody looks again."""
    at, whole = 0, False
    while True:
        with rigged(tiny, LAYERS * EXPERTS, LAYERS * EXPERTS) as rig:
            for layer in range(LAYERS):
                use_sweep(rig, layer, np.arange(EXPERTS)[None, :-1].repeat(2, 0))
            for layer in range(LAYERS - 1):
                use_token(rig, layer, 0, EXPERTS - 1)

            def fill_and_forget(rig: Rig = rig) -> None:
                use_token(rig, LAYERS - 1, 0, EXPERTS - 1)
                assert rig.tier.whole
                rig.tier.empty()

            came = Interrupt(at, opcodes=False).during(fill_and_forget)
            assert not rig.tier.whole or (rig.tier.tables() >= 0).all()
            whole = whole or rig.tier.whole
            rig.device.finish()
            rig.device.running = None
        if came is None:
            break
        at += 1
    assert whole and at > 100
