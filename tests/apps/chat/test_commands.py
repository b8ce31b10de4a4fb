"""What a line means, and what completes it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmoe.apps.chat import commands
from flashmoe.apps.chat.commands import COMMANDS, Command, Names, Said, completions, read
from flashmoe.errors import InputError

NAMES = Names(tools=("calculator", "shell"), sessions=("holiday", "house"))


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("Hello", Said("Hello")),
        ("/help", Command("help")),
        ("/help  ", Command("help")),
        ("/system Be brief.\nVery.", Command("system", "Be brief.\nVery.")),
        ("/save  holiday ", Command("save", "holiday")),
        ("//help", Said("/help")),
        (" /help", Command("help")),
        ("\n/save x\n", Command("save", "x")),
        ("//usr/bin/env is a path", Said("/usr/bin/env is a path")),
        ("///", Said("//")),
        ("  // a comment", Said("  // a comment")),
        ("1/2 is a half", Said("1/2 is a half")),
    ],
)
def test_what_a_line_means(line: str, meant: Command | Said) -> None:
    assert read(line) == meant


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("/sytem x", "there is no command /sytem; did you mean /system? /help lists them."),
        ("/quti", "there is no command /quti; did you mean /quit?"),
        (" /Quit", "there is no command /Quit; did you mean /quit?"),
        ("/system2 x", "there is no command /system2; did you mean /system?"),
        ("/sys-tem x", "there is no command /sys-tem; did you mean /system?"),
        ("/usr/bin/env is", "there is no command /usr/bin/env; /help lists them. To say what"),
        ("/" + "x" * 5000, "x…; /help lists them."),
        ("/ help", "there is no command /; "),
        ("/", "double the slash: //"),
        ("/quit now", "/quit takes nothing: leave out 'now'"),
    ],
)
def test_what_is_no_command_is_named(line: str, told: str) -> None:
    with pytest.raises(InputError) as caught:
        read(line)
    assert told in str(caught.value)


@given(st.text() | st.text(alphabet=" /\nhelpsytm"))
def test_whatever_is_typed_is_said_commanded_or_refused(line: str) -> None:
    try:
        meant = read(line)
    except InputError:
        assert line.strip().startswith("/")
        return
    if line.strip().startswith("/") and not line.strip().startswith("//"):
        assert isinstance(meant, Command), "never said: it may be a command that was mistyped"
    assert isinstance(meant, Command) or meant.text == line.removeprefix(
        "/" * line.startswith("//")
    )


@pytest.mark.parametrize(
    ("before", "offered"),
    [
        ("/s", ["/system", "/sessions", "/save", "/stats"]),
        ("/tools ", ["calculator", "shell"]),
        ("/tools s", ["shell"]),
        ("/sessions ho", ["holiday", "house"]),
        ("/save hol", ["holiday"]),
        ("/think o", ["on", "off"]),
        ("/help ", []),
        ("Hello /s", []),
        ("//s", []),
        ("/s\n", []),
    ],
)
def test_what_completes(before: str, offered: list[str]) -> None:
    assert completions(before, NAMES) == offered


def test_help_names_every_command_and_argument() -> None:
    shown = [command for command, _ in commands.help_rows()]
    assert [word.split()[0] for word in shown] == [f"/{name}" for name in COMMANDS]
    assert "/system [TEXT | FILE | -]" in shown
