"""The shell runs what was confirmed, within bounds, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from flashmoe.apps.chat.shell import OUTPUT_CHARACTERS, run_command, shell
from flashmoe.apps.chat.tools import Refusal

ENVIRONMENT = dict(os.environ)


def gone(pid: int) -> bool:
    """Whether a process has ended, within a second."""
    for _ in range(50):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        status = Path(f"/proc/{pid}/stat")
        if status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z":
            return True  # nobody has asked how it ended
        time.sleep(0.02)
    return False


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("echo out; echo err >&2; exit 3", "[exit code 3]\nout\nerr\n"),
        ("cat; echo done", "[exit code 0]\ndone\n"),
        ("test -t 0 || test -t 1 || echo none", "[exit code 0]\nnone\n"),
        ("(: < /dev/tty) 2> /dev/null || echo no tty", "[exit code 0]\nno tty\n"),
        ("printf '\\377'", "[exit code 0]\n\N{REPLACEMENT CHARACTER}"),
        ("kill -TERM $$", "[ended by signal 15]\n"),
        ("echo $TERM $PAGER", "[exit code 0]\ndumb cat\n"),
    ],
)
def test_how_a_command_ends_and_what_it_writes(command: str, told: str) -> None:
    assert run_command(command, ENVIRONMENT) == told


def test_time_runs_out_for_it_and_all_that_it_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    began = time.monotonic()
    told = run_command(f"sleep 30 & echo $! $$ > {pids}; echo before; wait", ENVIRONMENT, 0.5)
    assert told == "[stopped after 0.5 seconds]\nbefore\n"
    assert time.monotonic() - began < 5
    assert all(gone(int(pid)) for pid in pids.read_text().split())


def test_what_goes_on_in_the_background_ends_with_it(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    began = time.monotonic()
    told = run_command(f"sleep 30 & echo $! > {pid}; echo done", ENVIRONMENT)
    assert told == "[exit code 0]\ndone\n"
    assert time.monotonic() - began < 5 and gone(int(pid.read_text()))


def test_one_that_closes_its_output_has_its_time_too() -> None:
    began = time.monotonic()
    assert run_command("exec > /dev/null 2>&1; sleep 30", ENVIRONMENT, 0.4).startswith("[stopped")
    assert run_command("exec > /dev/null 2>&1; exit 4", ENVIRONMENT) == "[exit code 4]\n"
    assert time.monotonic() - began < 5


def test_endless_output_is_stopped_and_shortened() -> None:
    began = time.monotonic()
    told = run_command("yes", ENVIRONMENT)
    assert told.startswith("[stopped after 1048576 bytes of output]\ny\ny\n")
    assert "characters left out" in told and len(told) < OUTPUT_CHARACTERS + 200
    assert time.monotonic() - began < 10


def test_an_interrupt_ends_the_command(tmp_path: Path) -> None:
    pid = tmp_path / "pid"

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.4)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_command(f"echo $$ > {pid}; sleep 30", ENVIRONMENT)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert gone(int(pid.read_text()))


def test_nothing_runs_without_a_yes(tmp_path: Path) -> None:
    asked: list[str] = []

    def no(command: str) -> bool:
        asked.append(command)
        return False

    mark = tmp_path / "mark"
    with pytest.raises(Refusal, match="refused"):
        shell(no, ENVIRONMENT).use({"command": f"touch {mark}"})
    assert asked == [f"touch {mark}"] and not mark.exists()
    shell(lambda command: True, ENVIRONMENT).use({"command": f"touch {mark}"})
    assert mark.exists()
    for command in ("", "  ", "a\0b", 3):
        with pytest.raises(Refusal):
            shell(lambda command: True, ENVIRONMENT).use({"command": command})
