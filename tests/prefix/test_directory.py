"""The pieces on disk: room, order of leaving, leftovers, and other people's files."""

import json
import os
import stat
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashmoe.errors import InputError
from flashmoe.prefix import directory as directories
from flashmoe.prefix.directory import Directory

ONE, TWO = "0123456789abcdef-f32", "fedcba9876543210-int8"


def name(kind, number):
    return f"{kind}-{number}-{number:032x}" if kind == "state" else f"{kind}-{number:032x}"


def piece(size):
    return np.full(size, size % 251, np.uint8)


def total(path):
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def test_what_was_written_is_read_and_counted_once(tmp_path):
    one = Directory(tmp_path / "new" / "cache", ONE, 1000)
    one.write(name("state", 1), piece(300), frozenset())
    one.write(name("state", 1), piece(300), frozenset())
    again = Directory(tmp_path / "new" / "cache", ONE, 1000)
    assert again.names() == [name("state", 1)]
    assert Directory(tmp_path / "new" / "cache", TWO, 1000).names() == []
    assert (one.written_bytes, again.size(name("state", 1))) == (300, 300)
    out = np.zeros(300, np.uint8)
    assert again.read(name("state", 1), out) and (out == piece(300)).all()
    assert not again.read(name("state", 1), np.zeros(301, np.uint8))
    assert not again.read(name("state", 1), np.zeros(299, np.uint8))
    for private in (tmp_path / "new" / "cache", one.room):
        assert stat.S_IMODE(private.stat().st_mode) == 0o700
    one.remove(name("state", 1))
    assert again.names() == []
    with pytest.raises(FileNotFoundError):
        again.read(name("state", 1), out)


writes = st.lists(st.tuples(st.booleans(), st.integers(0, 9), st.integers(1, 400)), max_size=25)


@settings(max_examples=25, deadline=None)
@given(writes)
def test_the_limit_holds_over_models_and_processes(todo):
    with TemporaryDirectory() as path:
        here = [Directory(Path(path), model, 1000) for model in (ONE, TWO)]
        for other, number, size in todo:
            here[other].write(name("block", number), piece(size), frozenset())
            assert total(Path(path)) <= 1000
        if todo:
            other, number, size = todo[-1]
            assert name("block", number) in here[other].names()


def test_the_least_recently_used_leaves_and_a_state_before_its_blocks(tmp_path):
    here = Directory(tmp_path, ONE, 1000)
    blocks = [name("block", number) for number in range(3)]
    for block in blocks:
        here.write(block, piece(200), frozenset())
    here.write(name("state", 5), piece(100), frozenset())
    here.write(name("state", 6), piece(100), frozenset())
    assert here.touch(name("state", 6), blocks[:2]) == []
    assert here.touch(name("state", 5), blocks[1:]) == []
    assert here.touch(None, [name("block", 7)]) == [name("block", 7)]
    gone = []
    for number in range(10, 13):
        before = set(here.names())
        here.write(name("state", number), piece(250), frozenset())
        gone.append(before - set(here.names()))
    assert gone == [{name("state", 6)}, {blocks[0]}, {name("state", 5), blocks[1]}]


def test_what_goes_with_a_piece_is_spared_even_where_it_then_does_not_fit(tmp_path):
    here = Directory(tmp_path, ONE, 500)
    here.write(name("block", 1), piece(300), frozenset())
    here.write(name("state", 1), piece(300), frozenset([name("block", 1)]))
    assert here.names() == [name("block", 1)]


def test_leftovers_go_and_the_files_of_others_stay(tmp_path):
    Directory(tmp_path, ONE, 1000)
    left = tmp_path / ONE / f"{name('state', 1)}.prefix.partial"
    left.write_bytes(b"x" * 5000)
    foreign = [
        tmp_path / "letter.txt",
        tmp_path / ONE / "notes.partial",
        tmp_path / "holiday" / f"{name('state', 1)}.prefix",
    ]
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"y" * 5000)
    Directory(tmp_path, TWO, 1000)
    assert not left.exists() and all(path.exists() for path in foreign)


def test_a_room_says_what_it_is_for_and_is_made_anew(tmp_path):
    here = Directory(tmp_path, ONE, 1000, {"store": "/models/a"})
    note = here.room / directories.ABOUT
    assert json.loads(note.read_text()) == {"store": "/models/a"}
    assert here.names() == []
    directories.vacate(here.room)
    assert not here.room.exists() and here.names() == []
    here.write(name("block", 1), piece(900), frozenset())
    assert here.names() == [name("block", 1)] and note.exists()


def test_a_smaller_limit_applies_at_once(tmp_path):
    here = Directory(tmp_path, ONE, 1000)
    for number in range(4):
        here.write(name("block", number), piece(200), frozenset())
    assert len(Directory(tmp_path, ONE, 500).names()) == 2


def test_a_place_that_cannot_be_written_to_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be kept in .*file.*--prefix-cache"):
        Directory(tmp_path / "file", ONE, 1000)


def test_one_writes_at_a_time_and_patience_ends(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    here = Directory(tmp_path, ONE, 1000)
    monkeypatch.setattr(directories, "PATIENCE_S", 0.05)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    began = time.monotonic()
    with pytest.raises(BlockingIOError):
        here.write(name("block", 1), piece(10), frozenset())
    assert time.monotonic() - began >= 0.05
    os.close(descriptor)
    here.write(name("block", 1), piece(10), frozenset())
