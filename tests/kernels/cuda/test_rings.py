"""How rows stream through shared memory: what fits, in which order of preference."""

import numpy as np
import pytest

from flashmoe.errors import InputError
from flashmoe.kernels.cuda.descriptors import resident
from flashmoe.kernels.cuda.rings import MOST_STAGES, OWN_BYTES, RING_BYTES, Rings, staged
from flashmoe.quant import Affine, Plain
from tests.kernels.cuda.emulated import EmulatedDevice
from tests.kernels.test_cpu import stored

FOUR = Affine(4, 64)


def found(device, form, inputs, *arguments, places=(0, 0, 0), **options):
    how = staged(device, [(form, places)], inputs, *arguments, **options)
    return tuple(int(how.table[name]) for name in ("chunks", "stages", "bytes")), how.warps


def test_rows_are_whole_where_there_is_room():
    (chunks, stages, nbytes), warps = found(EmulatedDevice(), FOUR, 2048, 2, 16, items=9)
    assert (chunks, stages, warps) == (64, 2, 16)
    assert nbytes >= 2 * (1024 + 2 * 64)
    assert warps * stages * nbytes <= RING_BYTES


def test_nothing_is_held_that_nobody_asks_for():
    (_, stages, _), warps = found(EmulatedDevice(), FOUR, 512, 2, 8, items=1)
    assert (stages, warps) == (1, 8)
    (_, stages, _), _ = found(EmulatedDevice(), FOUR, 512, 2, 8, items=99)
    assert stages == MOST_STAGES


def test_longer_rows_have_fewer_warps_and_then_pieces():
    device = EmulatedDevice()
    (chunks, _, _), warps = found(device, FOUR, 4096, 2, 16, items=9)
    assert (chunks, warps) == (128, 8)
    (chunks, stages, _), warps = found(device, FOUR, 32768, 2, 16, items=9)
    assert chunks < 1024 and chunks % 32 == 0
    assert (stages >= 2, warps) == (True, 16)


def test_rows_that_begin_between_are_not_cut():
    """Each piece is a copy of its own, from a multiple of 16."""
    (chunks, _, _), warps = found(EmulatedDevice(), FOUR, 8192 + 64, 2, 8, items=9)
    assert (chunks, warps) == (258, 4)
    (chunks, _, _), warps = found(EmulatedDevice(), FOUR, 16384, 2, 8, items=9, places=(0, 4, 8))
    assert (chunks, warps) == (512, 4)


def test_more_than_usual_is_taken_before_anything_is_refused():
    device = EmulatedDevice()
    (_, stages, nbytes), warps = found(device, FOUR, 71680 + 64, 2, 8)
    assert RING_BYTES < warps * stages * nbytes <= device.shared_bytes - OWN_BYTES
    with pytest.raises(InputError, match="--kernels cpu"):
        found(device, FOUR, 131072 + 64, 2, 8)


def test_matrices_that_share_a_vector():
    device, rng = EmulatedDevice(), np.random.default_rng(1)
    one, other = (resident(device, stored(rng, FOUR, 4, inputs)) for inputs in (64, 128))
    with pytest.raises(InputError, match="do not share a vector"):
        Rings(device, [one, other], 4)
    with pytest.raises(ValueError, match="at once"):
        Rings(device, [one] * 7, 4)
    with pytest.raises(InputError, match="shared memory"):
        wide = resident(device, stored(rng, Plain("F32"), 1, 16384))
        Rings(device, [wide], 8)
