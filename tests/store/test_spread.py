"""Spreading a store: shares or copies, killed at any call, full disks, others' directories."""

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys

import pytest

from flashmoe.errors import ConversionError, InputError, ReadError, StoreError
from flashmoe.store.parts import PART, SPREAD_JOURNAL
from flashmoe.store.reader import Store
from flashmoe.store.spread import spread
from flashmoe.store.verify import verify
from flashmoe.store.writer import PARTIAL
from tests.synthetic import write_store

KILLER = """
import os, signal, sys
from flashmoe.store.spread import spread

CALLS = ("open", "pwrite", "fsync", "replace", "link", "unlink", "mkdir", "close")

def run(path, places, limit):
    made = 0
    def wrap(call):
        def counting(*args, **kwargs):
            nonlocal made
            made += 1
            if made == limit:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)
        return counting
    for name in CALLS:
        setattr(os, name, wrap(getattr(os, name)))
    spread(path, places)
    return made

path, root = sys.argv[1:]
limit = 0
while True:
    limit += 1
    places = [f"{root}/{limit}{name}" for name in "ab"]
    pid = os.fork()
    if pid == 0:
        run(path, places, limit)
        os._exit(0)
    if os.waitpid(pid, 0)[1] == 0:
        break
print(limit)
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("spread") / "store")


def contents(*places):
    return [
        {file.name: file.read_bytes() for file in place.iterdir() if not file.name.startswith(".")}
        for place in places
    ]


@pytest.mark.parametrize("mirror", [False, True])
def test_what_is_written_is_whole(path, tmp_path, mirror):
    places = [tmp_path / "deep" / "a", tmp_path / "b"]
    before, seen = contents(path), []
    parts = spread(path, places, mirror=mirror, progress=seen.append)
    kind = "mirror" if mirror else "stripe"
    assert [str(part) for part in parts] == [f"{kind} {number} of 2" for number in range(2)]
    assert contents(path) == before
    report = verify(path, store_dirs=places)
    assert not report.faults and report.records_checked == 4 * 8 * (3 if mirror else 2)
    assert seen[-1].done_bytes == seen[-1].total_bytes
    done = [state.done_bytes for state in seen]
    assert done == sorted(done) and {state.what for state in seen} == {
        f"layer-00{layer}.safetensors" for layer in range(4)
    }
    if mirror:
        for place, part in zip(places, parts, strict=True):
            for layer in range(4):
                name = f"layer-00{layer}.safetensors"
                assert (place / name).read_bytes() == (path / name).read_bytes()
            assert json.loads((place / PART).read_text())["index"] == part.index


def test_spreading_again_writes_nothing_and_mends_what_is_damaged(path, tmp_path):
    places = [tmp_path / "a", tmp_path / "b"]
    spread(path, places)
    whole = contents(*places)
    times = [file.stat().st_mtime_ns for place in places for file in sorted(place.iterdir())]
    spread(path, places)
    again = [file.stat().st_mtime_ns for place in places for file in sorted(place.iterdir())]
    assert again == times
    for file, at in (("layer-001.0of2.safetensors", -5000), ("layer-003.0of2.safetensors", 40)):
        content = bytearray((places[0] / file).read_bytes())
        content[at] ^= 4
        (places[0] / file).write_bytes(content)
    (places[1] / "layer-000.1of2.safetensors").unlink()
    spread(path, places)
    assert contents(*places) == whole


def test_killed_at_any_call(path, tmp_path):
    command = [sys.executable, "-c", KILLER, str(path), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    calls = int(done.stdout)
    assert calls > 60
    whole = contents(tmp_path / f"{calls}a", tmp_path / f"{calls}b")
    for limit in range(1, calls):
        places = [tmp_path / f"{limit}a", tmp_path / f"{limit}b"]
        complete = [(place / PART).exists() for place in places]
        for place, one, files in zip(places, complete, whole, strict=True):
            if one:  # then all of it is there
                assert contents(place) == [files]
            elif place.exists():
                with pytest.raises(StoreError):
                    Store.open(path, [place])
        spread(path, places)
        assert contents(*places) == whole, limit


def test_an_interrupt_leaves_something_to_go_on_with(path, tmp_path):
    def stop(state):
        if state.what == "layer-002.safetensors":
            raise KeyboardInterrupt

    place = tmp_path / "a"
    with pytest.raises(KeyboardInterrupt):
        spread(path, [place], progress=stop)
    names = {file.name for file in place.iterdir()}
    assert names == {SPREAD_JOURNAL, *(f"layer-00{i}.0of1.safetensors" for i in range(2))}
    spread(path, [place])
    assert not verify(path, store_dirs=[place]).faults


def test_links_stay_links(tmp_path):
    path = write_store(tmp_path / "store")
    script = ["bench/synthetic.py", "tiny", "--layers", "5", "--distinct", "2", "--out"]
    shutil.rmtree(path)
    subprocess.run([sys.executable, *script, str(path)], check=True, capture_output=True)
    places = [tmp_path / "a", tmp_path / "b"]
    for _ in range(2):
        spread(path, places)
        for place in places:
            assert len({file.stat().st_ino for file in place.glob("layer-*")}) == 2
    (places[0] / "layer-003.0of2.safetensors").unlink()
    spread(path, places)
    assert len({file.stat().st_ino for file in places[0].glob("layer-*")}) == 2
    assert not verify(path, store_dirs=places).faults
    assert not list(tmp_path.glob(f"*/*{PARTIAL}"))


def test_a_damaged_store_is_not_spread(path, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(path, own)
    with (own / "layer-001.safetensors").open("r+b") as file:
        file.seek(Store.open(own).record(1, 6).offset + 9)
        file.write(b"!!")
    with pytest.raises(ReadError, match=r"layer-001\.safetensors: expert 6 is damaged.*verify"):
        spread(own, [tmp_path / "a"])
    assert not (tmp_path / "a" / PART).exists()
    shutil.copy(path / "layer-001.safetensors", own)
    spread(own, [tmp_path / "a"])


def test_directories_of_others_are_left_alone(path, tmp_path):
    full, file, other = tmp_path / "full", tmp_path / "file", tmp_path / "other"
    full.mkdir()
    (full / "letter").write_text("dear")
    file.write_text("")
    spread(path, [other, tmp_path / "rest"])
    before = contents(full, other)
    for place, message in (
        (full, "is not empty and holds no part"),
        (path, "is not empty and holds no part"),
        (file, "is a file"),
        (other, r"holds stripe 0 of 2 of store .*, not stripe 0 of 1"),
    ):
        with pytest.raises(ConversionError, match=message):
            spread(path, [place])
    with pytest.raises(ConversionError, match="holds stripe 0 of 2"):
        spread(path, [other], mirror=True)
    assert contents(full, other) == before
    (other / PART).write_text("{}")
    with pytest.raises(ConversionError, match="cannot be told"):
        spread(path, [other, tmp_path / "rest"])
    for places in ([], [tmp_path / "a", tmp_path / "a"], [tmp_path / str(n) for n in range(33)]):
        with pytest.raises(InputError, match="from 1 to 32 different directories"):
            spread(path, places)


def test_a_drives_own_root_is_empty_enough(path, tmp_path):
    (tmp_path / "drive" / "lost+found").mkdir(parents=True)
    spread(path, [tmp_path / "drive"])


def test_a_full_disk_is_refused_before_and_named_while_writing(path, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=50_000))
    with pytest.raises(ConversionError, match=r"a and .*b needs .* and its disk has 50,000 free"):
        spread(path, [tmp_path / "a", tmp_path / "b"])
    assert not (tmp_path / "a").exists()
    monkeypatch.undo()
    write, room = os.pwrite, [100_000]

    def pwrite(descriptor, data, offset):
        room[0] -= len(data)
        if room[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(ConversionError, match=r"[ab]/layer-.*: the disk is full .* same command"):
        spread(path, [tmp_path / "a", tmp_path / "b"])
    assert not list(tmp_path.glob(f"*/*{PARTIAL}"))
    monkeypatch.undo()
    spread(path, [tmp_path / "a", tmp_path / "b"])
    assert not verify(path, store_dirs=[tmp_path / "a", tmp_path / "b"]).faults


def test_two_at_once_are_refused(path, tmp_path):
    place = tmp_path / "a"
    place.mkdir()
    descriptor = os.open(place, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(ConversionError, match="another `flashmoe spread` is writing"):
            spread(path, [place])
    finally:
        os.close(descriptor)
    spread(path, [place])


def test_verify_names_the_file_of_a_part(path, tmp_path):
    places = [tmp_path / "a", tmp_path / "b"]
    spread(path, places)
    store = Store.open(path, places)
    source = store.sources[1][2]
    with source.path.open("r+b") as file:
        file.seek(source.offset(5) + 11)
        byte = file.read(1)[0]
        file.seek(source.offset(5) + 11)
        file.write(bytes([byte ^ 64]))
    (fault,) = verify(path, store_dirs=places).faults
    assert fault.file == str(places[1] / "layer-001.1of2.safetensors")
    assert fault.name == "expert 5"
