"""What commands do to a conversation, the tools and the shelf."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flashmoe.apps.chat import keeping
from flashmoe.apps.chat.calculator import CALCULATOR
from flashmoe.apps.chat.desk import Desk, check_tools
from flashmoe.apps.chat.shelf import Kept, Shelf
from flashmoe.apps.chat.talk import Talk
from flashmoe.apps.chat.tools import Toolbox
from flashmoe.apps.chat.transcript import Transcript
from flashmoe.engine import Engine
from flashmoe.errors import InputError, SessionError
from flashmoe.text.pieces import Content, Reasoning
from flashmoe.text.syntax import Syntax
from tests.apps.chat.fakes import Person, Script


@pytest.fixture(scope="module")
def engine(store: Path) -> Iterator[Engine]:
    with Engine.open(store) as engine:
        yield engine


class Office:
    """A desk, and everything on it."""

    def __init__(self, engine: Engine, shelf: Shelf | None) -> None:
        self.person = Person()
        self.script = Script([])
        self.box = Toolbox.of([CALCULATOR])
        self.talk = Talk(
            engine.session(),
            self.script.begin,
            self.box,
            lambda steps, why: why,
            Transcript(store="demo"),
        )
        self.desk = Desk(engine, self.talk, shelf, self.person)

    def say(self, text: str, answer: str = "yes") -> str | None:
        self.script.replies.append([Reasoning("because"), Content(answer)])
        return self.desk.take(text)

    def shown(self) -> str:
        """All that commands have shown, as text."""
        console = Console(file=io.StringIO(), width=100)
        console.print(*self.person.shown)
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue()


@pytest.fixture
def office(engine: Engine, tmp_path: Path) -> Iterator[Office]:
    office = Office(engine, Shelf(tmp_path / "sessions"))
    yield office
    office.desk.leave()
    del office.talk.session  # the engine has room for one


def contents(office: Office) -> list[str]:
    return [message["content"] for message in office.talk.transcript.messages]


def test_what_is_said_and_what_leaves(office: Office) -> None:
    assert office.say("Hello") == "stop" and contents(office) == ["Hello", "yes"]
    assert office.desk.take("/help") == ""
    assert office.desk.take("/quit") is None
    assert "/sessions [NAME]" in office.shown()


def test_retry(office: Office) -> None:
    office.say("Hello", "no")
    assert office.say("/retry") == "stop" and contents(office) == ["Hello", "yes"]


def test_the_system_prompt_is_shown_set_read_and_removed(office: Office, tmp_path: Path) -> None:
    office.desk.take("/system")
    assert "there is no system prompt" in office.shown()
    office.desk.take("/system Be brief.\nVery.")
    office.desk.take("/system")
    assert "Be brief.\nVery." in office.shown()
    assert office.person.notes == ["the system prompt: 15 tokens, beginning “Be brief.”"]
    office.say("Hello")
    assert office.script.asked[0].messages[0] == {"role": "system", "content": "Be brief.\nVery."}
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("From a file.\nOf two lines.\n")
    office.desk.take(f"/system {prompt}")
    assert office.talk.transcript.system == "From a file.\nOf two lines."
    told, why = office.person.notes[-2:]
    assert told == f"the system prompt from {prompt}: 26 tokens, beginning “From a file.”"
    assert "the next turn reads the conversation anew" in why
    with pytest.raises(InputError, match=r"there is no file propmt\.txt"):
        office.desk.take("/system propmt.txt")
    assert office.talk.transcript.system == "From a file.\nOf two lines."
    office.desk.take("/system -")
    assert office.talk.transcript.system is None


def test_tools_are_listed_and_switched(office: Office) -> None:
    office.desk.take("/tools calculator")
    assert office.box.on == {"calculator"} == set(office.talk.transcript.tools)
    office.desk.take("/tools")
    assert "calculator  on" in office.shown() and "calculator" in office.desk.status
    office.desk.take("/tools calculator")
    assert not office.box.on and office.person.notes[-1] == "calculator is off"
    with pytest.raises(InputError, match="no tool 'hammer': there are calculator"):
        office.desk.take("/tools hammer")


def test_calls_that_cannot_be_read_are_told_at_once(
    engine: Engine, office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_tools(engine)
    monkeypatch.setattr(Engine, "syntax", Syntax())
    with pytest.raises(InputError, match="in a form that is not read"):
        office.desk.take("/tools calculator")
    assert not office.box.on


def test_reasoning_is_switched_and_shown(office: Office) -> None:
    office.desk.take("/reasoning")
    assert "without reasoning" in office.shown()
    assert office.talk.transcript.thinking is None
    assert "reasoning" in office.desk.status, "this template lets it, unless it is told otherwise"
    office.desk.take("/think")
    assert office.talk.transcript.thinking is False and "reasoning" not in office.desk.status
    office.desk.take("/think on")
    office.say("Hello")
    assert office.script.asked[0].thinking is True and "reasoning" in office.desk.status
    office.desk.take("/reasoning")
    assert "because" in office.shown()
    office.desk.take("/think")
    assert office.talk.transcript.thinking is False
    with pytest.raises(InputError, match="say on or off"):
        office.desk.take("/think hard")


@pytest.mark.parametrize("typed", ["/think off", "/think on", "/think"])
def test_a_template_without_a_switch_for_reasoning_says_so(
    office: Office, engine: Engine, monkeypatch: pytest.MonkeyPatch, typed: str
) -> None:
    before = engine.template.render
    monkeypatch.setattr(
        engine.template,
        "render",
        lambda messages, **more: before(messages, **{**more, "enable_thinking": None}),
    )
    with pytest.raises(InputError, match="no switch for reasoning"):
        office.desk.take(typed)
    assert office.talk.transcript.thinking is None
    monkeypatch.setattr(Engine, "syntax", Syntax())
    office.desk.take("/think off")
    assert office.talk.transcript.thinking is False, "which it is in any case"


def test_a_conversation_gets_a_name_and_is_kept_after_every_turn(office: Office) -> None:
    shelf = office.desk._shelf
    assert shelf is not None
    with pytest.raises(InputError, match="no name yet"):
        office.desk.take("/save")
    office.desk.take("/sessions")
    assert office.person.notes == ["no conversation is kept yet: /save NAME keeps this one"]
    office.say("one")
    office.desk.take("/save house")
    office.say("two", "no")
    with pytest.raises(SessionError, match="open in another process"):
        shelf.open("house")
    assert office.desk.names.sessions == ["house"]
    (entry,) = shelf.entries()
    assert entry.about == office.talk.transcript and entry.about.turns == 2
    office.desk.take("/sessions")
    assert "house" in office.shown() and str(shelf.directory) in office.shown().replace("\n", "")


def test_one_conversation_after_another(office: Office) -> None:
    office.say("one")
    office.desk.take("/save house")
    office.desk.take("/system Be brief.")
    office.desk.take("/clear")
    assert contents(office) == [] and office.talk.transcript.system == "Be brief."
    office.say("two")
    with pytest.raises(InputError, match="would be lost"):
        office.desk.take("/sessions house")
    with pytest.raises(InputError, match="there is a conversation house already"):
        office.desk.take("/save house")
    office.desk.take("/save garden")
    office.desk.take("/sessions house")
    assert (
        contents(office) == ["one", "yes"] and "house goes on: 1 turn, " in office.person.notes[-1]
    )
    assert office.person.memories == [("one", "yes")]
    office.desk.take("/sessions garden")
    assert contents(office) == ["two", "yes"]
    with pytest.raises(InputError, match="the conversation at hand"):
        office.desk.take("/sessions garden")
    with pytest.raises(InputError, match="there is no conversation attic"):
        office.desk.take("/sessions attic")


def test_clear_leaves_the_kept_one_as_it_was(office: Office) -> None:
    office.say("one")
    office.desk.take("/save house")
    office.desk.take("/clear")
    office.say("two")
    office.desk.leave()
    office.desk.take("/clear")
    office.desk.take("/sessions house")
    assert contents(office) == ["one", "yes"]


@pytest.mark.parametrize("line", ["/clear", "/save attic", "/sessions garden"])
def test_what_cannot_be_kept_stays_at_hand(
    office: Office, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    shelf = office.desk._shelf
    assert shelf is not None
    with shelf.open("garden") as kept:
        kept.write(Transcript("demo"))
    office.say("one")
    office.desk.take("/save house")
    with monkeypatch.context() as broken:
        broken.setattr(Kept, "write", refuse)
        with pytest.raises(SessionError, match="no room"):
            office.desk.take(line)
    assert contents(office) == ["one", "yes"] and "house" in office.desk.status
    with pytest.raises(SessionError, match="open in another process"):
        shelf.open("house")
    for name in ("garden", "attic"):
        shelf.open(name).close()  # nobody has it
    office.say("two")
    office.desk.leave()
    with shelf.open("house") as kept:
        assert kept.read() == office.talk.transcript and office.talk.transcript.turns == 2


def test_a_state_that_cannot_be_kept_keeps_nobody_from_leaving(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    office.say("one")
    office.desk.take("/save house")
    monkeypatch.setattr(keeping, "put_away", refuse)
    office.desk.take("/clear")
    assert "the model's state is not kept: no room" in office.person.notes
    assert contents(office) == [] and "not kept" in office.desk.status
    office.desk.take("/sessions house")
    assert contents(office) == ["one", "yes"]


def test_a_conversation_that_is_not_opened_is_let_go(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = office.desk._shelf
    assert shelf is not None
    with shelf.open("house") as kept:
        kept.write(Transcript("demo"))
    monkeypatch.setattr(office.desk, "leave", interrupt)
    for line in ("/sessions house", "/save garden"):
        with pytest.raises(KeyboardInterrupt):
            office.desk.take(line)
    monkeypatch.undo()
    for name in ("house", "garden"):
        shelf.open(name).close()


def refuse(*_: object) -> None:
    raise SessionError("no room")


def interrupt() -> None:
    raise KeyboardInterrupt


def test_tools_of_a_kept_conversation_come_back_if_they_are_there(office: Office) -> None:
    shelf = office.desk._shelf
    assert shelf is not None
    with shelf.open("house") as kept:
        kept.write(Transcript("demo", tools=["calculator", "hammer"]))
    office.desk.open(shelf.open("house"), fresh=Transcript("demo", system="New.", thinking=True))
    assert office.box.on == {"calculator"} and office.talk.transcript.tools == ["calculator"]
    assert any("hammer is not there any more" in note for note in office.person.notes)
    assert office.talk.transcript.system == "New." and office.talk.transcript.thinking
    office.desk.leave()
    office.desk.open(shelf.open("house"), fresh=Transcript("demo"))
    assert office.talk.transcript.thinking, "what is not said stays"
    office.desk.leave()
    office.desk.open(shelf.open("house"), fresh=Transcript("demo", thinking=False))
    assert office.talk.transcript.thinking is False


def test_stats(office: Office) -> None:
    office.desk.take("/stats")
    shown = office.shown()
    assert "none yet: figures come with the first reply" in shown and "tok/s" not in shown
    office.say("one")
    office.desk.take("/stats")
    shown = office.shown()
    assert "1, 1 reply in this process" in shown and "2 tokens" in shown and "tok/s" in shown


def test_stats_of_a_conversation_that_goes_on(office: Office) -> None:
    office.say("one")
    office.desk.take("/save house")
    office.desk.take("/clear")
    office.desk.take("/sessions house")
    office.desk.take("/stats")
    assert "1, none of them in this process: figures come with the next reply" in office.shown()


def test_a_reply_that_was_stopped_is_marked_when_its_conversation_goes_on(office: Office) -> None:
    office.script.replies.append([Content("half a "), press, Content("word")])
    assert office.desk.take("one") == "interrupt"
    assert "stopped here; /retry asks again" in office.person.notes
    office.desk.take("/save house")
    office.desk.take("/clear")
    office.desk.take("/sessions house")
    assert office.person.memories == [("one", "half a word")]
    assert office.person.notes[-2] == "that reply was stopped"
    office.say("two")
    office.desk.take("/clear")
    office.desk.take("/sessions house")
    assert office.person.memories[-1] == ("two", "yes")
    assert office.person.notes[-2] != "that reply was stopped"


def press() -> None:
    """Ctrl-C, now."""
    os.kill(os.getpid(), signal.SIGINT)


def test_another_store_goes_on_and_that_is_said(office: Office) -> None:
    shelf = office.desk._shelf
    assert shelf is not None
    with shelf.open("house") as kept:
        kept.write(Transcript("/stores/qwen/"))
    office.desk.open(shelf.open("house"), fresh=Transcript("demo"))
    assert office.person.notes[0] == "so far qwen has answered in house"
    assert office.desk.status.startswith("demo · house · ")


def test_the_greeting_says_what_there_is_and_how_to_learn_the_rest(office: Office) -> None:
    told = office.desk.greeting
    assert told.startswith("demo: a context of ") and "/help lists what can be typed" in told


def test_a_store_goes_by_the_name_of_its_directory(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    office.talk.transcript.store = "."
    assert office.desk.status.startswith(f"{tmp_path.name} · ")


def test_without_a_home_nothing_is_kept(engine: Engine) -> None:
    office: Any = Office(engine, None)
    for line in ("/sessions", "/save house"):
        with pytest.raises(InputError, match="no place for conversations"):
            office.desk.take(line)
    assert office.desk.names.sessions == []
    del office.talk.session
