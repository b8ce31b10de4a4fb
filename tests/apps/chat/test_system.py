"""A system prompt, or the file that has it: what looks like a file and is none is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from flashmoe.apps.chat.system import System, read_system, system_of
from flashmoe.errors import InputError


@pytest.mark.parametrize(
    "text",
    [
        "Be brief.",
        "Answer with yes/no.",
        "You are a pirate; quote U.S. law.",
        "/etc/passwd is a file.\nSay what it has.",
        "long " * 2000,
    ],
)
def test_words_are_the_prompt_itself(text: str) -> None:
    assert system_of(text) == System(text)


@pytest.mark.parametrize(
    "name",
    [
        "prompt",
        "prompt.txt",
        "my prompt.TXT",
        "./my prompt",
        "../a b",
        "/no/where at all",
        "~nobody-of-that-name/x",
        "~/none such",
        "x" * 5000,
        "a\0b",
    ],
)
def test_what_looks_like_a_file_and_is_none_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"there is no file .* in double quotes") as caught:
        system_of(name)
    assert len(str(caught.value)) < 300
    assert system_of(f'"{name}"') == System(name)


def test_quotes_within_a_prompt_are_its_own() -> None:
    assert system_of('"Yes" or "no"') == System('"Yes" or "no"')


def test_a_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("prompt", "two words"):
        (tmp_path / name).write_text("Be brief.\nVery.\n")
        found = System("Be brief.\nVery.", tmp_path / name)
        assert system_of(str(tmp_path / name)) == system_of(f"~/{name}") == found


def test_a_file_that_cannot_be_the_prompt_is_named(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "empty").write_text(" \n")
    for name, why in (("binary", "cannot be read"), ("empty", "is empty"), ("", "cannot be read")):
        with pytest.raises(InputError, match=f"{name} {why}"):
            system_of(str(tmp_path / name))
        with pytest.raises(InputError, match=why):
            read_system(tmp_path / name)
