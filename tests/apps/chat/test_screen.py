"""The picture on a terminal: scrollback whole, little redrawn, no escape from others' text."""

from __future__ import annotations

import io
import re
import sys
from typing import Any

import pyte
import pytest
from rich.console import Console

from flashmoe.apps.chat import screen
from flashmoe.apps.chat.screen import Drawn, Screen, Tail
from flashmoe.text.pieces import Call, Content, Reasoning
from tests.apps.chat.test_markdown import TEXT

COLUMNS, ROWS = 40, 10


class Window:
    """A console, and what its terminal shows."""

    def __init__(self, columns: int = COLUMNS, **console: Any) -> None:
        self.file = io.StringIO()
        options = {"force_terminal": True, "color_system": "standard", "legacy_windows": False}
        self.console = Console(
            file=self.file, width=columns, height=ROWS, highlight=False, **{**options, **console}
        )
        self.terminal = pyte.HistoryScreen(columns, ROWS, history=10_000)
        self.stream = pyte.Stream(self.terminal)
        self._fed = 0

    @property
    def raw(self) -> str:
        return self.file.getvalue()

    def lines(self) -> list[str]:
        """All that can be seen by scrolling up, without empty lines at the end."""
        self.terminal.set_mode(pyte.modes.LNM)  # what the line discipline does: \n is \r\n
        self.stream.feed(self.raw[self._fed :])
        self._fed = len(self.raw)
        above = [
            "".join(line[column].data for column in range(self.terminal.columns))
            for line in self.terminal.history.top
        ]
        return (
            "\n".join(line.rstrip() for line in [*above, *self.terminal.display])
            .rstrip()
            .split("\n")
        )


@pytest.fixture(autouse=True)
def every_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen, "FRAME_S", 0.0)


def say(window: Window, text: str, size: int = 3) -> None:
    drawn = Drawn(window.console)
    for at in range(0, len(text), size):
        drawn.heard((Content(text[at : at + size]),))
    drawn.finish()


def test_a_long_reply_is_whole_in_the_scrollback_and_once() -> None:
    window = Window()
    paragraphs = [f"Paragraph {n} " + "with words that wrap " * 4 for n in range(12)]
    say(window, "\n\n".join(paragraphs))
    text = " ".join(" ".join(window.lines()).split())
    assert text == " ".join(" ".join(paragraphs).split())


def test_a_block_higher_than_the_window_moves_below_and_is_printed_whole() -> None:
    window = Window()
    drawn = Drawn(window.console)
    code = "```\n" + "".join(f"line {n}\n" for n in range(40))
    drawn.heard((Content(code),))
    seen = window.lines()
    assert len(seen) <= ROWS and any("line 39" in line for line in seen)
    assert "line 3" not in [line.strip() for line in seen]
    drawn.heard((Content("```\n\nafter"),))
    drawn.finish()
    shown = [line.strip() for line in window.lines() if line.strip()]
    assert shown == [*(f"line {n}" for n in range(40)), "after"]


def test_what_is_final_is_not_drawn_again() -> None:
    window = Window()
    say(window, "The first.\n\n" + "and so on " * 50, size=2)
    assert "The first." not in window.raw[window.raw.index("and so") :]
    assert window.raw.count("and so") > 50, "what is below it was"


def test_all_kinds_of_blocks_end_up_as_they_would_all_at_once() -> None:
    window, whole = Window(), Window()
    say(window, TEXT)
    from flashmoe.apps.chat.markdown import shown

    whole.console.print(shown(TEXT))
    assert list(filter(str.strip, window.lines())) == list(filter(str.strip, whole.lines()))


def test_reasoning_is_a_few_lines_and_then_one() -> None:
    window = Window()
    now = iter(range(1000))
    drawn = Drawn(window.console, clock=lambda: float(next(now)))
    for n in range(30):
        drawn.heard((Reasoning(f"thought {n}\n"),))
    seen = window.lines()
    assert len(seen) == screen.REASONING_LINES and seen[-1] == "thought 29"
    drawn.heard((Content("Answer."),))
    drawn.finish()
    lines = [line for line in window.lines() if line]
    assert re.fullmatch(r"∴ reasoned in 30 tokens, [\d.]+ s", lines[0][:31].rstrip(" ("))
    assert lines[-1] == "Answer." and "thought" not in "".join(lines)


