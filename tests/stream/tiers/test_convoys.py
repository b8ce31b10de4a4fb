"""Copies that the device waits for: what the table says of them, and what is lent meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import patch

import numpy as np
import pytest

from flashmoe.errors import DeviceError
from flashmoe.stream.tiers.convoys import Convoys
from tests.stream.conftest import EXPERTS, TinyStore
from tests.stream.tiers.conftest import ALL, Rig, rigged

LAYER = 1


@pytest.fixture
def rig(tiny: TinyStore) -> Iterator[Rig]:
    """With all experts of a layer in RAM, and a device that does nothing unless it is waited
    for."""
    with rigged(tiny, 6, ALL) as made:
        for expert in range(0, EXPERTS, 2):
            with made.streamer.hold(LAYER, np.array([[expert, expert + 1]] * 2)) as found:
                list(found)
        with patch.object(made.device, "_progress"):
            yield made


def convoys(rig: Rig, *, lends: bool = True) -> Convoys:
    parts = rig.device, rig.tier._table, rig.streamer.lending, rig.streamer.counters
    return Convoys(LAYER, *parts, lends=lends)


def slots(rig: Rig) -> list[int]:
    return rig.tier.table(LAYER).tolist()[:4]


def test_who_is_passed_is_in_the_table_and_the_device_waits(rig: Rig) -> None:
    some = convoys(rig)
    some.start({0: 4, 1: 2})
    some.start({2: 3})
    assert slots(rig) == [-1] * 4
    some.passing(1)
    assert slots(rig) == [4, 2, -1, -1]
    rig.device.compute([(4, rig.record(LAYER, 0)), (2, rig.record(LAYER, 1))])
    some.land(passed=True)
    rig.device._use()
    rig.device._use()
    assert not rig.device._work and len(rig.device.copies) == 1
    some.land()
    assert slots(rig) == [4, 2, -1, -1] and some
    some.land(all_of_them=True)
    assert slots(rig) == [4, 2, 3, -1] and not some
    assert rig.streamer.counters.copied_bytes == sum(len(rig.record(LAYER, e)) for e in range(3))


def test_records_are_lent_until_the_convoy_has_landed(rig: Rig) -> None:
    before = rig.streamer.lending.room
    some = convoys(rig)
    some.start({0: 0, 5: 1})
    assert some.lasting and rig.streamer.lending.room == before - 2
    some.land(all_of_them=True)
    assert some.lasting and rig.streamer.lending.room == before


def test_what_is_not_lent_does_not_last(rig: Rig) -> None:
    some = convoys(rig, lends=False)
    some.start({0: 0})
    assert not some.lasting
    some.passing(0)
    some.land(passed=True)
    assert some.lasting and not some


@pytest.mark.parametrize("passed", [True, False])
def test_a_failed_one_is_lost_and_the_others_land(rig: Rig, passed: bool) -> None:
    some = convoys(rig)
    before = rig.streamer.lending.room
    some.start({0: 0, 1: 1})
    rig.device.copies[min(rig.device.copies)].doomed = True
    some.start({2: 2})
    if passed:
        some.passing(2)
    with pytest.raises(DeviceError, match="lost a copy"):
        some.land(all_of_them=True)
    assert slots(rig) == [-1, -1, 2, -1] and some.lost == [0, 1] and not some
    assert rig.streamer.lending.room == before
