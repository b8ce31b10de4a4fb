"""The progress of a prompt: a bar on a terminal, lines elsewhere, and when there is neither."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flashmoe.apps import progress
from flashmoe.progress import Progress
from tests.apps.conftest import Command

SHORT = ("--raw", "--max-tokens", 3, "--temperature", 0)
PROMPT = "Hello there, " * 9
STEPS = [Progress(done, 8, 0, seconds) for done, seconds in ((0.0, 0), (2, 4), (4, 6), (6, 12))]
DONE = Progress(8, 8, 0, 13.0)


def test_lines_come_every_five_seconds_and_not_for_the_end(capsys):
    with progress.prompt_shown(plain=True) as told:
        for state in (*STEPS, DONE):
            told(state)
    assert capsys.readouterr().err.splitlines() == [
        "prompt: 4 of 8 tokens, 0.7 tok/s, 0:00:06 left",
        "prompt: 6 of 8 tokens, 0.5 tok/s, 0:00:04 left",
    ]


def test_a_run_tells_of_its_prompt(command: Command, store, monkeypatch):
    quiet = command("run", store, PROMPT, *SHORT)
    assert "prompt: " not in quiet.err
    monkeypatch.setattr(progress, "PROMPT_INTERVAL_S", 0.0)
    told = command("run", store, PROMPT, *SHORT)
    lines = [line for line in told.err.splitlines() if line.startswith("prompt: ")]
    assert lines[0] == "prompt: 0 of 117 tokens, 0.0 tok/s, unknown time left"
    assert len(lines) == 4, "one a layer, none when it is done"
    assert told.out == quiet.out
    as_json = command("run", store, PROMPT, *SHORT, "--stats", "json")
    assert "prompt: " not in as_json.err and as_json.out == quiet.out


TERMINAL = """
import sys
from flashmoe.apps import progress
from flashmoe.progress import Progress
with progress.prompt_shown(plain=True) as told:
    for done, seconds in ((0, 0.0), (1, 0.9), (4, 4.0), (5, 4.01), (6, 12.0)):
        told(Progress(done, 8, 0, seconds))
    {end}
sys.stdout.write("the reply")
"""


def on_a_terminal(code: str) -> tuple[str, int]:
    """What a program leaves on a terminal that is 100 columns wide, and its exit code."""
    control, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=terminal, stderr=terminal, env=environment
    )
    os.close(terminal)
    shown = b""
    try:
        while part := os.read(control, 4096):
            shown += part
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(control)
    return shown.decode(), process.wait(30)


@pytest.mark.parametrize("end", ["told(Progress(8, 8, 0, 13.0))", "raise SystemExit(3)"])
def test_a_terminal_gets_a_bar_that_is_gone_afterwards(end: str):
    shown, code = on_a_terminal(TERMINAL.format(end=end))
    assert "4 of 8 tokens, 1.0 tok/s, 0:00:04 left" in shown
    assert "6 of 8 tokens, 0.5 tok/s, 0:00:04 left" in shown
    assert "1 of 8" not in shown and "5 of 8" not in shown, "too soon after the one before"
    last = shown.rpartition("left")[2]
    assert "\x1b[2K" in last and "\x1b[?25h" in last, "the line is erased, the cursor is back"
    assert (code, last.endswith("the reply")) == ((3, False) if "Exit" in end else (0, True))


INTERRUPTED = """
import os, signal, sys
from flashmoe.apps import cli, progress
from flashmoe.progress import Progress
progress.PATIENCE_S = 0.0
drawn = progress.PromptBar._draw
def draw(self, state):
    drawn(self, state)
    os.kill(os.getpid(), signal.SIGINT)
progress.PromptBar._draw = draw
sys.exit(cli.main({arguments!r}))
"""


def test_an_interrupt_takes_the_bar_away_before_the_footer(store: Path):
    arguments = ["run", str(store), PROMPT, *map(str, SHORT)]
    shown, code = on_a_terminal(INTERRUPTED.format(arguments=arguments))
    assert code == 128 + signal.SIGINT and "Traceback" not in shown
    bar, _, footer = shown.rpartition("\x1b[?25h")
    assert "of 117 tokens" in bar and "0 prompt tokens, 0 tokens" in footer


LOADING = """
import sys
from flashmoe.apps import progress
from flashmoe.apps.terminal import note
with progress.loading("a\\x1b[31mstore"):
    note("lossy")
    {end}
sys.stdout.write("ready")
"""


@pytest.mark.parametrize("end", ["pass", "raise SystemExit(3)"])
def test_a_terminal_is_told_of_loading_until_that_is_done(end: str):
    shown, code = on_a_terminal(LOADING.format(end=end))
    assert "loading a␛[31mstore …" in shown and "lossy" in shown
    last = shown.rpartition("…")[2]
    assert "\x1b[2K" in last and "\x1b[?25h" in last, "the line is erased, the cursor is back"
    assert (code, last.endswith("ready")) == ((3, False) if "Exit" in end else (0, True))


def test_loading_is_told_to_terminals_alone(capsys):
    with progress.loading("store"):
        pass
    assert capsys.readouterr() == ("", "")
