"""The keys: what sends, what makes a line, what leaves, and what answers a question."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from flashmoe.apps.chat.commands import Names
from flashmoe.apps.chat.editor import Editor

ALT_ENTER, CTRL_C, CTRL_D = "\x1b\r", "\x03", "\x04"


class Desk:
    """An editor with its keyboard, and what it has told."""

    def __init__(self, keys: PipeInput, history: Path | None = None) -> None:
        self.keys = keys
        self.told: list[str] = []
        self.editor = Editor(history, self.told.append, keys, DummyOutput())

    def line(self, typed: str) -> str | None:
        self.keys.send_text(typed)
        return self.editor.line("status", Names(tools=("calculator",)))

    def later(self, typed: str) -> None:
        """Type when the question is there."""

        def type_it() -> None:
            time.sleep(0.3)
            self.keys.send_text(typed)

        threading.Thread(target=type_it, daemon=True).start()


@pytest.fixture
def desk() -> Iterator[Desk]:
    with create_pipe_input() as keys:
        yield Desk(keys)


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("Hello\r", "Hello"),
        (f"one{ALT_ENTER}two\r", "one\ntwo"),
        ("one\ntwo\r", "one\ntwo"),  # Ctrl-J
        ("one\\\rtwo\\\r\\\rthree\r", "one\ntwo\n\nthree"),
        ("\x1b[200~pasted\r\nlines\n\x1b[201~\r", "pasted\nlines\n"),
        ("\r  \rHello\r", "  Hello"),
        (f"wrong{CTRL_C}right\r", "right"),
        (CTRL_D, None),
        (f"{CTRL_C}{CTRL_C}", None),
        (f"{CTRL_C}Hello\r", "Hello"),
    ],
)
def test_what_keys_come_to(desk: Desk, typed: str, line: str | None) -> None:
    found = desk.line(typed)
    assert (found.strip() if found and line and line.startswith(" ") else found) == (
        line.strip() if line and line.startswith(" ") else line
    )


def test_the_first_ctrl_c_tells_what_the_second_does(desk: Desk) -> None:
    assert desk.line(f"{CTRL_C}{CTRL_C}") is None
    assert desk.told == ["Ctrl-C once more, or Ctrl-D, leaves"]


@pytest.mark.parametrize(
    ("typed", "yes"),
    [("y\r", True), (" YES \r", True), ("\r", False), ("n\r", False), ("yep\r", False)],
)
def test_only_a_yes_is_one(desk: Desk, typed: str, yes: bool) -> None:
    desk.later(typed)
    assert desk.editor.confirm("Run it? ") is yes


def test_leaving_a_question_is_no_yes(desk: Desk) -> None:
    desk.later(CTRL_D)
    assert desk.editor.confirm("Run it? ") is False
    desk.later(CTRL_C)
    with pytest.raises(KeyboardInterrupt):
        desk.editor.confirm("Run it? ")


def test_what_was_typed_before_a_question_does_not_answer_it(desk: Desk) -> None:
    assert desk.line("run it\ry\r") == "run it"
    desk.later("n\r")
    assert desk.editor.confirm("Run it? ") is False


def test_an_answer_may_have_lines(desk: Desk) -> None:
    desk.later(f"17 degrees,{ALT_ENTER}rain\r")
    assert desk.editor.text("get_weather = ") == "17 degrees,\nrain"
    desk.later(CTRL_D)
    assert desk.editor.text("get_weather = ") == ""


def test_history_is_kept_for_this_user_and_has_no_answers(tmp_path: Path) -> None:
    history = tmp_path / "data" / "history"
    with create_pipe_input() as keys:
        desk = Desk(keys, history)
        assert desk.line("one\\\rtwo\r") == "one\ntwo"
        desk.later("y\r")
        assert desk.editor.confirm("? ")
    assert history.stat().st_mode & 0o077 == 0
    with create_pipe_input() as keys:
        assert Desk(keys, history).line("\x1b[A\r") == "one\ntwo"
    assert "+y" not in history.read_text()


def test_a_history_that_cannot_be_kept_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with create_pipe_input() as keys:
        assert Desk(keys, tmp_path / "file" / "history").line("Hello\r") == "Hello"


def test_commands_names_and_files_are_completed(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert desk.line("Hello\r") == "Hello"  # the names are known
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompt.txt").touch()
    completer = desk.editor._lines.completer
    assert completer is not None

    def offered(before: str) -> list[str]:
        found = completer.get_completions(Document(before), CompleteEvent())
        return [before[: len(before) + one.start_position] + one.text for one in found]

    assert offered("/sy") == ["/system"]
    assert offered("/tools c") == ["/tools calculator"]
    assert offered("/system pro") == ["/system prompt.txt"]
    assert offered("Hello /sy") == []
