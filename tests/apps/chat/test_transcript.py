"""A transcript survives its file, and is one that a template can render."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmoe.apps.chat.transcript import FORMAT, Transcript, reply_of, result_of
from flashmoe.errors import SessionError
from flashmoe.text.pieces import Call, Content, Reasoning

CALL = Call("add", '{"a": 1}')


def conversation() -> Transcript:
    first = reply_of(
        [Reasoning("hm"), Content("let me "), Content("see"), CALL], ["call_1"], cut=False
    )
    return Transcript(
        store="demo",
        system="Be brief.",
        tools=["add"],
        messages=[
            {"role": "user", "content": "first"},
            first,
            result_of("call_1", CALL, "2"),
            reply_of([Content("tw")], [], cut=True),
            {"role": "user", "content": "second"},
            reply_of([Content("yes")], [], cut=False),
        ],
    )


def test_what_pieces_come_to() -> None:
    message = conversation().messages[1]
    function = {"name": "add", "arguments": {"a": 1}}
    assert message == {
        "role": "assistant",
        "content": "let me see",
        "reasoning_content": "hm",
        "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
    }


def test_a_template_gets_the_system_prompt_first_and_no_notes_of_ours() -> None:
    asked = conversation().asked()
    assert asked[0] == {"role": "system", "content": "Be brief."}
    assert [message["role"] for message in asked[1:]] == [
        "user", "assistant", "tool", "assistant", "user", "assistant"
    ]  # fmt: skip
    assert not [message for message in asked if "cut" in message]
    assert conversation().messages[3]["cut"] is True


def test_where_a_conversation_was_left() -> None:
    talk = conversation()
    assert talk.last_turn() == ("second", "yes") and not talk.stopped
    talk.take_back()
    assert talk.last_turn() == ("first", "let me see\n\ntw") and talk.stopped
    assert Transcript().last_turn() == ("", "") and not Transcript().stopped


@pytest.mark.parametrize("thinking", [None, True, False])
def test_reasoning_may_be_left_to_the_template(thinking: bool | None) -> None:
    talk = Transcript("demo", thinking=thinking)
    assert Transcript.from_json(talk.to_json(), "file") == talk
    damaged = talk.to_json().replace(f'"thinking": {json.dumps(thinking)}', '"thinking": "yes"')
    with pytest.raises(SessionError, match="is damaged"):
        Transcript.from_json(damaged, "file")


def test_a_turn_is_taken_back_with_all_its_rounds() -> None:
    talk = conversation()
    assert (talk.turns, talk.opening) == (2, "first")
    assert talk.take_back() == "second" and talk.turns == 1 and len(talk.messages) == 4
    assert talk.take_back() == "first" and talk.messages == []
    assert talk.take_back() is None and talk.opening == ""


@given(st.text(), st.booleans(), st.none() | st.text())
def test_what_is_written_is_read(said: str, thinking: bool, system: str | None) -> None:
    talk = conversation()
    talk.messages[0]["content"], talk.thinking, talk.system = said, thinking, system
    assert Transcript.from_json(talk.to_json(), "here") == talk


@pytest.mark.parametrize(
    "change",
    [
        {"format": "flashmoe-conversation-0"}, {"messages": {}}, {"messages": [1]},
        {"messages": [{"role": "system", "content": ""}]}, {"messages": [{"role": "user"}]},
        {"messages": [{"role": "user", "content": "", "tool_calls": 3}]},
        {"system": 3}, {"tools": [3]}, {"thinking": "yes"}, {"more": 1}, {"store": None},
    ],
)  # fmt: skip
def test_what_is_none_is_refused_by_its_place(change: dict[str, object]) -> None:
    sound = json.loads(conversation().to_json())
    assert sound["format"] == FORMAT
    for text in (json.dumps({**sound, **change}), "{", "[]", "[" * 100_000):
        with pytest.raises(SessionError, match="here is"):
            Transcript.from_json(text, "here")
