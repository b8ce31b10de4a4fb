"""Kept conversations: names, locks, and files that are whole or not there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flashmoe.apps.chat.shelf import CONVERSATION, Shelf
from flashmoe.apps.chat.transcript import Transcript
from flashmoe.errors import InputError, SessionError


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "data" / "sessions")


SAID = Transcript(store="demo", messages=[{"role": "user", "content": "Grüße"}])


def test_what_is_kept_is_found_again(shelf: Shelf) -> None:
    assert shelf.names() == [] and shelf.entries() == []
    with shelf.open("house") as kept:
        assert kept.read() is None
        assert shelf.names() == [], "nothing was said in it yet"
        kept.write(SAID)
        kept.timeline.write_bytes(b"12345")
    with shelf.open("house") as kept:
        assert kept.read() == SAID
    (entry,) = shelf.entries()
    assert (entry.name, entry.state_bytes, entry.about) == ("house", 5, SAID)


def test_it_is_for_this_user_alone(shelf: Shelf) -> None:
    with shelf.open("house") as kept:
        kept.write(SAID)
    assert (shelf.directory / "house").stat().st_mode & 0o077 == 0


def test_the_one_used_last_comes_first(shelf: Shelf) -> None:
    for seconds, name in ((100, "b"), (300, "a"), (200, "c")):
        with shelf.open(name) as kept:
            kept.write(SAID)
        os.utime(shelf.directory / name / CONVERSATION, (seconds, seconds))
    assert [entry.name for entry in shelf.entries()] == ["a", "c", "b"]
    assert shelf.names() == ["a", "b", "c"]


@pytest.mark.parametrize("name", ["", ".", "..", ".x", "-x", "a/b", "a b", "ä", "x" * 65, "a\n"])
def test_a_name_is_a_name(shelf: Shelf, name: str) -> None:
    with pytest.raises(InputError, match="cannot name a conversation"):
        shelf.open(name)
    assert not shelf.directory.exists()


def test_one_process_at_a_time(shelf: Shelf) -> None:
    code = (
        "import sys; from pathlib import Path; from flashmoe.apps.chat.shelf import Shelf\n"
        "from flashmoe.errors import SessionError\n"
        "try: Shelf(Path(sys.argv[1])).open('house')\n"
        "except SessionError as error: print(error)\n"
        "else: print('free')\n"
    )

    def elsewhere() -> str:
        command = [sys.executable, "-c", code, str(shelf.directory)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    with shelf.open("house"):
        assert "house is open in another process" in elsewhere()
        with pytest.raises(SessionError, match="open in another process"):
            shelf.open("house")
    assert elsewhere() == "free\n"


def test_a_damaged_file_is_named_and_listed(shelf: Shelf) -> None:
    with shelf.open("house") as kept:
        (shelf.directory / "house" / CONVERSATION).write_bytes(b"\xff{")
        with pytest.raises(SessionError, match=r"house/conversation\.json cannot be read"):
            kept.read()
    (entry,) = shelf.entries()
    assert entry.about is None


def test_a_place_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SessionError, match="cannot be used"):
        Shelf(tmp_path / "file").open("house")
    shelf = Shelf(tmp_path / "s")
    with shelf.open("house") as kept:
        (shelf.directory / "house" / CONVERSATION).mkdir()
        with pytest.raises(SessionError, match="cannot be written"):
            kept.write(SAID)
