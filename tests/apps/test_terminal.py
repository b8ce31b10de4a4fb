"""Interrupts: none is lost where Python cannot raise it. Terminals: none is steered."""

from __future__ import annotations

import io
import signal
import sys
import time
from collections.abc import Iterator

import pytest

from flashmoe.apps import terminal


@pytest.fixture
def interrupts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    before = signal.getsignal(signal.SIGINT)
    yield terminal.take_interrupts()
    signal.signal(signal.SIGINT, before)


class Finalized:
    """Whose end raises."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __del__(self) -> None:
        raise self.error


def test_one_in_a_finalizer_comes_again(interrupts: None) -> None:
    with pytest.raises(KeyboardInterrupt):
        Finalized(KeyboardInterrupt())
        time.sleep(10)


def test_other_errors_there_are_told_as_ever(
    interrupts: None, capsys: pytest.CaptureFixture[str]
) -> None:
    Finalized(ValueError("not ours"))
    assert "ValueError: not ours" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_terminal_gets_no_control_characters_and_a_pipe_all(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    tell = terminal.write if name == "stdout" else terminal.note
    for is_terminal, shown in ((True, "a␛[2J\n"), (False, "a\x1b[2J\n")):
        stream = io.StringIO()
        monkeypatch.setattr(stream, "isatty", lambda is_terminal=is_terminal: is_terminal)
        monkeypatch.setattr(sys, name, stream)
        tell("a\x1b[2J" + ("\n" if name == "stdout" else ""))
        assert stream.getvalue() == shown
