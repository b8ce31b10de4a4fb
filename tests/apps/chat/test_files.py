"""The file-reader reads text below its directory, some at a time, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashmoe.apps.chat.files import ENTRIES, READ_BYTES, file_reader, read_file
from flashmoe.apps.chat.tools import Refusal


def test_a_text_is_read_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Größe\n\nzwei\n")
    assert read_file(tmp_path, "a.txt") == "Größe\n\nzwei\n"
    assert read_file(tmp_path, str(tmp_path / "a.txt"), 3) == "zwei\n"
    (tmp_path / "empty").touch()
    assert read_file(tmp_path, "empty") == "[the file is empty]"


@settings(max_examples=30)
@given(st.lists(st.integers(0, 4000), min_size=1, max_size=30))
def test_in_parts_it_is_all_there(tmp_path_factory: pytest.TempPathFactory, lengths: list[int]):
    directory = tmp_path_factory.mktemp("files")
    text = "".join(f"{n}{'x' * length}\n" for n, length in enumerate(lengths))
    (directory / "a.txt").write_text(text)
    first, found = 1, ""
    while True:
        part = read_file(directory, "a.txt", first)
        body, _, told = part.rpartition("\n[")
        if not told.endswith("]"):
            assert found + part == text
            return
        assert len(part) < READ_BYTES + 100
        found, following = found + body + "\n", int(told.rpartition(" ")[2].rstrip("]"))
        assert following > first
        first = following


def test_a_directory_is_listed(tmp_path: Path) -> None:
    (tmp_path / "d" / "sub").mkdir(parents=True)
    (tmp_path / "d" / "b.txt").touch()
    assert read_file(tmp_path, "d") == "d is a directory of 2:\nb.txt\nsub/"
    for number in range(ENTRIES):
        (tmp_path / "d" / f"n{number}").touch()
    assert read_file(tmp_path, "d").endswith("\n[2 more]")


def test_what_is_outside_is_refused_by_any_way(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "secret").write_text("secret")
    (inside / "link").symlink_to(tmp_path / "secret")
    (inside / "up").symlink_to(tmp_path)
    for name in ("../secret", str(tmp_path / "secret"), "link", "up/secret", "~", "/etc/passwd"):
        with pytest.raises(Refusal, match="outside"):
            read_file(inside, name)


def test_what_is_no_text_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "binary").write_bytes(b"\x7fELF\0\0")
    (tmp_path / "loop").symlink_to("loop")
    for name, told in (
        ("pipe", "not a plain file"),
        ("binary", "binary, of 6 bytes"),
        ("none", "cannot be read: No such file"),
        ("loop", "cannot be read"),
        ("a\0b", "cannot be read"),
        ("x" * 5000, "cannot be read"),
    ):
        with pytest.raises(Refusal, match=told):
            read_file(tmp_path, name)


def test_as_a_tool_its_arguments_are_checked(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    use = file_reader(tmp_path).use
    assert use({"path": "a.txt"}) == "one\ntwo\n"
    assert use({"path": "a.txt", "first_line": 2}) == "two\n"
    for first in (0, -1, 1.5, "2", True):
        with pytest.raises(Refusal, match="first_line is"):
            use({"path": "a.txt", "first_line": first})
    with pytest.raises(Refusal, match="fewer than 9 lines"):
        use({"path": "a.txt", "first_line": 9})
