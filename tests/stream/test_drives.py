"""A store on several drives, streamed: right bytes, every lane used, copies that fail."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

from flashmoe.errors import ReadError
from flashmoe.options import Runtime
from flashmoe.store.reader import Store
from flashmoe.store.spread import spread
from flashmoe.stream import depth
from flashmoe.stream.direct import LOUD_FAILURES, DirectReader, Urgency
from flashmoe.stream.drives import Drives
from flashmoe.stream.rate import Probe
from flashmoe.stream.records import Records
from flashmoe.stream.slots import Slots
from flashmoe.stream.streamer import Streamer
from tests.stream.conftest import EXPERTS, LAYERS, TinyStore, record_of

RUNTIME = Runtime(io_threads=2)


@pytest.fixture
def shm() -> Iterator[Path]:
    """A directory on another drive than pytest's own."""
    if not Path("/dev/shm").is_dir():
        pytest.skip("no RAM file system at /dev/shm, so no second drive")
    with TemporaryDirectory(dir="/dev/shm") as path:
        yield Path(path)


def on(tiny: TinyStore, *places: Path) -> TinyStore:
    """The same store with other directories."""
    return replace(tiny, store=Store.open(tiny.store.path, places))


def strip(tiny: TinyStore) -> None:
    for file in tiny.store.path.glob("layer-*"):
        file.unlink()


def stream_all(tiny: TinyStore, streamer: Streamer, rounds: int = 3) -> None:
    """Hold every expert of every layer and compare its bytes."""
    for _ in range(rounds):
        for layer in range(LAYERS):
            nbytes = tiny.store.layout(layer).nbytes
            streamer.hint(layer, np.arange(EXPERTS))
            with streamer.hold(layer, np.arange(EXPERTS)) as experts:
                for expert, weights in experts:
                    wanted = tiny.records[layer][expert, :nbytes].tobytes()
                    assert record_of(weights) == wanted


def damage(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset + 5)
        byte = file.read(1)[0]
        file.seek(offset + 5)
        file.write(bytes([byte ^ 16]))


