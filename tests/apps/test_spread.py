"""``spread`` and ``--store-dir`` from the command line: what is said, and what is refused."""

import json
import shutil

import pytest

from tests.apps.conftest import Command
from tests.synthetic import write_store

RUN = ("--raw", "Emma was", "--max-tokens", 6, "--temperature", 0)


@pytest.fixture
def demo(tmp_path):
    """The demo without its layer files, and two directories that have them."""
    from flashmoe.store.reader import locate
    from flashmoe.store.spread import spread

    places = (tmp_path / "a", tmp_path / "b")
    spread("demo", places)
    own = tmp_path / "own"
    shutil.copytree(locate("demo"), own, ignore=shutil.ignore_patterns("layer-*"))
    return own, places


def flags(places):
    return [word for place in places for word in ("--store-dir", place)]


def test_spread_says_what_each_directory_has_and_how_to_use_them(command: Command, tmp_path):
    path = write_store(tmp_path / "store")
    places = (tmp_path / "a", tmp_path / "b")
    result = command("spread", path, *flags(places))
    assert result.code == 0, result.err
    first, second, last = result.out.splitlines()
    assert first == f"{places[0]}: stripe 0 of 2 of {path}"
    assert second == f"{places[1]}: stripe 1 of 2 of {path}"
    assert last.endswith(f"use them with --store-dir {places[0]} --store-dir {places[1]}")
    assert "mirror 0 of 1" in command("spread", path, "--mirror", *flags([tmp_path / "c"])).out


def test_the_reply_is_the_same_and_each_drive_is_told(command: Command, demo):
    own, places = demo
    plain = command("run", "demo", *RUN)
    result = command("run", own, *RUN, *flags(places))
    assert result.code == 0 and result.out == plain.out
    for place in places:
        assert any(line.startswith(f"{place}: ") for line in result.err.splitlines())
    assert "--store-dir" not in plain.err and str(places[0]) not in plain.err
    # Without hints nothing is guessed, so no read lands after the last step.
    told = command("run", own, *RUN, "--stats", "json", "--no-hints", *flags(places))
    figures = json.loads(told.last)
    assert [drive["directories"] for drive in figures["drives"]] == [[str(p)] for p in places]
    assert sum(drive["bytes_read"] for drive in figures["drives"]) == figures["bytes_read"]
    assert all(drive["reads"] and not drive["failed"] for drive in figures["drives"])


def test_bench_plan_and_verify_take_the_directories(command: Command, demo):
    own, places = demo
    quick = ("--prompt-tokens", 5, "--gen-tokens", 3, "--repeat", 1, "--cold", "--ram", "floor")
    result = command("bench", own, *quick, *flags(places))
    assert result.code == 0, result.err
    assert f"{places[0]}: " in result.out
    assert len(json.loads(result.out.splitlines()[-1])["drives"]) == 2
    assert command("plan", own, *flags(places)).code == 0
    verified = command("verify", own, *flags(places))
    assert verified.code == 0 and "256 records" in verified.out and "no fault" in verified.out
    with (places[1] / "layer-003.1of2.safetensors").open("r+b") as file:
        file.seek(-9, 2)
        file.write(b"\1")
    verified = command("verify", own, *flags(places))
    assert verified.code == 1
    assert f"{places[1]}/layer-003.1of2.safetensors: expert 31 checksum" in verified.out


@pytest.mark.parametrize("name", ["run", "bench", "plan", "verify"])
def test_a_missing_part_is_named(command: Command, demo, name):
    own, places = demo
    words = ("hi",) if name == "run" else ()
    result = command(name, own, *words)
    assert result.code == 1 and "name them with --store-dir" in result.last
    result = command(name, own, *words, *flags(places[:1]))
    assert result.code == 1 and result.last.startswith("error: stripe 1 of 2 of ")
    result = command(name, own, *words, *flags([places[0], places[0]]))
    assert result.code == 2 and "given twice" in result.last


def test_spread_needs_a_directory(command: Command, demo):
    result = command("spread", demo[0])
    assert result.code == 2 and "--store-dir" in result.err
