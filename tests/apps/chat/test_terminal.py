"""The real thing on a pseudo-terminal, with the shipped model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.apps.chat.terminal import Terminal

GREEDY = ("--ram", "floor", "--io-threads", "2", "--temperature", "0", "--no-think")
EMMA = "Continue: Emma was sitting one evening"

Start = Callable[..., Terminal]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """``start("--session", "house")`` is a terminal with a chat on it."""
    started: list[Terminal] = []

    def begin(*arguments: str, **more: Any) -> Terminal:
        started.append(Terminal(["chat", "demo", *GREEDY, *arguments], tmp_path, **more))
        return started[-1]

    yield begin
    for terminal in started:
        terminal.close()


def test_a_conversation(start: Start) -> None:
    chat = start("--max-tokens", "40")
    seen = chat.until("demo · not kept · 0 of 4096 tokens")
    assert "demo: a context of 4096 tokens, within " in seen
    chat.type(f"{EMMA}\r")
    seen = chat.until("TTFT")
    reply = seen[seen.index(EMMA) + len(EMMA) : seen.index(" prompt tokens")]
    assert len(reply.split()) > 10 and "<|im_end|>" not in seen
    chat.ready(2)
    chat.type("one\\\rtwo\x1b\rthree\r")
    assert re.search(r"> one\n· two\n· three\n", chat.until("TTFT", times=2))
    chat.ready(3)
    chat.type("/stats\r")
    assert re.search(r"turns +2, ", chat.until("replies in this process"))
    chat.type("/sytem\r")
    chat.until("error: there is no command /sytem; did you mean /system? /help lists them.")
    chat.type("/s\x1b[B\t")
    chat.until("/sessions")
    chat.type("\x03")  # empties the line
    chat.type("\x03")
    chat.until("Ctrl-C once more, or Ctrl-D, leaves")
    chat.type("\x03")
    assert chat.end() == 0


def test_lines_typed_while_a_reply_comes_are_said_one_by_one(start: Start) -> None:
    chat = start("--max-tokens", "400", "--frequency-penalty", "-2")
    while "loading demo …".encode() not in chat.raw:
        assert chat._read(), chat.text
    chat.type("/tools\r")  # the first is typed while the store loads
    chat.until("Calculate")
    assert "loading" not in chat.text
    chat.ready(2)
    chat.type(f"{EMMA}\r")
    chat.until(EMMA)
    start_of_reply = len(chat.text)
    while len(chat.text) < start_of_reply + 50:
        chat._read()
    chat.type("/stats\r/think\r")
    assert "TTFT" not in chat.text
    seen = chat.until("> /think")
    assert seen.index("TTFT") < seen.index("> /stats") < seen.index("> /think")
    assert "/stats" not in seen[: seen.index("TTFT")]


def test_ctrl_c_ends_the_reply_and_not_the_program(start: Start, tmp_path: Path) -> None:
    # Who likes a word the better the more often it was said never comes to an end
    chat = start("--session", "house", "--max-tokens", "3000", "--frequency-penalty", "-2")
    chat.ready()
    chat.type(f"{EMMA}\r")
    chat.until(EMMA)
    start_of_reply = len(chat.text)
    while len(chat.text) < start_of_reply + 200:
        chat._read()
    chat.type("\x03")
    chat.until("stopped here; /retry asks again")
    chat.until("TTFT")
    chat.ready(2)
    chat.type("/quit\r")
    assert chat.end() == 0
    kept = json.loads((tmp_path / "data/flashmoe/sessions/house/conversation.json").read_text())
    assert [message["role"] for message in kept["messages"]] == ["user", "assistant"]
    assert kept["messages"][1]["cut"] is True and len(kept["messages"][1]["content"]) > 100
    again = start("--session", "house")
    assert f"> {EMMA}\n" in again.until("that reply was stopped")


def test_a_conversation_goes_on_in_another_process_where_it_was(start: Start) -> None:
    said = " ".join(f"Miss Bates spoke of letter number {n}." for n in range(12))
    chat = start("--session", "house", "--max-tokens", "20")
    chat.ready()
    chat.type(f"Continue: {said}\r")
    first = int(re.findall(r"(\d+) prompt tokens", chat.until("TTFT"))[-1])
    other = start("--session", "house")
    assert "error: the conversation house is open in another process" in other.until("error: ")
    assert other.end() == 1
    chat.type("\x04")
    assert chat.end() == 0
    again = start("--session", "house", "--max-tokens", "20", "--no-prefix-cache")
    seen = again.until("tokens of it in the model")
    assert f"> {'Continue: ' + said}"[:90] in seen
    known = int(re.findall(r"house goes on: 1 turn, (\d+) tokens", seen)[0])
    assert known > first / 2
    again.ready(2)  # what was said last stands behind such a sign, too
    again.type("And then?\r")
    second = int(re.findall(r"(\d+) prompt tokens", again.until("TTFT"))[-1])
    assert second < first / 2, "the first turn is not read again"
    again.type("/sessions\r")
    again.until("kept in ")
    assert re.search(r"house +2 +", again.text)


def test_a_call_of_a_tool_that_the_person_answers(start: Start, tmp_path: Path) -> None:
    weather = {
        "name": "get_weather",
        "description": "Weather for a city on a day",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "day": {"type": "string"}},
            "required": ["city", "day"],
        },
    }
    (tmp_path / "tools.json").write_text(json.dumps([{"type": "function", "function": weather}]))
    chat = start("--tools", "tools.json", "--max-tokens", "60")
    chat.until("get_weather")
    chat.type("What is the weather in Paris on Monday?\r")
    chat.until("get_weather was called: type its result")
    assert '→ get_weather {"city": "Paris", "day": "Monday"}' in chat.text
    chat.until("get_weather =")
    chat.type("17 degrees, rain\r")
    chat.until("TTFT", times=2)
    chat.until("17 degrees, rain", times=3)  # typed, shown as the result, and in the answer
    chat.type("/tools\r")
    assert re.search(r"get_weather +on .*you type its results", chat.until("Calculate"))


SCRIPTED = r"""
import json
from flashmoe.apps.chat import program
from flashmoe.text.pieces import Call, Content
from tests.apps.chat.fakes import Script
command = r"echo ran >> mark; printf '\033[31mred'"
call = Call("shell", json.dumps({"command": command}))
script = Script([[call], [Content("It **was** refused.")], [call], [Content("It ran.")]])
program._begin = lambda engine, session, sampling, turn, told: script.begin(turn, told)
"""


def test_the_shell_asks_before_each_command(start: Start, tmp_path: Path) -> None:
    root = str(Path(__file__).parents[3])
    chat = start("--tool", "shell", first=SCRIPTED, PYTHONPATH=root)
    chat.ready()
    chat.type("Run it.\r")
    chat.until("Run it? [y/N]")
    assert r"echo ran >> mark; printf '\033[31mred'" in chat.text
    chat.type("\r")
    chat.until("It was refused.")
    assert not (tmp_path / "mark").exists()
    chat.ready(2)
    chat.type("Once more.\r")
    chat.until("Run it? [y/N]", times=2)
    chat.type("y\r")
    chat.until("It ran.")
    assert (tmp_path / "mark").read_text() == "ran\n"
    assert "[exit code 0]" in chat.text and "␛[31mred" in chat.text


def test_ctrl_c_ends_a_command_that_runs_and_the_turn(start: Start, tmp_path: Path) -> None:
    root = str(Path(__file__).parents[3])
    slow = SCRIPTED.replace("echo ran >> mark", "sleep 300; echo ran >> mark")
    chat = start("--tool", "shell", "--session", "house", first=slow, PYTHONPATH=root)
    chat.ready()
    chat.type("Run it.\r")
    chat.until("Run it? [y/N]")
    chat.type("y\r")
    chat.until("running; Ctrl-C stops it")
    chat.type("\x03")
    chat.until("shell is broken off: stopped by the user before it had ended")
    chat.ready(2)
    chat.type("\x04")
    assert chat.end() == 0 and not (tmp_path / "mark").exists()
    kept = json.loads((tmp_path / "data/flashmoe/sessions/house/conversation.json").read_text())
    assert kept["messages"][-1]["role"] == "tool"
    assert kept["messages"][-1]["content"].startswith("broken off: ")


def test_a_narrow_window_without_colours(start: Start) -> None:
    chat = start("--max-tokens", "30", columns=24, rows=12, NO_COLOR="1")
    chat.ready()
    chat.type("Continue: Emma\r")
    chat.until("peak")
    assert not re.search(rb"\x1b\[[0-9;]*3[1-7]m", chat.raw)


def test_a_dumb_terminal(start: Start) -> None:
    chat = start("--max-tokens", "30", TERM="dumb")
    chat.ready()
    chat.type(f"{EMMA}\r")
    chat.until("TTFT")
    chat.type("/quit\r")
    assert chat.end() == 0
    assert not re.search(rb"\x1b\[\d*A", chat.raw), "nothing is drawn over"
