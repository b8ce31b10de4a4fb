"""A KeyboardInterrupt between any two lines or bytecodes costs what is in VRAM, never a byte."""

from __future__ import annotations

import numpy as np
import pytest

from tests.stream.conftest import EXPERTS, LAYERS, TinyStore
from tests.stream.test_interrupts import Interrupt
from tests.stream.tiers.conftest import Rig, rigged, use_hold, use_sweep

SLOTS = 4


def use(rig: Rig) -> None:
    """Every way through the tier: hits, misses, evictions, an early leave."""
    use_hold(rig, 0, 0, 1)
    use_hold(rig, 0, 1, 2)
    use_hold(rig, 1, 4, 5)
    with rig.tier.hold(2, rig.some()):
        rig.tier.changes()
    rig.tier.hint(1, np.array([4, 5]))
    rig.tier.foresee(3, lambda: np.array([0, 4, 5]))
    use_hold(rig, 2, 1, 3)
    rig.tier.hint(0, np.array([1, 2]))
    with rig.tier.hold(0, np.array([2, 6])) as held:
        rig.tier.hint(3, np.array([4, 5]))
        held.wait()
        rig.tier.hint(1, np.array([1, 2]))
    rig.tier.tend()
    use_sweep(rig, 1, np.array([[0, 1], [4, 5], [6, 7]]))
    with rig.tier.sweep(3, np.array([[0, 1], [2, 3]])) as passing:
        next(passing.batches())
    use_hold(rig, 0, 0, 1)
    rig.tier.changes()


def interrupted(tiny: TinyStore, at: int, *, opcodes: bool) -> bool:
    """Interrupt a new tier at one step, then again while it recovers; whether it came."""
    with rigged(tiny, SLOTS, 9, at, spare=1, exclusive=True) as rig:
        use_hold(rig, 0, 2, 3)
        if Interrupt(at, opcodes=opcodes).during(lambda: use(rig)) is None:
            return False
        rig.device.finish()
        assert Interrupt(at * 7 % 61, opcodes=opcodes).during(lambda: use(rig)) is not None
        rig.device.finish()
        for layer in range(LAYERS):
            for expert in range(0, EXPERTS, 2):
                use_hold(rig, layer, expert, expert + 1)
        rig.check_idle()
        assert len(rig.tier._residence.cache) + rig.tier._residence.cache.free == SLOTS
        return True


@pytest.mark.parametrize(("opcodes", "step", "least"), [(False, 17, 300), (True, 197, 2000)])
def test_an_interrupt_anywhere(tiny: TinyStore, opcodes: bool, step: int, least: int) -> None:
    at = 0
    while interrupted(tiny, at, opcodes=opcodes):
        at += step
    assert at > least
