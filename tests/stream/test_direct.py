"""stream/direct.py: arguments are checked, and a failed read names file, record and mend."""

import gc
import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xxhash

from flashmoe.errors import ReadError
from flashmoe.quant import Array
from flashmoe.stream.direct import DirectReader, Urgency

PAGE = 4096
DATA = np.random.default_rng(5).integers(0, 256, 4 * PAGE, np.uint8).tobytes()
CHECKSUM = xxhash.xxh3_64_intdigest(DATA)


def pages(size: int) -> Array:
    return np.frombuffer(mmap.mmap(-1, size), np.uint8)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    (tmp_path / "layer-000.safetensors").write_bytes(DATA)
    return tmp_path / "layer-000.safetensors"


@pytest.fixture
def reader() -> Iterator[DirectReader]:
    with DirectReader(threads=2) as reader:
        yield reader


def submit(reader: DirectReader, file: int, into: Array, **change: object) -> int:
    arguments: dict[str, object] = {
        "offset_bytes": 0,
        "checksum": CHECKSUM,
        "label": lambda: "layer 0 expert 3",
        "demand": True,
    }
    return reader.submit(file, destination=into, **(arguments | change))  # type: ignore[arg-type]


def test_reads_and_counts(store: Path, reader: DirectReader) -> None:
    file = reader.open(store, direct=True)
    assert isinstance(reader.is_direct(file), bool)
    into = pages(4 * PAGE)
    ticket = submit(reader, file, into)
    assert reader.wait_any([ticket]) == ticket
    assert reader.done(ticket)
    reader.wait(ticket)
    assert into.tobytes() == DATA
    assert reader.bytes_read == 4 * PAGE


def test_hints_can_be_promoted_and_cancelled(store: Path, reader: DirectReader) -> None:
    file = reader.open(store, direct=True)
    places = [pages(4 * PAGE) for _ in range(50)]
    tickets = [submit(reader, file, into, demand=False) for into in places]
    reader.promote_all(tickets[-1:])
    kept = [
        (ticket, into)
        for ticket, into in zip(tickets, places, strict=True)
        if ticket == tickets[-1] or not reader.cancel(ticket)
    ]
    for ticket, into in kept:
        reader.wait(ticket)
        assert into.tobytes() == DATA


def test_a_destination_lives_as_long_as_its_read(store: Path, reader: DirectReader) -> None:
    file = reader.open(store, direct=True)
    tickets = [submit(reader, file, pages(4 * PAGE)) for _ in range(50)]
    gc.collect()
    for ticket in tickets:
        reader.wait(ticket)


def failure(reader: DirectReader, ticket: int) -> str:
    with pytest.raises(ReadError) as caught:
        reader.wait(ticket)
    return str(caught.value)


def test_damage_names_file_record_checksums_and_mend(store: Path, reader: DirectReader) -> None:
    store.write_bytes(DATA[:-1] + bytes([DATA[-1] ^ 1]))
    message = failure(reader, submit(reader, reader.open(store, direct=True), pages(4 * PAGE)))
    found = xxhash.xxh3_64_hexdigest(store.read_bytes())
    for part in (str(store), "layer 0 expert 3", found, f"{CHECKSUM:016x}"):
        assert part in message
    assert f"flashmoe verify {store.parent}" in message


def test_a_short_read_tells_how_much_there_was(store: Path, reader: DirectReader) -> None:
    store.write_bytes(DATA[: 2 * PAGE + 5])
    message = failure(reader, submit(reader, reader.open(store, direct=True), pages(4 * PAGE)))
    assert "8197 of 16384 bytes" in message
    assert "layer 0 expert 3" in message


def test_a_system_error_is_named(store: Path, reader: DirectReader) -> None:
    folder = reader.open(store.parent, direct=True)
    message = failure(reader, submit(reader, folder, pages(PAGE)))
    assert "Is a directory" in message
    assert str(store.parent) in message


def test_a_missing_file(tmp_path: Path, reader: DirectReader) -> None:
    with pytest.raises(ReadError, match=r"layer-009.*No such file.*flashmoe verify"):
        reader.open(tmp_path / "layer-009.safetensors", direct=True)


def test_a_failed_ticket_is_forgotten_too(store: Path, reader: DirectReader) -> None:
    ticket = submit(reader, reader.open(store, direct=True), pages(4 * PAGE), checksum=1)
    failure(reader, ticket)
    with pytest.raises(IndexError):
        reader.wait(ticket)


