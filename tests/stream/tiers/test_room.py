"""The division of VRAM, pure."""

from functools import partial

import pytest

from flashmoe.errors import BudgetError
from flashmoe.stream.tiers.room import (
    CHUNK_SHARE,
    CHUNKS,
    MARGIN_BYTES,
    SCRATCH_BYTES,
    divided,
)

GIB = 1 << 30
of = partial(
    divided,
    trunk_bytes=GIB,
    timelines_bytes=GIB // 4,
    chunk_bytes=lambda tokens: tokens << 18,
    slot_bytes=1 << 21,
    least=8,
    most=4096,
)


@pytest.mark.parametrize("limit", (2 * GIB, 4 * GIB + 12345, 8 * GIB))
def test_a_limit_is_kept_and_filled(limit):
    room = of(limit, 100 * GIB)
    assert limit - room.slot_bytes < room.planned_bytes <= limit
    assert room.scratch_bytes == SCRATCH_BYTES + (room.chunk_tokens << 18)
    assert room.chunk_tokens << 18 <= limit // CHUNK_SHARE
    assert not room.whole


def test_without_a_limit_a_margin_is_left():
    room = of(None, 6 * GIB)
    assert room.planned_bytes <= 6 * GIB - MARGIN_BYTES < room.planned_bytes + room.slot_bytes


def test_no_more_slots_than_experts():
    room = of(None, 100 * GIB)
    assert room.slots == 4096 and room.whole
    assert room.chunk_tokens == max(CHUNKS)


def test_less_than_the_floor_is_refused_and_the_floor_is_not():
    with pytest.raises(BudgetError, match=r"at least 1\.34 GiB .* --kernels cpu"):
        of(GIB, 100 * GIB)
    floor = of(2 * GIB, 100 * GIB, chunk_bytes=lambda tokens: 0)
    least = floor.planned_bytes - (floor.slots - 8) * floor.slot_bytes
    assert of(least, 100 * GIB, chunk_bytes=lambda tokens: 0).slots == 8
    with pytest.raises(BudgetError, match="are given"):
        of(least - 1, 100 * GIB, chunk_bytes=lambda tokens: 0)


def test_more_than_is_free_is_refused():
    with pytest.raises(BudgetError, match=r"--vram is 8\.00 GiB, and the GPU has 6\.00 GiB free"):
        of(8 * GIB, 6 * GIB)
    with pytest.raises(BudgetError, match="are free but for a margin"):
        of(None, GIB)


def test_a_long_chunk_does_not_crowd_out_the_floor():
    room = of(2 * GIB, 100 * GIB, chunk_bytes=lambda tokens: tokens << 23)
    assert room.chunk_tokens == min(CHUNKS)
