"""The command as a process: signals, closed and full outputs, and the terminal."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

MAIN = [sys.executable, "-c", "import sys; from flashmoe.apps.cli import main; sys.exit(main())"]
LONG = ["--max-tokens", "400", "--temperature", "1", "--seed", "3"]


def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    command = [*MAIN, *map(str, arguments)]
    return subprocess.run(command, stdin=subprocess.DEVNULL, timeout=60, check=False, **options)


def test_interrupt_ends_the_reply_with_its_footer(store: Path):
    process = subprocess.Popen(
        [*MAIN, "run", str(store), "Hello", *LONG], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert len(first + out) < 390, "it went on"
    assert b"Traceback" not in err and b"tok/s" in err.splitlines()[-1]


def test_a_reader_that_leaves_is_no_error(store: Path):
    read, write = os.pipe()
    command = [*MAIN, "run", str(store), "Hello", *LONG]
    process = subprocess.Popen(command, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert os.read(read, 1)
    os.close(read)
    _, err = process.communicate(timeout=60)
    assert err == b"" and process.returncode == 1


@pytest.mark.parametrize(
    "arguments", [("run", "STORE", "Hello"), ("plan", "STORE"), ("plan", "STORE", "--json")]
)
def test_a_full_disk_is_one_line(store: Path, arguments):
    with open("/dev/full", "wb") as full:
        done = run(*(store if word == "STORE" else word for word in arguments), stdout=full)
    lines = done.stderr.decode().strip().splitlines()
    assert lines == ["error: standard output cannot be written: No space left on device"]
    assert done.returncode == 2


def test_closed_outputs_are_no_error(store: Path):
    command = " ".join([*MAIN[:1], "-c", f'"{MAIN[2]}"', "run", str(store), "Hello"])
    for closing in (">&-", "2>&-", ">&- 2>&-"):
        done = subprocess.run(
            ["sh", "-c", f"{command} --max-tokens 5 {closing}"],
            capture_output=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0 and b"Traceback" not in done.stderr


def test_an_argument_that_is_not_unicode_is_one_line(store: Path):
    done = run("run", store, os.fsdecode(b"caf\xe9"))
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: ") and done.stderr.count(b"\n") == 1


def test_output_that_the_locale_cannot_hold_is_replaced(store: Path):
    done = run("run", "/none/\u00e9", "x", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 1 and b"/none/\\xe9 is not a directory" in done.stderr


def test_on_a_terminal_the_footer_begins_a_line(store: Path):
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [*MAIN, "run", str(store), "Hello", "--max-tokens", "5"],
        stdin=follower,
        stdout=follower,
        stderr=follower,
    )
    os.close(follower)
    seen = b""
    try:
        while chunk := os.read(leader, 1000):
            seen += chunk
    except OSError:  # the terminal is gone
        pass
    assert process.wait(timeout=60) == 0
    text, footer = seen.decode().split("\r\n")[:2]
    assert len(text) >= 5 and footer.startswith("26 prompt tokens, 5 tokens, ")


def test_an_interrupt_while_modules_load_ends_the_process_in_silence():
    code = (
        "import signal, sys, types, flashmoe.apps as apps\n"
        "stand_in = types.ModuleType('flashmoe.apps.cli')\n"
        "stand_in.main = lambda: signal.raise_signal(signal.SIGINT)\n"
        "sys.modules['flashmoe.apps.cli'] = apps.cli = stand_in\n"
        "apps.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")