@pytest.mark.parametrize("slots", [1, EXPERTS])
def test_stripes_on_two_drives_are_both_read(
    own: TinyStore, shm: Path, tmp_path: Path, slots: int
) -> None:
    places = (tmp_path / "part", shm / "part")
    spread(own.store.path, places)
    strip(own)
    tiny = on(own, *places)
    with closing(Streamer(tiny.store, slots, RUNTIME)) as streamer:
        stream_all(tiny, streamer)
        drives = streamer.drives.use()
        assert [drive.directories for drive in drives] == [(places[0],), (places[1],)]
        assert sum(drive.reads for drive in drives) == streamer.counters.misses
        assert sum(drive.bytes_read for drive in drives) == streamer.counters.bytes_read
        assert all(drive.reads >= 2 * LAYERS * EXPERTS // 2 - slots for drive in drives)
        assert not any(drive.failed for drive in drives)


def test_copies_are_read_by_whichever_drive_is_free(
    own: TinyStore, shm: Path, tmp_path: Path
) -> None:
    spread(own.store.path, [tmp_path / "copy", shm / "copy"], mirror=True)
    tiny = on(own, tmp_path / "copy", shm / "copy")
    with closing(Streamer(tiny.store, EXPERTS, RUNTIME)) as streamer:
        stream_all(tiny, streamer, rounds=20)
        drives = streamer.drives.use()
        # The store's own directory lies on the drive of the first, and so shares its lane.
        assert drives[0].directories == (tmp_path / "copy", tiny.store.path)
        assert drives[1].directories == (shm / "copy",)
        assert all(drive.reads > 0 for drive in drives)


def test_two_directories_of_one_drive_have_a_lane_each_and_it_is_said(
    own: TinyStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spread(own.store.path, [tmp_path / "a", tmp_path / "b"])
    tiny = on(own, tmp_path / "a", tmp_path / "b")
    with (
        caplog.at_level(logging.INFO, "flashmoe"),
        closing(Streamer(tiny.store, EXPERTS, RUNTIME)) as streamer,
    ):
        stream_all(tiny, streamer)
        assert all(drive.reads for drive in streamer.drives.use())
    assert "share a drive" in caplog.text


def test_one_directory_is_one_lane(tiny: TinyStore) -> None:
    with closing(Streamer(tiny.store, EXPERTS, RUNTIME)) as streamer:
        stream_all(tiny, streamer)
        (drive,) = streamer.drives.use()
        assert drive.directories == (tiny.store.path,)
        assert drive.reads == streamer.counters.misses


def test_a_damaged_record_of_a_stripe_is_named_with_its_file_and_mend(
    own: TinyStore, tmp_path: Path
) -> None:
    places = (tmp_path / "a", tmp_path / "b")
    spread(own.store.path, places)
    strip(own)
    tiny = on(own, *places)
    source = tiny.store.sources[2][1]
    damage(source.path, source.offset(5))
    with closing(Streamer(tiny.store, EXPERTS, RUNTIME)) as streamer:
        for _ in range(2):
            with pytest.raises(ReadError) as caught:
                stream_all(tiny, streamer)
            message = str(caught.value)
            assert message.startswith(
                f"{places[1]}/layer-002.1of2.safetensors: expert 5 of layer 2 at byte "
                f"{source.offset(5)} is damaged"
            )
            assert f"`flashmoe verify {tiny.store.path} --store-dir {places[1]}`" in message
            assert "`flashmoe spread` again" in message
        spread_again = source.path.read_bytes()
        damage(source.path, source.offset(5))
        assert source.path.read_bytes() != spread_again
        stream_all(tiny, streamer)


def test_a_damaged_copy_is_told_and_another_one_read(
    own: TinyStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """All records of a directory are damaged: the first few are told, all are counted."""
    (tmp_path / "copy").mkdir()
    for file in own.store.path.glob("layer-*"):
        shutil.copy(file, tmp_path / "copy")
    tiny = on(own, tmp_path / "copy")
    own_source, copy = tiny.store.sources[1]
    for expert in range(EXPERTS):
        damage(copy.path, copy.offset(expert))
        damage(tiny.store.sources[2][0].path, tiny.store.sources[2][0].offset(expert))
    with (
        caplog.at_level(logging.WARNING, "flashmoe"),
        closing(Streamer(tiny.store, 2, RUNTIME)) as streamer,
    ):
        stream_all(tiny, streamer, rounds=30)
        failed = sum(drive.failed for drive in streamer.drives.use())
        assert 0 < failed <= 2 * EXPERTS  # none is asked for a second time
        damage(own_source.path, own_source.offset(3))
        with pytest.raises(ReadError, match=r"layer-001.*expert 3 of layer 1.*; and .*layer-001"):
            stream_all(tiny, streamer, rounds=30)
    told = [record.getMessage() for record in caplog.records]
    assert sum("another copy was read instead" in line for line in told) <= LOUD_FAILURES
    assert any("expert" in line and "is damaged" in line for line in told)


def test_a_drive_that_went_away_is_named(own: TinyStore, tmp_path: Path) -> None:
    spread(own.store.path, [tmp_path / "a"])
    tiny = on(own, tmp_path / "a")
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(ReadError, match=r"a is gone: .*mount its drive"):
        Streamer(tiny.store, EXPERTS, RUNTIME)


@pytest.mark.parametrize("direct", [True, False])
def test_a_probe_of_a_store_reads_every_record_once_from_all_drives(
    own: TinyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direct: bool
) -> None:
    places = (tmp_path / "a", tmp_path / "b")
    spread(own.store.path, places)
    strip(own)
    store = on(own, *places).store
    records = [store.record(layer, expert) for layer in range(LAYERS) for expert in range(EXPERTS)]
    readers: list[DirectReader] = []
    combine = DirectReader.combine

    def seen(self: DirectReader, *given: Any) -> int:
        readers.append(self)
        return combine(self, *given)

    monkeypatch.setattr(DirectReader, "combine", seen)
    probe = Probe(records, direct=direct, store=store)
    assert probe.lanes == 2
    slots = Slots(8, max(record.nbytes for record in records))
    views = [slots.view(slot, slots.slot_bytes) for slot in range(8)]
    for _ in range(2):
        assert probe.rate(2, views, 60) > 0
    assert len(set(readers)) == 2
    for reader in set(readers):
        assert [lane[:2] for lane in reader.lanes] == [(LAYERS * EXPERTS // 2, 0)] * 2


def test_the_depth_is_measured_on_one_drive(own: TinyStore, tmp_path: Path) -> None:
    places = (tmp_path / "a", tmp_path / "b")
    spread(own.store.path, places)
    assert {record.path.parent for record in depth.sample(own.store)} == {own.store.path}
    strip(own)
    records = depth.sample(on(own, *places).store)
    assert {record.path.parent for record in records} == {places[0]}
    assert {record.expert for record in records} == set(range(0, EXPERTS, 2))


def test_reads_of_copies_that_fail_are_told_when_they_are_collected(
    own: TinyStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A copy that gave way is a warning and no error; where all fail, the error names both."""
    shutil.copytree(own.store.path, tmp_path / "copy")
    tiny = on(own, tmp_path / "copy")
    first, second = tiny.store.sources[0]
    for source, experts in ((first, (0, 1)), (second, (1, 2))):
        for expert in experts:
            damage(source.path, source.offset(expert))
    slots = Slots(3, tiny.store.layout(0).record_bytes)
    with DirectReader(2) as reader, caplog.at_level(logging.WARNING, "flashmoe"):
        reader.into(slots.arena, slots.slot_bytes)
        records = Records(tiny.store, reader, Drives(reader, tiny.store, 2, direct=True))
        views = [slots.view(slot, slots.slot_bytes) for slot in range(3)]
        tickets = records.submit(0, [0, 1, 2], [0, 1, 2], Urgency.DEMANDED)
        landed, refused = list[int](), dict[int, ReadError]()
        while len(landed) + len(refused) < 3:
            waiting = [each for each in tickets if each not in landed and each not in refused]
            good, bad = reader.collect(waiting, block=True)
            landed += good
            refused.update(bad)
        assert sorted(landed) == [tickets[0], tickets[2]]
        assert str(refused[tickets[1]]).count("expert 1 of layer 0") == 2
        for expert in (0, 2):
            assert views[expert].tobytes() == tiny.records[0][expert].tobytes()
    assert "expert 1 of" not in caplog.text
