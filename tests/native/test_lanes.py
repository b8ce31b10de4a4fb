"""native/lanes.cpp: a lane a drive, copies that share the work, and copies that fail."""

import errno
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flashmoe import _native
from tests.native.test_reader import MISMATCH, OK, OS_ERROR, PAGE, noise, pages

OK_AFTER_FAILURE = 4
COUNT = 64
DATA = noise(COUNT * PAGE, 9)
SUMS = [_native.xxh3_64(DATA[i * PAGE : (i + 1) * PAGE]) for i in range(COUNT)]


@pytest.fixture
def reader() -> Iterator[_native.Reader]:
    reader = _native.Reader(1)
    yield reader
    reader.close()


def files(reader: _native.Reader, folder: Path, count: int = 2) -> list[int]:
    """Copies of the data, each in a lane of its own."""
    opened = []
    for number in range(count):
        (folder / str(number)).write_bytes(DATA)
        lane = reader.add_lane(1) if number else 0
        opened.append(reader.open(str(folder / str(number)), False, lane))
    return opened


def mirrored(opened: list[int]) -> list[list[tuple[int, int]]]:
    return [[(file, record * PAGE) for file in opened] for record in range(COUNT)]


def read(reader: _native.Reader, file: int, record: int) -> tuple[tuple[int, int], bytes]:
    into = pages(PAGE)
    status = reader.wait(reader.submit(file, record * PAGE, into, SUMS[record], True))
    return status, into.tobytes()


