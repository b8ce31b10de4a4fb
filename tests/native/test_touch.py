"""The plain read really loads every line, with any number of threads."""

import numpy as np

from flashmoe import _native


def test_every_line_is_loaded() -> None:
    data = np.zeros(1 << 12, np.uint64)
    assert _native.touch(data, 2) == 0
    for place in (0, 7, 8, 100, len(data) - 1):
        data[:] = 0
        data[place] = 1 << 40
        assert all(_native.touch(data, threads) == 1 << 40 for threads in (1, 2, 5))


def test_bytes_beyond_the_last_whole_line_are_left_alone() -> None:
    assert _native.touch(b"\1" * 63, 1) == 0
    assert _native.touch(b"\1" * 65, 1) == 0x0101010101010101
