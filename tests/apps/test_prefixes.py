"""``prefix list`` and ``prefix clear``: what is shown, what is asked, what goes."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from pathlib import Path

import pytest

from flashmoe.apps.prefixes import age_s
from flashmoe.errors import InputError
from tests.apps.conftest import Command

PROMPT = "Emma was sitting one evening with her father. " * 8
RUN = ("--raw", "--max-tokens", 2, "--temperature", 0, "--no-profile")


class Terminal(io.StringIO):
    """A person who types this."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def cache(command: Command, store: Path, tmp_path: Path) -> Path:
    """The states after a prompt, with two forms of keys and values."""
    path = tmp_path / "cache"
    for kv in ("f16", "int8"):
        result = command("run", store, PROMPT, *RUN, "--kv", kv, "--prefix-cache", path)
        assert result.code == 0, result.err
    return path


def files(path: Path) -> set[Path]:
    return set(path.rglob("*.prefix"))


def test_a_line_a_model_says_how_much_is_kept_of_which_store(
    command: Command, cache: Path, store: Path
) -> None:
    result = command("prefix", "list", cache)
    assert result.code == 0, result.err
    head, *rows, total = result.out.splitlines()
    assert head.split() == ["id", "kept", "longest", "size", "last", "used", "store"]
    rooms = sorted(path.name for path in cache.iterdir())
    assert sorted(row.split()[0] for row in rows) == rooms
    assert [name.partition("-")[2] for name in rooms] == ["f16", "int8"]
    for row in rows:
        assert row.endswith(f"  {store}") and str(len(PROMPT)) in row.split()
        assert time.strftime("%Y-%m-%d") in row
    assert total.endswith(f" in {cache}")
    found = json.loads(command("prefix", "list", cache, "--json").out)
    assert found["bytes"] == sum(path.stat().st_size for path in files(cache))
    assert {model["kv"] for model in found["models"]} == {"f16", "int8"}
    assert {model["store"] for model in found["models"]} == {str(store)}
    assert all(model["longest_tokens"] == len(PROMPT) for model in found["models"])
    assert sum(model["files"] for model in found["models"]) == len(files(cache))
    assert found["broken"] == []


def test_broken_files_are_named_and_can_be_removed_alone(command: Command, cache: Path) -> None:
    victim = sorted(cache.rglob("state-*"))[0]
    whole = victim.read_bytes()
    victim.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    assert "broken: " not in command("prefix", "list", cache).out
    told = command("prefix", "list", cache, "--check").out
    assert f"broken: {victim}: it does not match its checksum" in told
    before = files(cache)
    assert command("prefix", "clear", cache, "--broken", "--yes").out.startswith("removed 1 file,")
    assert before - files(cache) == {victim}
    assert command("prefix", "clear", cache, "--broken", "-y").out == "nothing to remove\n"


def test_nothing_goes_without_a_yes(
    command: Command, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(cache)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    result = command("prefix", "clear", cache)
    assert result.code == 2 and f"remove {len(before)} files" in result.err
    assert "give --yes" in result.err and files(cache) == before
    for answer in ("", "\n", "n\n", "yesterday\n"):
        monkeypatch.setattr(sys, "stdin", Terminal(answer))
        result = command("prefix", "clear", cache)
        assert (result.code, result.out) == (0, "nothing was removed\n")
        assert f"from {cache}? [y/N] " in result.err and files(cache) == before
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    result = command("prefix", "clear", cache)
    assert result.code == 0 and result.out.startswith(f"removed {len(before)} files, ")
    assert list(cache.iterdir()) == []
    assert command("prefix", "list", cache).out == f"nothing is kept in {cache}\n"


def test_a_part_is_chosen_by_model_store_and_age(
    command: Command, cache: Path, store: Path, tmp_path: Path
) -> None:
    (int8,) = cache.glob("*-int8")
    (f16,) = cache.glob("*-f16")
    long_ago = time.time() - 3 * 86400
    for path in files(f16):
        os.utime(path, (long_ago, long_ago))
    for flags in (("--older-than", "4d"), ("--older-than", "2d", "--model", int8.name)):
        assert command("prefix", "clear", cache, *flags, "-y").out == "nothing to remove\n"
    assert files(f16) and files(int8)
    assert command("prefix", "clear", cache, "--older-than", "2d", "-y").code == 0
    assert not files(f16) and files(int8)
    result = command("prefix", "clear", cache, "--store", tmp_path / "other", "-y")
    assert result.code == 2 and "nothing is kept of it" in result.err
    result = command("prefix", "clear", cache, "--store", store, "--model", int8.name[:12], "-y")
    assert result.code == 0 and not files(cache)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--older-than", "soon"), "--older-than soon is no age: write it as 90m"),
        (("--older-than", "-3d"), "is no age"),
        (("--model", "ffff"), "has no such id; `prefix list` shows them"),
        (("--model", ""), "has no such id"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    command: Command, cache: Path, flags: tuple[str, ...], message: str
) -> None:
    before = files(cache)
    result = command("prefix", "clear", cache, *flags, "--yes")
    assert result.code == 2 and message in result.err
    assert files(cache) == before


def test_without_a_directory_it_is_the_one_that_chat_and_serve_use(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    place = tmp_path / "flashmoe" / "prefixes"
    result = command("prefix", "list")
    assert result.code == 2 and f"there is no prefix cache in {place}" in result.err
    place.mkdir(parents=True)
    assert command("prefix", "list").out == f"nothing is kept in {place}\n"


def test_ages() -> None:
    assert [age_s(text) for text in ("90m", "12h", "30d", "8w", "0m")] == [
        5400, 43200, 2592000, 4838400, 0,
    ]  # fmt: skip
    for text in ("", "m", "1", "1.5h", "1y", "9" * 10 + "m"):
        with pytest.raises(InputError):
            age_s(text)
