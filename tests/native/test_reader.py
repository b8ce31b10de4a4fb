"""native/io.cpp on real files: on this disk, past the page cache, and on a RAM file system."""

import errno
import gc
import mmap
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import pytest

from flashmoe import _native

PAGE = 4096
OK, OS_ERROR, SHORT, MISMATCH = range(4)
Bytes = npt.NDArray[np.uint8]


def pages(size: int) -> Bytes:
    """Writable memory at an address that is a multiple of 4,096."""
    return np.frombuffer(mmap.mmap(-1, size), np.uint8)


def noise(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8).tobytes()


@pytest.fixture(params=["disk", "shm"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    if request.param == "disk":
        yield tmp_path
        return
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("no RAM file system at /dev/shm")
    with TemporaryDirectory(dir="/dev/shm") as path:
        yield Path(path)


@pytest.fixture
def reader() -> Iterator[_native.Reader]:
    reader = _native.Reader(2)
    yield reader
    reader.close()


def read(
    reader: _native.Reader, file: int, offset: int, into: Bytes, checksum: int
) -> tuple[int, int]:
    return reader.wait(reader.submit(file, offset, into, checksum, True))


@pytest.mark.parametrize("direct", [True, False])
def test_reads_what_was_written(folder: Path, reader: _native.Reader, direct: bool) -> None:
    data = noise(9 * PAGE)
    (folder / "file").write_bytes(data)
    file = reader.open(str(folder / "file"), direct)
    assert direct or not reader.is_direct(file)
    for offset, size in [(0, PAGE), (PAGE, 3 * PAGE), (8 * PAGE, PAGE), (0, 9 * PAGE)]:
        into = pages(size)
        wanted = data[offset : offset + size]
        assert read(reader, file, offset, into, _native.xxh3_64(wanted)) == (OK, 0)
        assert into.tobytes() == wanted
    assert reader.bytes_read == 14 * PAGE


def test_direct_wherever_the_file_system_takes_it(folder: Path, reader: _native.Reader) -> None:
    path = folder / "file"
    path.write_bytes(noise(PAGE))
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError as error:
        assert error.errno == errno.EINVAL
        assert not reader.is_direct(reader.open(str(path), True))
    else:
        assert reader.is_direct(reader.open(str(path), True))


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("size", [0, 100, PAGE, PAGE + 1, 2 * PAGE - 1])
def test_a_short_file(folder: Path, reader: _native.Reader, size: int, direct: bool) -> None:
    (folder / "file").write_bytes(noise(size))
    file = reader.open(str(folder / "file"), direct)
    assert read(reader, file, 0, pages(2 * PAGE), 0) == (SHORT, size)
    assert read(reader, file, 4 * PAGE, pages(PAGE), 0) == (SHORT, 0)


def test_a_flipped_bit_and_the_checksum_found(folder: Path, reader: _native.Reader) -> None:
    data = bytearray(noise(4 * PAGE))
    promised = _native.xxh3_64(data)
    data[5000] ^= 1
    (folder / "file").write_bytes(data)
    file = reader.open(str(folder / "file"), True)
    assert read(reader, file, 0, pages(4 * PAGE), promised) == (MISMATCH, _native.xxh3_64(data))


def test_a_system_error_tells_its_errno(tmp_path: Path, reader: _native.Reader) -> None:
    folder = reader.open(str(tmp_path), True)
    assert read(reader, folder, 0, pages(PAGE), 0) == (OS_ERROR, errno.EISDIR)


def test_a_missing_file_is_an_oserror(tmp_path: Path, reader: _native.Reader) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        reader.open(str(tmp_path / "gone"), True)
    assert caught.value.filename == str(tmp_path / "gone")


def test_a_name_that_is_not_utf8(tmp_path: Path, reader: _native.Reader) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    with open(path, "wb") as file:
        file.write(bytes(PAGE))
    index = reader.open(path, True)
    assert read(reader, index, 0, pages(PAGE), _native.xxh3_64(bytes(PAGE))) == (OK, 0)


class Busy:
    """A reader of one thread that is reading something large, so that more requests queue up."""

    def __init__(self, folder: Path) -> None:
        data = noise(48 << 20)
        (folder / "large").write_bytes(data)
        self.reader = _native.Reader(1)
        self.file = self.reader.open(str(folder / "large"), False)
        self.into = pages(len(data))
        self.checksum = _native.xxh3_64(data)
        self.small = _native.xxh3_64(data[:PAGE])

    def submit(self, *, demand: bool) -> int:
        return self.reader.submit(self.file, 0, pages(PAGE), self.small, demand)

    def while_reading(self, act: Callable[[], None]) -> None:
        """Run ``act`` (which submits and must not wait) wholly while the large read goes on."""
        for _ in range(50):
            large = self.reader.submit(self.file, 0, self.into, self.checksum, True)
            while self.reader.cancel(large):  # it has not started: let the thread take it
                large = self.reader.submit(self.file, 0, self.into, self.checksum, True)
                threading.Event().wait(0.002)
            act()
            late = self.reader.done(large)
            assert self.reader.wait(large) == (OK, 0)
            if not late:
                return
        pytest.fail("this machine never ran a few calls within one large read")


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[Busy]:
    busy = Busy(tmp_path)
    yield busy
    busy.reader.close()


def test_demand_goes_before_hints_and_each_queue_in_order(busy: Busy) -> None:
    tickets: list[int] = []

    def act() -> None:
        tickets[:] = [busy.submit(demand=demand) for demand in (False, False, True, True)]

    busy.while_reading(act)
    finished = []
    left = list(tickets)
    while left:
        first = busy.reader.wait_any(left)
        assert busy.reader.done(first)
        assert busy.reader.wait(first) == (OK, 0)
        finished.append(tickets.index(first))
        left.remove(first)
    assert finished == [2, 3, 0, 1]


def test_promote_overtakes_other_hints(busy: Busy) -> None:
    tickets: list[int] = []

    def act() -> None:
        tickets[:] = [busy.submit(demand=False) for _ in range(3)]
        busy.reader.promote(tickets[2])
        busy.reader.promote(tickets[2])  # already demanded: nothing

    busy.while_reading(act)
    assert busy.reader.wait_any(tickets) == tickets[2]
    for ticket in tickets:
        assert busy.reader.wait(ticket) == (OK, 0)


def test_cancel_before_the_start_leaves_the_destination_alone(busy: Busy) -> None:
    into = pages(PAGE)
    outcomes: list[bool] = []

    def act() -> None:
        for demand in (True, False):
            ticket = busy.reader.submit(busy.file, 0, into, busy.small, demand)
            outcomes.append(busy.reader.cancel(ticket))
            with pytest.raises(IndexError):
                busy.reader.wait(ticket)

    busy.while_reading(act)
    assert outcomes[-2:] == [True, True]
    last = busy.submit(demand=True)  # both queues have been passed once this is done
    assert busy.reader.wait(last) == (OK, 0)
    assert not into.any()


def test_cancel_after_the_end_says_no(busy: Busy) -> None:
    ticket = busy.submit(demand=True)
    busy.reader.wait_any([ticket])
    assert not busy.reader.cancel(ticket)
    assert busy.reader.wait(ticket) == (OK, 0)


def test_close_with_pending_work(busy: Busy) -> None:
    large = busy.reader.submit(busy.file, 0, busy.into, busy.checksum, True)
    queued = [busy.submit(demand=demand) for demand in (True, False) for _ in range(20)]
    busy.reader.close()
    busy.reader.close()
    outcomes = {busy.reader.wait(ticket) for ticket in [large, *queued]}
    assert outcomes <= {(OK, 0), (OS_ERROR, errno.ECANCELED)}
    assert (OS_ERROR, errno.ECANCELED) in outcomes
    with pytest.raises(RuntimeError):
        busy.submit(demand=True)


def test_drain_forgets_everything_and_the_reader_goes_on(busy: Busy) -> None:
    for _ in range(3):
        into, spared = pages(len(busy.into)), pages(PAGE)
        large = busy.reader.submit(busy.file, 0, into, busy.checksum, True)
        tickets = [busy.submit(demand=demand) for demand in (True, False) for _ in range(20)]
        tickets.append(busy.reader.submit(busy.file, 0, spared, busy.small, False))
        busy.reader.drain()
        for ticket in (large, *tickets):
            with pytest.raises(IndexError):
                busy.reader.wait(ticket)
        before = (into[-PAGE:].tobytes(), spared.tobytes())
        assert not spared.any()
        assert busy.reader.wait(busy.submit(demand=True)) == (OK, 0)
        assert (into[-PAGE:].tobytes(), spared.tobytes()) == before
    busy.reader.drain()
    busy.reader.close()
    busy.reader.drain()


def test_a_thread_that_waits_learns_of_a_drain(busy: Busy) -> None:
    answers: list[str] = []
    large = busy.reader.submit(busy.file, 0, busy.into, busy.checksum, True)
    queued = busy.submit(demand=False)

    def wait() -> None:
        try:
            answers.append(str(busy.reader.wait(queued)))
        except IndexError as error:
            answers.append(str(error))

    waiter = threading.Thread(target=wait)
    waiter.start()
    busy.reader.drain()
    waiter.join()
    assert answers in ([str((OK, 0))], [f"ticket {queued} is unknown or forgotten"])
    with pytest.raises(IndexError):
        busy.reader.done(large)


def test_destinations_are_let_go_by_drain_and_close(busy: Busy) -> None:
    for end in (busy.reader.drain, busy.reader.close):
        into = pages(PAGE)
        alive = weakref.ref(into)
        busy.reader.submit(busy.file, 0, into, busy.small, False)
        del into
        assert alive() is not None
        end()
        assert alive() is None


def test_a_forked_child_is_refused_instead_of_waiting_for_ever(busy: Busy) -> None:
    large = busy.reader.submit(busy.file, 0, busy.into, busy.checksum, True)
    child = os.fork()
    if not child:
        verdict = 1
        try:
            calls: list[Callable[[], object]] = [
                lambda: busy.reader.wait(large),
                lambda: busy.reader.wait_any([large]),
                lambda: busy.reader.done(large),
                lambda: busy.reader.bytes_read,
                lambda: busy.submit(demand=True),
                busy.reader.drain,
            ]
            for call in calls:
                with pytest.raises(RuntimeError, match="forked"):
                    call()
            busy.reader.close()
            del calls, call, busy.reader
            gc.collect()
            verdict = 0
        finally:
            os._exit(verdict)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert busy.reader.wait(large) == (OK, 0)


def test_a_thread_that_waits_learns_of_close(busy: Busy) -> None:
    answers: list[tuple[int, int]] = []

    def act() -> None:
        ticket = busy.submit(demand=False)
        waiter = threading.Thread(target=lambda: answers.append(busy.reader.wait(ticket)))
        waiter.start()
        busy.reader.close()
        waiter.join()

    busy.reader.submit(busy.file, 0, busy.into, busy.checksum, True)
    act()
    assert answers in ([(OK, 0)], [(OS_ERROR, errno.ECANCELED)])


def test_collected_while_reading(tmp_path: Path) -> None:
    """Neither the reader nor the destination is mentioned again: no read may outlive them."""
    for _ in range(5):
        busy = Busy(tmp_path)
        busy.reader.submit(busy.file, 0, busy.into, 0, True)
        for _ in range(10):
            busy.submit(demand=False)
        del busy
        gc.collect()


def test_many_threads_and_requests(folder: Path) -> None:
    data = noise(256 * PAGE, 7)
    (folder / "file").write_bytes(data)
    reader = _native.Reader(8)
    file = reader.open(str(folder / "file"), True)
    rng = np.random.default_rng(3)
    starts = rng.integers(0, 250, 600)
    sizes = rng.integers(1, 7, 600)
    places = [pages(int(size) * PAGE) for size in sizes]
    tickets = [
        reader.submit(
            file,
            int(start) * PAGE,
            place,
            _native.xxh3_64(data[start * PAGE :][: place.size]),
            bool(start % 2),
        )
        for start, place in zip(starts, places, strict=True)
    ]
    for ticket in tickets[::3]:
        reader.promote(ticket)
    for ticket in reversed(tickets):
        assert reader.wait(ticket) == (OK, 0)
    for start, place in zip(starts, places, strict=True):
        assert place.tobytes() == data[start * PAGE :][: place.size]
    assert reader.bytes_read == sizes.sum() * PAGE
    reader.close()


def test_misuse_is_an_exception(tmp_path: Path, reader: _native.Reader) -> None:
    (tmp_path / "file").write_bytes(bytes(4 * PAGE))
    file = reader.open(str(tmp_path / "file"), True)
    room = pages(2 * PAGE)
    frozen = pages(PAGE)
    frozen.flags.writeable = False
    for offset, into in [(1, room), (0, room[1 : PAGE + 1]), (0, room[:100]), (0, room[:0])]:
        with pytest.raises(ValueError):
            reader.submit(file, offset, into, 0, True)
    with pytest.raises(ValueError):
        reader.submit(file, (1 << 63) - PAGE, room, 0, True)
    wrong: list[object] = [frozen, room[::2], room.view(np.int8), bytes(PAGE)]
    for destination in wrong:
        with pytest.raises(TypeError):
            reader.submit(file, 0, destination, 0, True)  # type: ignore[arg-type]
    for index in (-1, file + 1):
        with pytest.raises(IndexError):
            reader.submit(index, 0, room, 0, True)
    for call in (reader.wait, reader.cancel, reader.done, reader.promote):
        with pytest.raises(IndexError):
            call(12345)
    with pytest.raises(IndexError):
        reader.wait_any([12345])
    with pytest.raises(ValueError):
        reader.wait_any([])
    ticket = reader.submit(file, 0, room, _native.xxh3_64(bytes(2 * PAGE)), True)
    assert reader.wait(ticket) == (OK, 0)
    with pytest.raises(IndexError):
        reader.wait(ticket)
    with pytest.raises(ValueError):
        _native.Reader(0)