def test_closing_drops_what_is_queued(store: Path) -> None:
    reader = DirectReader(threads=1)
    file = reader.open(store, direct=True)
    tickets = [submit(reader, file, pages(4 * PAGE), demand=False) for _ in range(200)]
    reader.close()
    messages = []
    for ticket in tickets:
        try:
            reader.wait(ticket)
        except ReadError as error:
            messages.append(str(error))
    assert all("reader was closed" in message for message in messages)
    assert messages


def test_draining_forgets_every_ticket_and_the_reader_goes_on(store: Path) -> None:
    with DirectReader(threads=1) as reader:
        file = reader.open(store, direct=True)
        tickets = [submit(reader, file, pages(4 * PAGE), demand=False) for _ in range(50)]
        reader.drain()
        for ticket in tickets:
            with pytest.raises(IndexError):
                reader.wait(ticket)
        into = pages(4 * PAGE)
        reader.wait(submit(reader, file, into))
        assert into.tobytes() == DATA


def test_arguments_no_correct_caller_passes(store: Path, reader: DirectReader) -> None:
    file = reader.open(store, direct=True)
    room = pages(4 * PAGE)
    frozen = pages(PAGE)
    frozen.flags.writeable = False
    for into in (
        room[: PAGE - 1],
        room[:0],
        room[1 : PAGE + 1],
        room[::2],
        room.view(np.uint32),
        frozen,
    ):
        with pytest.raises(ValueError):
            submit(reader, file, into)
    for offset in (-PAGE, 100):  # the mistake is named, and so is the record
        with pytest.raises(ValueError, match="layer 0 expert 3: offset"):
            submit(reader, file, room, offset_bytes=offset)


def described(store: Path, reader: DirectReader, *sums: int) -> tuple[int, Array]:
    """A file of records of a page, and slots for as many."""
    file, arena = reader.open(store, direct=True), pages(PAGE * len(sums))
    reader.describe(file, 0, PAGE, sums, "expert {}".format)
    reader.into(arena, PAGE)
    return file, arena


def test_a_batch_is_read_and_collected_whatever_becomes_of_each(
    store: Path, reader: DirectReader
) -> None:
    parts = [DATA[place * PAGE : (place + 1) * PAGE] for place in range(3)]
    sums = [xxhash.xxh3_64_intdigest(part) for part in parts]
    file, arena = described(store, reader, sums[0], sums[1] ^ 1, sums[2])
    tickets = reader.submit_records(file, [0, 1, 2], [2, 1, 0], Urgency.HINTED)
    reader.promote_all(tickets)
    landed, refused = list[int](), dict[int, ReadError]()
    while len(landed) + len(refused) < 3:
        left = [each for each in tickets if each not in landed and each not in refused]
        good, bad = reader.collect(left, block=True)
        landed += good
        refused.update(bad)
    assert sorted(landed) == [tickets[0], tickets[2]]
    assert f"expert 1 at byte {PAGE}" in str(refused[tickets[1]])
    assert arena[2 * PAGE :].tobytes() == parts[0] and arena[:PAGE].tobytes() == parts[2]
    for ticket in tickets:
        with pytest.raises(IndexError, match="forgotten"):
            reader.done(ticket)


def test_nothing_of_a_batch_is_read_where_one_is_wrong(store: Path, reader: DirectReader) -> None:
    file, _ = described(store, reader, 0, 0)
    for records, slots, why in (
        ([0, 2], [0, 1], "no such record"),
        ([0, 1], [0, 2], "no such slot"),
        ([0, 1], [0], "needs a slot"),
        ([], [], "nothing"),
    ):
        with pytest.raises(ValueError, match=why):
            reader.submit_records(file, records, slots, Urgency.DEMANDED)
    with pytest.raises(ValueError, match="not described"):
        reader.submit_records(file + 1, [0], [0], Urgency.DEMANDED)
    reader.describe(file, 0, 2 * PAGE, [0], str)
    with pytest.raises(ValueError, match="larger than a slot"):
        reader.submit_records(file, [0], [0], Urgency.DEMANDED)
    assert reader.bytes_read == 0


def test_collecting_without_waiting_may_bring_nothing(store: Path, reader: DirectReader) -> None:
    assert reader.collect([], block=False) == ([], [])
    file = reader.open(store, direct=True)
    ticket = submit(reader, file, pages(4 * PAGE))
    found: list[int] = []
    while not found:
        found, refused = reader.collect([ticket], block=False)
        assert not refused
    assert found == [ticket]
