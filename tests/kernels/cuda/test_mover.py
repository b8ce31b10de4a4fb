"""Copies beside the launches, and who waits for whom."""

import numpy as np

SLOTS, SLOT_BYTES, NBYTES = 6, 8 << 20, (8 << 20) - 4096


def moving(device):
    """An arena of zeros, its mover, and records in pinned memory."""
    arena = device.arena(SLOTS * SLOT_BYTES)
    device.write(arena, np.zeros(SLOTS * SLOT_BYTES, np.uint8))
    device.synchronize()
    memory = device.pinned((SLOTS * SLOT_BYTES,), np.uint8)
    memory[...] = np.arange(memory.size, dtype=np.uint32) // 4096 % 251 + 1
    return arena, device.mover(arena, SLOT_BYTES), memory


def slot(array, number):
    return array[number * SLOT_BYTES : number * SLOT_BYTES + NBYTES]


def one(mover, to, record):
    return mover.copy([to], record, [0], record.nbytes)


def test_what_comes_behind_a_gate_finds_the_records_there(device):
    arena, mover, memory = moving(device)
    ticket = mover.copy([5, 0, 3], memory, [0, 2 * SLOT_BYTES, SLOT_BYTES], NBYTES)
    mover.gate(ticket)
    for to, source in ((3, 1), (0, 2), (5, 0)):  # on the launches' stream, and not waited for
        np.testing.assert_array_equal(device.download(slot(arena, to)), slot(memory, source))
    mover.wait(ticket)
    for other in (1, 2, 4):
        assert not device.download(slot(arena, other)).any()


def test_one_record_goes_and_comes_back(device):
    arena, mover, memory = moving(device)
    mover.wait(one(mover, 4, slot(memory, 2)))
    back = device.pinned((NBYTES,), np.uint8)
    mover.wait(mover.fetch(4, back))
    np.testing.assert_array_equal(back, slot(memory, 2))
    np.testing.assert_array_equal(device.download(slot(arena, 4)), back)


def test_copies_behind_a_fence_leave_what_launches_read(device):
    arena, mover, memory = moving(device)
    mover.wait(one(mover, 1, slot(memory, 0)))
    kept = device.pinned((NBYTES,), np.uint8)
    device.fetch(kept, slot(arena, 1))
    mover.fence()
    mover.wait(one(mover, 1, slot(memory, 3)))
    np.testing.assert_array_equal(kept, slot(memory, 0))
    mover.drain()
