"""Arenas: aligned, zeroed, lazily resident, in large pages, and never beyond their size."""

from __future__ import annotations

import mmap
import re
from pathlib import Path

import numpy as np
import pytest

from flashmoe.arena import LARGE_PAGE_BYTES, arena
from flashmoe.stream.memory import resident_bytes

SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def has_large_pages() -> bool:
    """Whether this machine grants large pages of 2 MiB to those who ask."""
    size = SWITCH.parent / "hpage_pmd_size"
    if not (SWITCH.exists() and size.exists()):
        return False
    return "[never]" not in SWITCH.read_text() and int(size.read_text()) == LARGE_PAGE_BYTES


def large_bytes(address: int) -> int:
    """Bytes in large pages of the mapping at an address."""
    found = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) ")
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if span := found.match(line):
            inside = int(span[1], 16) <= address < int(span[2], 16)
        elif inside and line.startswith("AnonHugePages:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no mapping at {address:#x}")


@pytest.mark.parametrize("nbytes", [1, 4096, LARGE_PAGE_BYTES - 1, 3 * LARGE_PAGE_BYTES + 4096])
def test_an_arena_is_aligned_zeroed_writable_and_of_its_size(nbytes: int) -> None:
    memory = np.frombuffer(arena(nbytes), np.uint8)
    assert memory.nbytes == nbytes and memory.flags.writeable
    assert memory.ctypes.data % LARGE_PAGE_BYTES == 0
    assert not memory.any()


def test_an_arena_is_resident_once_touched_and_never_beyond_its_size() -> None:
    size = 16 * LARGE_PAGE_BYTES + 5 * 4096  # the end is no whole large page
    before = resident_bytes()
    memory = np.frombuffer(arena(size), np.uint8)
    assert resident_bytes() - before < LARGE_PAGE_BYTES
    memory[-4096:] = 1
    assert resident_bytes() - before < LARGE_PAGE_BYTES
    memory[:] = 1
    grown = resident_bytes() - before
    assert size - LARGE_PAGE_BYTES < grown < size + LARGE_PAGE_BYTES // 2
    del memory
    assert resident_bytes() - before < LARGE_PAGE_BYTES


@pytest.mark.skipif(not has_large_pages(), reason="this system has no transparent huge pages")
def test_large_pages_are_had_where_the_system_has_them() -> None:
    memory = np.frombuffer(arena(8 * LARGE_PAGE_BYTES + 4096), np.uint8)
    memory[:] = 1
    assert large_bytes(memory.ctypes.data) >= 4 * LARGE_PAGE_BYTES  # all, if memory is not in bits
    plain = np.frombuffer(arena(8 * LARGE_PAGE_BYTES, large_pages=False), np.uint8)
    plain[:] = 1
    if "[madvise]" in SWITCH.read_text():
        assert large_bytes(plain.ctypes.data) == 0


def test_a_kernel_without_large_pages_gives_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(mmap.mmap):
        def madvise(self, option: int, start: int = 0, length: int = 0) -> None:
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(mmap, "mmap", Refusing)
    memory = np.frombuffer(arena(2 * LARGE_PAGE_BYTES), np.uint8)
    memory[:] = 3
    assert memory.ctypes.data % LARGE_PAGE_BYTES == 0


def test_address_space_that_is_not_there_is_the_system_s_error() -> None:
    with pytest.raises(OSError, match="memory"):
        arena(1 << 60)