def test_reasoning_alone_leaves_its_line() -> None:
    window = Window()
    drawn = Drawn(window.console)
    drawn.heard((Reasoning("hm"),))
    drawn.finish()
    assert window.lines()[0].startswith("∴ reasoned in 1 token, ")


def test_a_call_that_is_being_written_is_told_of() -> None:
    window = Window()
    drawn = Drawn(window.console)
    drawn.heard((Content("I will look."),))
    for _ in range(5):
        drawn.heard((), withheld=True)
    assert window.lines()[-1] == "… a call is being written, 5 tokens"
    drawn.heard((Call("look", "{}"),))
    drawn.finish()
    assert window.lines() == ["I will look."]


@pytest.mark.parametrize("piece", [Content, Reasoning])
def test_no_escape_comes_through(piece: type[Content] | type[Reasoning]) -> None:
    window = Window()
    attack = "\x1b]0;owned\x07 \x1b[2J \x9b1m \x1bPq\x1b\\ \u202e"
    drawn = Drawn(window.console)
    drawn.heard((piece(attack),))
    drawn.heard((Content(f"`{attack}`\n\n```\n{attack}\n```\n"),))
    drawn.finish()
    view = Screen(None, window.console)  # type: ignore[arg-type]
    view.called(Call(attack, f'{{"a": "{attack}"}}'))
    view.answered(Call("a", "{}"), attack)
    view.note(attack)
    own = re.compile(r"\x1b\[(?:[0-9;]*m|\?25[lh]|2K|1A)")
    left = own.sub("", window.raw)
    assert not set(left) & {"\x1b", "\x07", "\x9b", "\u202e"}
    assert "owned" in left


def test_a_command_is_confirmed_with_all_that_it_hides() -> None:
    class Asked:
        def confirm(self, question: str) -> bool:
            return True

    window = Window(80)
    view = Screen(Asked(), window.console)  # type: ignore[arg-type]
    assert view.confirm("rm a\u200b\u200db\u3164 \u061cc\u200f\u2060\u00ad")
    assert "rm a\\u200b\\u200db\\u3164 \\u061cc\\u200f\\u2060\\u00ad" in "".join(window.lines())


def test_without_colours_there_are_none() -> None:
    window = Window(no_color=True)
    say(window, TEXT)
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", window.raw)


@pytest.mark.parametrize("columns", [1, 8, 20])
def test_narrow_windows(columns: int) -> None:
    window = Window(columns)
    say(window, "Some words that have to wrap.\n\n- and\n- a list")
    assert "words" in "".join(window.lines()).replace("\n", "")


def test_on_a_dumb_terminal_text_is_text(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    window = Window(_environ={"TERM": "dumb"})
    assert window.console.is_dumb_terminal
    view = Screen(None, window.console)  # type: ignore[arg-type]
    with view.hearing() as listener:
        listener.heard((Reasoning("hm"), Content("**bold** \x1b[2J")))
    assert capsys.readouterr().out == "**bold** ␛[2J\n"
    assert "\x1b" not in window.raw


def test_a_tail_is_the_last_lines() -> None:
    window = Window()
    window.console.print(Tail("\n".join("abcde"), 2))
    assert window.lines() == ["d", "e"]


def test_the_terminal_is_left_as_it_was_when_something_fails() -> None:
    window = Window()
    view = Screen(None, window.console)  # type: ignore[arg-type]
    with pytest.raises(ZeroDivisionError), view.hearing() as listener:
        listener.heard((Content("half a wor"),))
        raise ZeroDivisionError
    assert window.lines() == ["half a wor"]
    assert window.raw.rindex("\x1b[?25h") > window.raw.rindex("\x1b[?25l"), "the cursor is back"