def test_stripes_are_read_each_from_its_own_lane(tmp_path: Path, reader: _native.Reader) -> None:
    (tmp_path / "even").write_bytes(b"".join(DATA[i * PAGE :][:PAGE] for i in range(0, COUNT, 2)))
    (tmp_path / "odd").write_bytes(b"".join(DATA[i * PAGE :][:PAGE] for i in range(1, COUNT, 2)))
    even = reader.open(str(tmp_path / "even"), True, 0)
    odd = reader.open(str(tmp_path / "odd"), True, reader.add_lane(2))
    places = [[((even, odd)[i % 2], i // 2 * PAGE)] for i in range(COUNT)]
    file = reader.combine(3 * PAGE, PAGE, places)
    into = [pages(PAGE) for _ in range(COUNT)]
    tickets = [
        reader.submit(file, (3 + i) * PAGE, into[i], SUMS[i], i % 3 == 0) for i in range(COUNT)
    ]
    for ticket in tickets:
        assert reader.wait(ticket) == (OK, 0)
    assert b"".join(part.tobytes() for part in into) == DATA
    assert reader.lanes == [(COUNT // 2, 0, COUNT // 2 * PAGE)] * 2
    assert reader.bytes_read == COUNT * PAGE


def test_a_read_may_lie_anywhere_within_a_record(tmp_path: Path, reader: _native.Reader) -> None:
    (opened,) = files(reader, tmp_path, 1)
    file = reader.combine(0, 4 * PAGE, [[(opened, 8 * PAGE)], [(opened, 0)]])
    into = pages(2 * PAGE)
    wanted = DATA[10 * PAGE : 12 * PAGE]
    ticket = reader.submit(file, 2 * PAGE, into, _native.xxh3_64(wanted), True)
    assert reader.wait(ticket) == (OK, 0) and into.tobytes() == wanted
    for offset, size in ((3 * PAGE, 2 * PAGE), (8 * PAGE, PAGE)):
        with pytest.raises(ValueError, match="within one record"):
            reader.submit(file, offset, pages(size), 0, True)


SLOW_PREAD = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

ssize_t pread(int fd, void *into, size_t size, off_t offset) {
    static ssize_t (*real)(int, void *, size_t, off_t);
    if (!real) real = (ssize_t (*)(int, void *, size_t, off_t))dlsym(RTLD_NEXT, "pread");
    char link[64], path[4096] = {0};
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    if (readlink(link, path, sizeof path - 1) > 0 && strstr(path, "slow")) usleep(4000);
    return real(fd, into, size, offset);
}
ssize_t pread64(int fd, void *into, size_t size, off_t offset) {
    return pread(fd, into, size, offset);
}
"""

BURSTS = """
import json, mmap, sys
import numpy as np
from flashmoe import _native

paths = sys.argv[1:]
data = open(paths[0], "rb").read()
count = len(data) // 4096
sums = [_native.xxh3_64(data[i * 4096 : (i + 1) * 4096]) for i in range(count)]
into = [np.frombuffer(mmap.mmap(-1, 4096), np.uint8) for _ in range(8)]
reader = _native.Reader(2)
files = [reader.open(path, False, reader.add_lane(2) if i else 0) for i, path in enumerate(paths)]
whole = reader.combine(0, 4096, [[(file, i * 4096) for file in files] for i in range(count)])
for start in range(0, count * 5, 8):
    records = [(start + i) % count for i in range(8)]
    tickets = [
        reader.submit(whole, r * 4096, room, sums[r], i % 2 == 0)
        for i, (r, room) in enumerate(zip(records, into))
    ]
    assert all(reader.wait(ticket) == (0, 0) for ticket in tickets)
print(json.dumps(reader.lanes))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD is how ELF systems do it")
def test_drives_of_one_speed_share_the_work_and_a_slow_one_gets_little(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler, "the compiler that built the native module is needed here too"
    (tmp_path / "shim.c").write_text(SLOW_PREAD)
    shim = str(tmp_path / "shim.so")
    flags = ["-shared", "-fPIC", "-o", shim, "-ldl"]
    subprocess.run([compiler, str(tmp_path / "shim.c"), *flags], check=True)
    for name in ("slow0", "slow1", "quick"):
        (tmp_path / name).write_bytes(DATA)

    def shares(*names: str) -> list[float]:
        command = [sys.executable, "-c", BURSTS, *(str(tmp_path / name) for name in names)]
        environment = {**os.environ, "LD_PRELOAD": shim}
        done = subprocess.run(command, check=True, capture_output=True, timeout=60, env=environment)
        reads = [lane[0] for lane in json.loads(done.stdout)]
        assert sum(reads) == 5 * COUNT
        return [read / sum(reads) for read in reads]

    assert min(shares("slow0", "slow1")) > 0.3
    assert shares("slow0", "quick")[0] < 0.1
    assert shares("quick", "slow0")[1] < 0.1


def test_a_copy_that_fails_gives_way_and_is_not_asked_again(
    tmp_path: Path, reader: _native.Reader
) -> None:
    opened = files(reader, tmp_path, 3)
    for name in ("0", "1"):
        with (tmp_path / name).open("r+b") as content:
            content.seek(5 * PAGE + 7)
            content.write(bytes([DATA[5 * PAGE + 7] ^ 1]))
    file = reader.combine(0, PAGE, mirrored(opened))
    failures = []
    for _ in range(60):
        status, data = read(reader, file, 5)
        assert data == DATA[5 * PAGE : 6 * PAGE]
        assert status[0] == OK or (status[0] == OK_AFTER_FAILURE and status[1] in (1, 2))
        failures += reader.failures()
    assert len(failures) == sum(lane[1] for lane in reader.lanes) <= 2
    for _, index, offset, code, found in failures:
        assert index in opened[:2] and offset == 5 * PAGE and code == MISMATCH
        assert found != SUMS[5]
    for record in range(COUNT):  # the others are as good as ever
        assert read(reader, file, record) == ((OK, 0), DATA[record * PAGE :][:PAGE])
    assert reader.failures() == []


def test_when_every_copy_fails_so_does_the_read_and_all_are_tried_anew(
    tmp_path: Path, reader: _native.Reader
) -> None:
    opened = files(reader, tmp_path)
    file = reader.combine(0, PAGE, mirrored(opened))
    for number in range(2):
        (tmp_path / str(number)).write_bytes(bytes(COUNT * PAGE))
    for _ in range(3):
        assert read(reader, file, 8)[0] == (MISMATCH, _native.xxh3_64(bytes(PAGE)))
        assert sorted(failure[1] for failure in reader.failures()) == opened
    (tmp_path / "1").write_bytes(DATA)  # mended
    status, data = read(reader, file, 8)
    assert status[0] in (OK, OK_AFTER_FAILURE) and data == DATA[8 * PAGE : 9 * PAGE]


def test_a_file_that_fails_at_one_place_is_read_at_others(
    tmp_path: Path, reader: _native.Reader
) -> None:
    (file,) = files(reader, tmp_path, 1)
    into = pages(PAGE)
    ticket = reader.submit(file, 0, into, 1, True)
    assert reader.wait(ticket) == (MISMATCH, SUMS[0])
    assert reader.failures() == [(ticket, file, 0, MISMATCH, SUMS[0])]
    assert read(reader, file, 1)[0] == (OK, 0)


def test_promoting_and_cancelling_reach_every_lane(tmp_path: Path, reader: _native.Reader) -> None:
    opened = files(reader, tmp_path)
    file = reader.combine(0, PAGE, mirrored(opened))
    dice = random.Random(4)
    for _ in range(40):
        into = [pages(PAGE) for _ in range(COUNT)]
        tickets = {
            reader.submit(file, i * PAGE, into[i], SUMS[i], dice.random() < 0.5): i
            for i in range(COUNT)
        }
        for ticket in dice.sample(sorted(tickets), 20):
            reader.promote(ticket)
        for ticket in dice.sample(sorted(tickets), 20):
            if reader.cancel(ticket):
                del tickets[ticket]
        while tickets:
            ticket = reader.wait_any(list(tickets))
            record = tickets.pop(ticket)
            assert reader.wait(ticket) == (OK, 0)
            assert into[record].tobytes() == DATA[record * PAGE :][:PAGE]
    before = reader.bytes_read
    reader.drain()
    assert reader.bytes_read == before and all(lane[0] for lane in reader.lanes)


def test_drain_ends_while_copies_fail(tmp_path: Path, reader: _native.Reader) -> None:
    opened = files(reader, tmp_path, 3)
    file = reader.combine(0, PAGE, mirrored(opened))
    for _ in range(50):
        tickets = [reader.submit(file, i * PAGE, pages(PAGE), 1, False) for i in range(8)]
        reader.drain()
        for ticket in tickets:
            with pytest.raises(IndexError):
                reader.wait(ticket)
    assert read(reader, file, 9)[0][0] in (OK, OK_AFTER_FAILURE)


def test_close_ends_while_copies_fail(tmp_path: Path) -> None:
    for _ in range(20):
        reader = _native.Reader(1)
        file = reader.combine(0, PAGE, mirrored(files(reader, tmp_path)))
        tickets = [reader.submit(file, i * PAGE, pages(PAGE), 1, True) for i in range(COUNT)]
        reader.close()
        outcomes = {reader.wait(ticket)[0] for ticket in tickets}
        assert outcomes <= {OS_ERROR, MISMATCH}
        with pytest.raises(RuntimeError):
            reader.add_lane(1)


def test_an_unreadable_copy_tells_its_errno(tmp_path: Path, reader: _native.Reader) -> None:
    opened = files(reader, tmp_path, 1)
    folder = reader.open(str(tmp_path), False, reader.add_lane(1))
    file = reader.combine(0, PAGE, [[(opened[0], i * PAGE), (folder, 0)] for i in range(COUNT)])
    statuses = [read(reader, file, i) for i in range(COUNT)]
    assert [data for _, data in statuses] == [DATA[i * PAGE :][:PAGE] for i in range(COUNT)]
    failures = reader.failures()
    assert len(failures) < COUNT // 2  # refusing at once does not make it the quicker one
    assert all(failure[1:] == (folder, 0, OS_ERROR, errno.EISDIR) for failure in failures)
    assert sum(status[0] == OK_AFTER_FAILURE for status, _ in statuses) == len(failures)


def test_misuse_is_an_exception(tmp_path: Path, reader: _native.Reader) -> None:
    (file,) = files(reader, tmp_path, 1)
    for lane in (-1, 1):
        with pytest.raises(IndexError, match="no lane"):
            reader.open(str(tmp_path / "0"), True, lane)
    with pytest.raises(IndexError):
        reader.combine(0, PAGE, [[(file + 1, 0)]])
    for begin, stride, at in ((0, 0, 0), (0, 100, 0), (1, PAGE, 0), (0, PAGE, 5)):
        with pytest.raises(ValueError):
            reader.combine(begin, stride, [[(file, at)]])
    with pytest.raises(ValueError, match="from 1 to 64 places"):
        reader.combine(0, PAGE, [[]])
    combined = reader.combine(0, PAGE, [[(file, 0)]])
    with pytest.raises(ValueError, match="open files"):
        reader.combine(0, PAGE, [[(combined, 0)]])
    with pytest.raises(ValueError):
        reader.add_lane(0)
    for _ in range(63):
        reader.add_lane(1)
    with pytest.raises(ValueError, match="64 lanes"):
        reader.add_lane(1)
