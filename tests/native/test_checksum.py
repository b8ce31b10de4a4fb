"""native/checksum.cpp against PyPI's xxhash: the same number for every length."""

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from flashmoe import _native

NOISE = np.random.default_rng(1).integers(0, 256, 40_000, np.uint8).tobytes()


@pytest.mark.parametrize("portable", [False, True])
def test_every_length_up_to_two_blocks(portable: bool) -> None:
    # 0, 3, 8, 16, 128, 240 and every multiple of 64 and of 1,024 are where the algorithm changes.
    for size in range(2200):
        data = NOISE[:size]
        assert _native.xxh3_64(data, portable) == xxhash.xxh3_64_intdigest(data), size


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("size", [4095, 4096, 4097, 16384, 32768 + 63, 39_999])
def test_larger_sizes(size: int, portable: bool) -> None:
    assert _native.xxh3_64(NOISE[:size], portable) == xxhash.xxh3_64_intdigest(NOISE[:size])


@given(st.binary(max_size=1500), st.integers(0, 7))
def test_any_bytes_at_any_alignment(data: bytes, shift: int) -> None:
    view = memoryview(bytes(shift) + data)[shift:]
    assert _native.xxh3_64(view) == xxhash.xxh3_64_intdigest(data)


def test_one_flipped_bit_changes_it() -> None:
    data = bytearray(NOISE[:4096])
    before = _native.xxh3_64(data)
    data[1000] ^= 16
    assert _native.xxh3_64(data) != before


def test_takes_arrays_and_refuses_what_is_no_contiguous_buffer() -> None:
    array = np.frombuffer(NOISE[:512], np.uint8)
    assert _native.xxh3_64(array) == xxhash.xxh3_64_intdigest(NOISE[:512])
    with pytest.raises((BufferError, ValueError)):
        _native.xxh3_64(array[::2])
    with pytest.raises(TypeError):
        _native.xxh3_64("text")  # type: ignore[arg-type]
