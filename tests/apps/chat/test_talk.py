"""The rounds of a turn, and what interrupts and failures leave of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from flashmoe.apps.chat import talk as talks
from flashmoe.apps.chat.talk import BROKEN_OFF, NOT_RUN, Talk
from flashmoe.apps.chat.tools import Tool, Toolbox
from flashmoe.apps.chat.transcript import Transcript
from flashmoe.errors import CancelledError, ContextError, InputError, ReadError
from flashmoe.text.pieces import Call, Content, Reasoning
from tests.apps.chat.fakes import Person, Script


class Timeline:
    """As much of a session as an interrupt touches."""

    cancelled = 0

    def cancel(self) -> None:
        self.cancelled += 1


def press() -> None:
    """Ctrl-C, now."""
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(autouse=True)
def interrupts() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, "it was given back"
    signal.signal(signal.SIGINT, before)


def talk_of(*replies: Any, use: Callable[[Any], str] = str, **more: Any) -> tuple[Talk, Script]:
    script = Script(list(replies), more.pop("finish", None))
    box = Toolbox.of([Tool.of("look", "looks", {}, use=use)])
    box.switch("look")
    transcript = Transcript(store="fake", **more)
    talk = Talk(
        Timeline(), script.begin, box, lambda steps, why: f"{len(steps)} {why}", transcript, 9
    )  # type: ignore[arg-type]
    return talk, script


def roles(talk: Talk) -> list[str]:
    return [message["role"] for message in talk.transcript.messages]


LOOK = Call("look", '{"at": 1}')


def test_a_turn_is_asked_and_answered() -> None:
    talk, script = talk_of([Reasoning("hm"), Content("He"), Content("llo")], system="Be brief.")
    person = Person()
    assert talk.say("Hi", person) == "stop"
    assert person.pieces == [Reasoning("hm"), Content("He"), Content("llo")]
    assert person.notes == ["3 stop"]
    assert talk.transcript.messages[1:] == [
        {"role": "assistant", "content": "Hello", "reasoning_content": "hm"}
    ]
    (turn,) = script.asked
    assert [m["content"] for m in turn.messages] == ["Be brief.", "Hi"]
    assert turn.tools == talk.toolbox.definitions and turn.tool_choice == "auto"
    assert turn.thinking is None, "for the template to say"
    assert talk.last_reasoning() == "hm"
    assert talk.spent.total("tokens") == 3


def test_reasoning_has_its_bound() -> None:
    talk, script = talk_of([Content("x")], thinking=True)
    talk.say("Hi", Person())
    assert (script.asked[0].thinking, script.asked[0].thinking_budget) == (True, 9)
    assert talk.last_reasoning() == ""
    talk, script = talk_of([Content("x")], thinking=False)
    talk.say("Hi", Person())
    assert (script.asked[0].thinking, script.asked[0].thinking_budget) == (False, None)


def test_calls_are_answered_until_the_model_answers() -> None:
    talk, script = talk_of(
        [Content("let me see"), LOOK, LOOK], [LOOK], [Content("done")], use=lambda given: str(given)
    )
    person = Person()
    assert talk.say("Hi", person) == "stop"
    assert roles(talk) == ["user", "assistant", "tool", "tool", "assistant", "tool", "assistant"]
    assert person.results == ["{'at': 1}"] * 3
    results = [m for m in talk.transcript.messages if m["role"] == "tool"]
    assert [m["tool_call_id"] for m in results] == ["call_1", "call_2", "call_3"]
    calls = [c["id"] for m in talk.transcript.messages for c in m.get("tool_calls", ())]
    assert calls == ["call_1", "call_2", "call_3"]
    assert script.asked[1].messages[-1]["content"] == "{'at': 1}"


def test_rounds_are_bounded_and_the_last_is_an_answer() -> None:
    talk, script = talk_of(*[[LOOK]] * talks.ROUNDS, [Content("enough")])
    person = Person()
    assert talk.say("Hi", person) == "stop"
    choices = [turn.tool_choice for turn in script.asked]
    assert choices == ["auto"] * talks.ROUNDS + ["none"]
    assert any("has to answer now" in note for note in person.notes)


def test_a_model_that_calls_all_the_same_is_answered_and_left() -> None:
    talk, _ = talk_of(*[[LOOK]] * (talks.ROUNDS + 1))
    talk.say("Hi", Person())
    assert roles(talk)[-2:] == ["assistant", "tool"]


def test_ctrl_c_ends_the_reply_and_what_has_come_stays() -> None:
    talk, _ = talk_of([Content("half "), press, Content("a word"), Content("never")])
    person = Person()
    assert talk.say("Hi", person) == "interrupt"
    assert talk.session.cancelled == 1  # type: ignore[attr-defined]
    assert person.notes == ["stopped here; /retry asks again", "2 interrupt"]
    assert talk.transcript.messages[1] == {
        "role": "assistant", "content": "half a word", "cut": True
    }  # fmt: skip


def test_ctrl_c_in_the_middle_of_a_pass() -> None:
    talk, _ = talk_of([Content("half"), press, CancelledError("cancelled")])
    assert talk.say("Hi", Person()) == "interrupt"
    assert talk.transcript.messages[1]["content"] == "half"


def test_a_second_ctrl_c_does_not_wait() -> None:
    talk, _ = talk_of([Content("half"), press, press, Content("never")])
    assert talk.say("Hi", Person()) == "interrupt"
    assert talk.transcript.messages[1]["content"] == "half"


def test_ctrl_c_before_a_word_takes_the_turn_back() -> None:
    talk, script = talk_of([press, CancelledError("cancelled")], [Content("Hello")])
    person = Person()
    assert talk.say("Hi", person) == "interrupt"
    assert talk.transcript.messages == [] and talk.unanswered == "Hi"
    assert "/retry asks again" in person.notes[-1]
    assert talk.retry(person) == "stop" and roles(talk) == ["user", "assistant"]
    assert script.asked[1].messages[-1]["content"] == "Hi"


def test_ctrl_c_while_the_prompt_is_prepared_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    talk, script = talk_of([Content("never")])
    begun: list[Any] = []

    def prepared(turn: Any, told: Any) -> Any:
        press()  # the session has no reply yet that this could cancel
        begun.append(script.begin(turn, told))
        return begun[0]

    monkeypatch.setattr(talk, "_begin", prepared)
    person = Person()
    assert talk.say("Hi", person) == "interrupt"
    assert person.pieces == [] and begun[0].closed
    assert talk.transcript.messages == [] and talk.unanswered == "Hi"


def test_calls_of_a_reply_that_was_stopped_are_not_run() -> None:
    talk, _ = talk_of([LOOK, press, Content("x")])
    person = Person()
    assert talk.say("Hi", person) == "interrupt"
    assert roles(talk) == ["user", "assistant", "tool"] and person.results == []
    assert talk.transcript.messages[-1]["content"] == NOT_RUN


def test_ctrl_c_while_a_tool_runs_ends_the_turn() -> None:
    talk, _ = talk_of([LOOK, LOOK], use=lambda given: press() or "never")  # type: ignore[func-returns-value]
    person = Person()
    assert talk.say("Hi", person) == "interrupt"
    assert [m["content"] for m in talk.transcript.messages[2:]] == [BROKEN_OFF, NOT_RUN]
    assert person.results == [] and f"look is {BROKEN_OFF}" in person.notes


@pytest.mark.parametrize(
    "error",
    [ContextError("too long"), ReadError("disk"), CancelledError("x"), ZeroDivisionError("a bug")],
)
def test_a_turn_that_fails_is_taken_back_whole(error: Exception) -> None:
    talk, _ = talk_of([Content("one")], [LOOK], [Content("tw"), error], [Content("two")])
    talk.say("first", Person())
    before = list(talk.transcript.messages)
    with pytest.raises(type(error)):
        talk.say("second", Person())
    assert talk.transcript.messages == before
    talk.retry(Person())
    assert [m["content"] for m in talk.transcript.messages] == ["first", "one", "second", "two"]


def test_retry_asks_the_last_turn_again_without_its_reply() -> None:
    talk, script = talk_of([LOOK], [Content("one")], [Content("other")])
    talk.say("Hi", Person())
    talk.retry(Person())
    assert [m["content"] for m in talk.transcript.messages] == ["Hi", "other"]
    assert len(script.asked[2].messages) == 1


def test_nothing_can_be_retried_before_anything_was_said() -> None:
    with pytest.raises(InputError, match="nothing has been said"):
        talk_of()[0].retry(Person())


def test_a_reply_that_was_cut_says_so() -> None:
    talk, _ = talk_of([Content("and so on")], finish="length")
    person = Person()
    assert talk.say("Hi", person) == "length"
    assert "as many tokens as --max-tokens allows" in person.notes[-1]


def test_a_context_that_is_full_is_told_from_a_reply_that_is_long_enough() -> None:
    talk, _ = talk_of([Content("and so on")], finish="length")
    talk._context = 40
    talk.session.ids = range(40)  # type: ignore[misc, assignment]
    person = Person()
    talk.say("Hi", person)
    assert "the context of 40 tokens is full; /clear begins anew" in person.notes[-1]


@pytest.mark.parametrize("pieces", [(Reasoning("hm"),), (Content(" \n"),)])
def test_a_reply_without_a_word_is_said_to_be_one(pieces: Any) -> None:
    talk, _ = talk_of(pieces, [LOOK], [Content("x")])
    person = Person()
    talk.say("Hi", person)
    assert "the reply has no text; /retry asks again" in person.notes
    person = Person()
    talk.say("Hi", person)
    assert not any("no text" in note for note in person.notes)
