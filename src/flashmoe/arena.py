"""Memory straight from the system, in large pages where they are to be had.

Owns the one anonymous mapping behind each arena. Does not own what lies in it. Large pages make
the arithmetic miss the TLB less and let a disk write into long stretches of memory instead of
scattered 4 KiB pages, which is worth more still (docs/EXPERIMENTS.md, E19).

Invariant: an arena is never resident beyond its own size. Large pages are asked for only where
they lie wholly inside; a large page becomes resident whole, at the first touch of any part.
"""

from __future__ import annotations

import ctypes
import mmap
from contextlib import suppress
from functools import cache
from typing import Any

import numpy as np

LARGE_PAGE_BYTES = 2 << 20
"""Of x86-64 and of ARM with 4 KiB pages; elsewhere the request is for a multiple or for nothing."""

_POPULATE_WRITE = 23
"""``MADV_POPULATE_WRITE``, of Linux 5.14 and later; mmap does not name it."""


@cache
def _madvise() -> Any:
    return ctypes.CDLL(None).madvise


def arena(nbytes: int, *, large_pages: bool = True) -> memoryview:
    """``nbytes`` zeroed, writable bytes that begin at a multiple of 2 MiB.

    They take memory once they are touched, and are given back with the last view of them. The
    mapping is private: a shared one would count as a file in memory and get no large pages.

    Raises:
        OSError: the system does not grant the address space.
    """
    size = max(nbytes, 1) + LARGE_PAGE_BYTES
    mapping = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = -np.frombuffer(mapping, np.uint8).ctypes.data % LARGE_PAGE_BYTES
    inside = nbytes - nbytes % LARGE_PAGE_BYTES
    if large_pages and inside and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            mapping.madvise(mmap.MADV_HUGEPAGE, start, inside)
    return memoryview(mapping)[start : start + nbytes]


def back(memory: memoryview, start: int, nbytes: int) -> bool:
    """Have the system give a part of an arena, in whole pages, memory before it is written.

    What is in it stays. Other threads go on meanwhile. False where the system cannot.
    """
    mapping = memory.obj
    assert isinstance(mapping, mmap.mmap)
    address = np.frombuffer(memory, np.uint8).ctypes.data + start
    begin = address - address % mmap.PAGESIZE
    length = address + nbytes - begin
    try:
        # Not mmap.madvise, which keeps the interpreter's lock all the while.
        return not _madvise()(ctypes.c_void_p(begin), ctypes.c_size_t(length), _POPULATE_WRITE)
    except (OSError, AttributeError):
        return False


def discard(memory: memoryview, start: int, nbytes: int) -> None:
    """Give a part of an arena, in whole pages, back to the system until it is written again."""
    if hasattr(mmap, "MADV_DONTNEED"):
        mapping = memory.obj
        assert isinstance(mapping, mmap.mmap)
        begin = np.frombuffer(memory, np.uint8).ctypes.data
        offset = begin - np.frombuffer(mapping, np.uint8).ctypes.data
        mapping.madvise(mmap.MADV_DONTNEED, offset + start, nbytes)
