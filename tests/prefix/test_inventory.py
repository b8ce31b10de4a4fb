"""What a directory has, seen from outside: counts that are true, faults that are named, and
nothing removed that was not meant."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flashmoe.errors import InputError
from flashmoe.options import PrefixCache
from flashmoe.prefix import directory as directories
from flashmoe.prefix.directory import ABOUT
from flashmoe.prefix.inventory import Piece, Room, clear, survey
from flashmoe.store.lock import alone
from tests.prefix.states import MODEL, grown, opened

IDS = [(7 * i + i // 5) % 90 for i in range(1000)]


def filled(path: Path, *lengths: int, kv: str = "f32") -> None:
    prefixes = opened(PrefixCache(path), kv=kv)
    for length in lengths:
        prefixes.keep(IDS[:length], grown(IDS[:length], kv=kv), [])
    prefixes.close()


def all_of(room: Room, piece: Piece) -> bool:
    return True


def test_states_are_counted_and_blocks_that_they_share_once(tmp_path: Path) -> None:
    filled(tmp_path, 300, 600, 640)
    filled(tmp_path, 100, kv="int8")
    first, second = survey(tmp_path, whole=True)
    assert (first.path.name, second.path.name) == (MODEL, f"{MODEL[:16]}-int8")
    assert [len(room.states) for room in (first, second)] == [3, 1]
    assert [room.tokens for room in (first, second)] == [640, 100]
    assert len(first.pieces) == 3 + 2
    assert first.nbytes == sum(path.stat().st_size for path in first.path.glob("*.prefix"))
    assert abs(first.used_s - time.time()) < 60 and not first.faults


def test_what_was_noted_of_a_model_is_told_and_may_be_anything(tmp_path: Path) -> None:
    filled(tmp_path, 100)
    note = tmp_path / MODEL / ABOUT
    assert survey(tmp_path)[0].about == {}
    for text, wanted in (
        ('{"store": "/a", "kernels": 5}', {"store": "/a"}),
        ("[1, 2]", {}),
        ("nonsense", {}),
        ("[" * 100_000, {}),
    ):
        note.write_text(text)
        assert survey(tmp_path)[0].about == wanted


@pytest.mark.parametrize(
    ("damage", "why", "seen_at_once"),
    [
        (lambda whole: whole[:-1], "it has [0-9]+ bytes, and should have", True),
        (lambda whole: whole + b"\0", "it has [0-9]+ bytes, and should have", True),
        (lambda whole: b"", "it is no part of a prefix cache", True),
        (lambda whole: b"x" + whole[1:], "it is no part of a prefix cache", True),
        (lambda whole: whole.replace(b'"state"', b'"block"', 1), "another model or kind", True),
        (lambda whole: whole.replace(b'"position":300', b'"position":301', 1), "length", True),
        (lambda whole: whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:], "checksum", False),
        (lambda whole: whole[:-1] + bytes([whole[-1] ^ 1]), "checksum", False),
    ],
)
def test_a_damaged_file_is_named_with_the_reason(
    tmp_path: Path, damage: Callable[[bytes], bytes], why: str, seen_at_once: bool
) -> None:
    filled(tmp_path, 300, 600)
    (victim,) = tmp_path.rglob("state-300-*")
    victim.write_bytes(damage(victim.read_bytes()))
    (room,) = survey(tmp_path)
    assert bool(room.faults) == seen_at_once
    (fault,) = survey(tmp_path, whole=True)[0].faults
    assert fault.path == victim and fault.fault is not None
    assert re.search(why, fault.fault)


def test_a_state_without_its_block_is_a_fault(tmp_path: Path) -> None:
    filled(tmp_path, 200, 600)
    block = sorted(tmp_path.rglob("block-*"))[0]
    block.unlink()
    (room,) = survey(tmp_path)
    (fault,) = room.faults
    assert fault.path.name.startswith("state-600-")
    assert fault.fault is not None and block.name.removesuffix(".prefix") in fault.fault
    assert [state.tokens for state in room.states] == [200]


def test_only_what_is_unwanted_goes_and_never_a_file_of_others(tmp_path: Path) -> None:
    filled(tmp_path, 300, 600)
    filled(tmp_path, 100, kv="int8")
    room = tmp_path / MODEL
    foreign = [tmp_path / "letter.txt", room / "notes.prefix", tmp_path / "holiday" / "a.prefix"]
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.mkdir()
    (outside / f"block-{0:032x}.prefix").write_text("mine")
    (tmp_path / "0123456789abcdef-bf16").symlink_to(outside)
    left = room / f"state-5-{0:032x}.prefix.partial"
    left.write_text("half")
    gone = clear(tmp_path, lambda room, piece: piece.tokens == 300)
    assert [piece.name[:9] for piece in gone] == ["state-300"]
    assert len(clear(tmp_path, lambda where, piece: where.path == room)) == 2 + 1 + 1
    assert not left.exists() and (tmp_path / f"{MODEL[:16]}-int8").is_dir()
    clear(tmp_path, all_of)
    assert all(path.exists() for path in foreign)
    assert (outside / f"block-{0:032x}.prefix").exists()
    assert not (tmp_path / f"{MODEL[:16]}-int8").exists(), "an empty room goes too"


def test_whoever_uses_the_directory_goes_on_while_it_is_cleared(tmp_path: Path) -> None:
    prefixes = opened(PrefixCache(tmp_path))
    for length in (300, 600):
        prefixes.keep(IDS[:length], grown(IDS[:length]), [])
    prefixes.flush()
    clear(tmp_path, all_of)
    assert survey(tmp_path) == []
    state = grown([])
    assert prefixes.resume(IDS[:700], 699, state)[0] in (0, 300, 600)  # what its memory has
    other = [(3 * i) % 90 for i in range(1000)]
    prefixes.keep(other[:600], grown(other[:600]), [])
    prefixes.close()
    (room,) = survey(tmp_path, whole=True)
    assert not room.faults and room.tokens == 600
    again = opened(PrefixCache(tmp_path))
    assert again.resume(other[:700], 699, grown([]))[0] == 600
    again.close()


def test_clearing_waits_for_a_writer_and_gives_up_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fcntl")
    filled(tmp_path, 100)
    monkeypatch.setattr(directories, "PATIENCE_S", 0.05)
    with alone(tmp_path, 1), pytest.raises(InputError, match="is being written to"):
        clear(tmp_path, all_of)
    assert survey(tmp_path)[0].states
    monkeypatch.setattr(directories, "PATIENCE_S", 10)
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with alone(tmp_path, 1):
            held.set()
            release.wait(10)

    writer = threading.Thread(target=hold)
    writer.start()
    held.wait(10)
    threading.Timer(0.1, release.set).start()
    assert len(clear(tmp_path, all_of)) == 1
    writer.join()


@pytest.mark.parametrize("name", ["missing", "file"])
def test_what_is_no_directory_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    for call in (survey, lambda path: clear(path, all_of)):
        with pytest.raises(InputError, match=f"there is no prefix cache in .*{name}"):
            call(tmp_path / name)


def test_a_pipe_in_a_pieces_place_is_a_fault_and_not_waited_for(tmp_path: Path) -> None:
    filled(tmp_path, 100)
    os.mkfifo(tmp_path / MODEL / f"block-{0:032x}.prefix")
    (fault,) = survey(tmp_path)[0].faults
    assert fault.fault == "it is no file"
