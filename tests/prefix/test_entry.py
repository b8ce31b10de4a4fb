"""Pieces as bytes: what was put in comes out, and nothing else ever does."""

import struct

import ml_dtypes
import numpy as np
import pytest
import xxhash

from flashmoe.prefix import entry

HEAD = entry.Head("state", "0123456789abcdef-bf16", 70, ("block-1", "block-2"), "ab" * 8)
ARRAYS = {
    "ids": np.arange(7, dtype=np.int32),
    "2.keys": np.arange(12).reshape(2, 3, 2).astype(ml_dtypes.bfloat16),
    "2.values": np.arange(24).reshape(2, 6, 2).astype(ml_dtypes.bfloat16)[:, ::2],
    "2.key_scales": np.zeros((2, 0), np.float32),
    "last": np.linspace(0, 1, 5)[None],
}


def made():
    plan = entry.layout(HEAD, ARRAYS)
    piece = np.full(plan.nbytes, 255, np.uint8)
    entry.encode(plan, ARRAYS, piece)
    return piece


def sealed(piece):
    """The same with the checksum put right."""
    piece[-8:] = np.frombuffer(struct.pack("<Q", xxhash.xxh3_64_intdigest(piece[:-8])), np.uint8)
    return piece


def test_a_piece_comes_out_as_it_went_in():
    piece = made()
    head, arrays = entry.decoded(piece)
    assert head == HEAD == entry.head_of(piece)
    assert list(arrays) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(arrays[name], array)


def test_every_changed_bit_and_every_length_but_the_whole_is_refused():
    piece = made()
    for place in range(len(piece)):
        damaged = piece.copy()
        damaged[place] ^= 1 << place % 8
        with pytest.raises(ValueError):
            entry.decoded(damaged)
    for length in range(len(piece)):
        with pytest.raises(ValueError):
            entry.decoded(piece[:length])


def test_what_was_sealed_by_another_version_or_hand_is_refused():
    other = made()
    other[8] = 2
    with pytest.raises(ValueError, match="of version 2, this program's is 1"):
        entry.decoded(sealed(other))
    with pytest.raises(ValueError, match="no part of a prefix cache"):
        entry.decoded(sealed(np.zeros(400, np.uint8)))
    long = made()
    long[12:16] = 255
    with pytest.raises(ValueError, match="too long"):
        entry.decoded(sealed(long))
    text = made()[16:].tobytes()
    for old, new in ((b'"arrays"', b'"arrauv"'), (b"[2,3,2]", b"[2,9,9]"), (b'"F64"', b'"F65"'),
                     (b"[1,5]", b"[-1]"), (b'"position":70', b'"position":7x')):  # fmt: skip
        assert old in text
        changed = made()
        changed[16:] = np.frombuffer(text.replace(old, new.ljust(len(old)), 1), np.uint8)
        with pytest.raises(ValueError):
            entry.decoded(sealed(changed))


def test_the_same_content_has_the_same_name():
    assert entry.content(made()) == entry.content(made())
    other = made()
    other[-20] ^= 1
    assert entry.content(other) != entry.content(made())
