"""How a bench ends: one line and exit code 2 where it cannot be run as it was asked for."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flashmoe.errors import InputError
from tests.bench.conftest import BENCH, Load

ALONE = {"serve_load.py"}  # ends by itself
COMMANDS = sorted(
    path.name
    for path in BENCH.glob("*.py")
    if "add_argument(" in path.read_text() and "def main(" in path.read_text()
)


def called(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, BENCH / name, *arguments]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True)


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - ALONE))
def test_every_bench_says_what_it_takes(name: str) -> None:
    result = called(name, "--help")
    assert result.returncode == 0 and result.stdout.startswith("usage: ")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("cache.py", ("no-such-log",), "no-such-log cannot be read"),
        ("cache.py", ("log", "--share", "1.5"), "1.5 is no share"),
        ("convert.py", ("/no/such/place",), "there is no directory /no/such/place: make it"),
        ("convert.py", (".", "--gib", "1e9"), "are free: give a smaller --gib"),
        ("disk.py", ("/no/such/place",), "there is no directory /no/such/place"),
        ("disk.py", (".", "--gib", "0.001"), "give a larger --gib"),
        ("disk.py", (".", "--gib", "1e9"), "are free: give a smaller --gib"),
        ("kernels.py", ("--threads", "0"), "'0' is no whole number from 1 to 1024"),
        ("kernels.py", ("--columns", "100"), "--columns 100 is no multiple of 64"),
        ("masks.py", ("--vocabulary", __file__), "line 1 is no `base64 rank`"),
        ("plot.py", ("--results", "/no/such/place", "--out", "x.png"), "no results to draw"),
        ("quality.py", ("/no/such/checkpoint", "WORK"), "ended with 1: see above"),
        ("rounding.py", ("/no/such/store",), "/no/such/store is not a directory"),
        (
            "serve_prompt.py",
            ("--model", "x", "--url", "http://127.0.0.1:9"),
            "start `flashmoe serve`",
        ),
        ("spread.py", (".", "/no/such/place"), "there is no directory /no/such/place"),
        ("spread.py", (".", "."), "a directory is given twice"),
        ("synthetic.py", ("tiny", "--out", "/proc/x/y"), "are needed below /proc"),
        ("validity.py", ("ask", "/no/such/store"), "/no/such/store is not a directory"),
        ("validity.py", ("unpack", "/no/such/file", "WORK"), "/no/such/file"),
        ("versus_llamacpp.py", ("tiny", "--store", "/x", "--gguf", "/y"), "/x/manifest.json is"),
        ("versus_logits.py", (), "Our logits of given ids"),
        ("llamacpp_driver.py", (), "llama.cpp is missing"),
    ],
)
def test_a_mistake_is_a_line_and_no_traceback(
    name: str, arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    given = [str(tmp_path / "work") if word == "WORK" else word for word in arguments]
    result = called(name, *given)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr and "Traceback" not in result.stderr


def ended(load: Load, error: BaseException) -> object:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as end:
        load("command").run(main)
    return end.value.code


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (InputError("the\n store is odd"), "error: the store is odd"),
        (PermissionError(13, "Permission denied", "/place"), "error: /place: Permission denied"),
        (SystemExit("error: run as root"), "error: run as root"),
        (MemoryError("5 GiB"), "not enough memory for this (5 GiB)"),
    ],
)
def test_what_may_go_wrong_anywhere(
    load: Load, capsys: pytest.CaptureFixture[str], error: BaseException, message: str
) -> None:
    assert ended(load, error) == 2
    assert message in capsys.readouterr().err


def test_other_ends_pass_through(load: Load) -> None:
    assert ended(load, SystemExit(3)) == 3
    assert ended(load, KeyboardInterrupt()) == 130
    with pytest.raises(ZeroDivisionError):
        load("command").run(lambda: 1 / 0)


def test_values_of_flags(load: Load) -> None:
    command = load("command")
    assert command.whole(2, 5)("5") == 5 and command.above_zero("1e-3") == 1e-3
    assert command.shares("0.5,1") == [0.5, 1.0]
    readers: list[tuple[Callable[[str], object], tuple[str, ...]]] = [
        (command.whole(2, 5), ("1", "6", "3.0", "", "x")),
        (command.above_zero, ("0", "-1", "nan", "inf", "")),
        (command.shares, ("0", "0.5,", "2")),
    ]
    for read, wrong in readers:
        for text in wrong:
            with pytest.raises(argparse.ArgumentTypeError, match="no "):
                read(text)
