"""The chat without a terminal: lines in, replies out, exit codes as ``run`` has them."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flashmoe.apps.chat import program
from flashmoe.errors import ReadError
from flashmoe.text.pieces import Call, Content, Reasoning
from tests.apps.chat.fakes import Script
from tests.apps.conftest import Command, Result

QUICK = ("--ram", "floor", "--io-threads", 2, "--temperature", 0, "--no-think", "--max-tokens", 12)
"""Greedy; with a depth of reads, since each home is new and the disk would be measured for each."""
DEMO = ("chat", "demo", *QUICK)

Chat = Callable[..., Result]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def chat(command: Command, home: Path, monkeypatch: pytest.MonkeyPatch) -> Chat:
    """``chat("Hello\\n", "--session", "house")`` pipes that into the command."""

    def call(said: str | bytes, *arguments: object) -> Result:
        raw = said if isinstance(said, bytes) else said.encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
        return command(*DEMO, *arguments)

    return call


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Script:
    """The replies of the model, to be filled in."""
    script = Script([])
    monkeypatch.setattr(
        program, "_begin", lambda engine, session, sampling, turn, told: script.begin(turn, told)
    )
    return script


def test_a_line_is_a_turn_and_its_reply_plain_text(chat: Chat) -> None:
    result = chat("Continue: Emma\n\nContinue: Anne\n")
    assert result.code == 0 and "\x1b" not in result.out + result.err
    assert len(result.out.splitlines()) >= 2 and result.out.endswith("\n")
    assert result.err.count(" tok/s, TTFT ") == 2
    assert chat("").out == "" and chat("").code == 0


def test_only_the_content_is_standard_output(chat: Chat, scripted: Script) -> None:
    call = Call("calculator", '{"expression": "6 * 7"}')
    scripted.replies = [[Reasoning("hm"), call], [Content("It is "), Content("42\x1b[2J.")]]
    result = chat("What is 6 * 7?", "--tool", "calculator")
    assert result.out == "It is 42\x1b[2J.\n", "a pipe gets the text as it is"
    assert 'calculator {"expression": "6 * 7"}' in result.err and "calculator: 42" in result.err
    assert scripted.asked[1].messages[-1]["content"] == "42"


def test_lines_that_end_with_a_backslash_go_on(chat: Chat, scripted: Script) -> None:
    scripted.replies = [[Content("a")], [Content("b\n")], [Content("c")]]
    result = chat("one\\\n\\\ntwo\n//help\nlast\\")
    said = [turn.messages[-1]["content"] for turn in scripted.asked]
    assert said == ["one\n\ntwo", "/help", "last\n"]
    assert result.out == "a\nb\nc\n"


def test_commands_work_too(chat: Chat, scripted: Script) -> None:
    scripted.replies = [[Content("a")], [Content("b")]]
    result = chat("/system Be brief.\nHi\n/retry\n/stats\n/quit\nnever\n", "--seed", 3)
    assert result.out == "a\nb\n" and "2 replies" in result.err
    assert [m["content"] for m in scripted.asked[1].messages] == ["Be brief.", "Hi"]


@pytest.mark.parametrize(
    ("said", "flags", "told"),
    [
        ("/nonsense\n", (), "there is no command /nonsense"),
        (b"\xff\n", (), "standard input is not UTF-8"),
        ("x\n", ("--tools", "examples/tools.json"), "you type the results of these tools"),
        ("x\n", ("--tool", "shell"), "asks before each command, which takes a terminal"),
        ("x\n", ("--tool", "hammer"), "there is no tool 'hammer'"),
        ("x\n", ("--session", "../x"), "cannot name a conversation"),
        ("x\n", ("--system", "a", "--system-file", "b"), "say the same"),
        ("x\n", ("--system-file", "/none"), "the system prompt in /none cannot be read"),
        ("x\n", ("--think-budget", 5), "--no-think switches off: leave one out"),
        ("/sytem x\n", (), "did you mean /system?"),
        ("/system none.txt\n", (), "there is no file none.txt"),
        ("x\n", ("--no-prefix-cache", "--prefix-cache", "d"), "exclude each other"),
        ("x\n", ("--temperature", -1), "temperature is -1"),
        ("word " * 5000 + "\n", (), "the context 4096"),
    ],
)
def test_what_cannot_be_is_one_line_and_exit_code_2(
    chat: Chat, said: str | bytes, flags: tuple[object, ...], told: str
) -> None:
    result = chat(said, *flags)
    assert result.code == 2 and told in result.last and result.out == ""


def test_a_failure_ends_the_command(chat: Chat, scripted: Script) -> None:
    scripted.replies = [[Content("a")], [ReadError("the disk is gone")], [Content("never")]]
    result = chat("one\ntwo\nthree\n")
    assert (result.code, result.out) == (1, "a\n") and "the disk is gone" in result.last


def test_the_shell_is_not_even_offered(chat: Chat, scripted: Script) -> None:
    scripted.replies = [[Call("shell", '{"command": "touch mark"}')], [Content("no")]]
    result = chat("x", "--tool", "calculator")
    assert "there is no tool 'shell'" in result.err and not Path("mark").exists()


def test_a_kept_conversation_goes_on(chat: Chat, home: Path, scripted: Script) -> None:
    scripted.replies = [[Content("a")], [Content("b")]]
    prompt = home / "prompt.txt"
    prompt.write_text("Be brief.\n")
    first = chat("one\n", "--session", "house", "--system-file", prompt, "--tool", "calculator")
    second = chat("two\n", "--session", "house")
    assert (first.code, second.code, second.out) == (0, 0, "b\n")
    turn = scripted.asked[1]
    assert [m["content"] for m in turn.messages] == ["Be brief.", "one", "a", "two"]
    assert [tool["function"]["name"] for tool in turn.tools] == ["calculator"]
    kept = home / "data/flashmoe/sessions/house"
    assert json.loads((kept / "conversation.json").read_text())["store"] == "demo"
    assert kept.stat().st_mode & 0o077 == 0


def test_the_state_goes_on_too_and_the_answers_are_the_same(chat: Chat, home: Path) -> None:
    said = "Continue: " + " ".join(f"Miss Bates spoke of letter number {n}." for n in range(12))
    whole = chat(f"{said}\nAnd then?\n", "--no-prefix-cache")
    first = chat(f"{said}\n", "--session", "house")
    assert (home / "data/flashmoe/sessions/house/timeline.safetensors").exists()
    second = chat("And then?\n", "--session", "house", "--no-prefix-cache")
    assert first.out + second.out == whole.out
    passed = [int(re.findall(r"(\d+) prompt tokens", one.err)[-1]) for one in (first, second)]
    assert passed[1] < passed[0] / 2


def test_a_state_that_cannot_be_used_is_told_of_and_everything_is_read(
    chat: Chat, home: Path
) -> None:
    chat("Continue: Emma\n", "--session", "house")
    (home / "data/flashmoe/sessions/house/timeline.safetensors").write_bytes(b"nonsense")
    result = chat("And then?\n", "--session", "house")
    assert result.code == 0 and "the model's state is not used" in result.err


def test_a_damaged_conversation_is_refused(chat: Chat, home: Path) -> None:
    chat("Hi\n", "--session", "house")
    path = home / "data/flashmoe/sessions/house/conversation.json"
    path.write_text("{")
    result = chat("Hi\n", "--session", "house")
    assert result.code == 1 and "conversation.json is no JSON" in result.last
    assert path.read_text() == "{", "what is there is not written over"


MAIN = "import sys; from flashmoe.apps.cli import main; sys.exit(main())"


def test_an_interrupt_ends_it_with_what_has_come(home: Path) -> None:
    command = [sys.executable, "-c", MAIN, *map(str, DEMO), "--max-tokens", "3000"]
    process = subprocess.Popen(
        [*command, "--frequency-penalty", "-2", "--session", "house"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(os.environ),
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"Continue: Emma\nContinue: Anne\n")
    process.stdin.flush()
    assert process.stdout.read(20)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and b"Traceback" not in err
    kept = home / "data/flashmoe/sessions/house/conversation.json"
    assert [m.get("cut") for m in json.loads(kept.read_text())["messages"]] == [None, True]


def test_a_reader_that_goes_away_ends_it_in_silence(home: Path) -> None:
    command = [sys.executable, "-c", MAIN, *map(str, DEMO), "--max-tokens", "2000"]
    done = subprocess.run(
        ["sh", "-c", '"$@" | head -c 5', "sh", *command],
        input=b"Continue: Emma\nContinue: Anne\n",
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert len(done.stdout) == 5 and b"Traceback" not in done.stderr
