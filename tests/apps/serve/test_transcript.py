"""Parts of a conversation become messages in the order of templates."""

import pytest

from flashmoe.apps.serve.ask import BadRequest
from flashmoe.apps.serve.transcript import Transcript, arguments_of


def test_parts_of_one_reply_lie_in_one_message() -> None:
    talk = Transcript()
    talk.user("Weather?")
    talk.reasoning("I should ")
    talk.reasoning("look.")
    talk.content("Looking.")
    talk.call("c1", "look", {"where": "Bath"})
    talk.call("c2", "look", {})
    talk.result("c2", "rain", "input[5].call_id")
    talk.content("Rain.")
    assert talk.messages == (
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "Looking.",
            "reasoning_content": "I should look.",
            "tool_calls": [
                {
                    "id": "c1",
                    "type": "function",
                    "function": {"name": "look", "arguments": {"where": "Bath"}},
                },
                {"id": "c2", "type": "function", "function": {"name": "look", "arguments": {}}},
            ],
        },
        {"role": "tool", "tool_call_id": "c2", "name": "look", "content": "rain"},
        {"role": "assistant", "content": "Rain."},
    )


def test_what_would_come_before_begins_another_message() -> None:
    talk = Transcript()
    talk.call("c1", "look", {})
    talk.content("And so:")
    talk.reasoning("Hm.")
    assert [sorted(message) for message in talk.messages] == [
        ["content", "role", "tool_calls"],
        ["content", "role"],
        ["content", "reasoning_content", "role"],
    ]


def test_texts_of_two_replies_stay_apart() -> None:
    together, apart = Transcript(), Transcript()
    for text in ("a", "b"):
        together.content(text)
        apart.content(text, apart=True)
    assert [m["content"] for m in together.messages] == ["ab"]
    assert [m["content"] for m in apart.messages] == ["a", "b"]


def test_system_texts_at_the_beginning_are_one() -> None:
    talk = Transcript()
    talk.system("Be brief.")
    talk.system("Be kind.")
    talk.user("Hello")
    talk.system("Now be long.")
    assert [(m["role"], m["content"]) for m in talk.messages] == [
        ("system", "Be brief.\n\nBe kind."),
        ("user", "Hello"),
        ("system", "Now be long."),
    ]


def test_a_result_needs_its_call() -> None:
    with pytest.raises(BadRequest, match="'c9', which no call before it has") as refused:
        Transcript().result("c9", "rain", "input[0].call_id")
    assert refused.value.param == "input[0].call_id"


@pytest.mark.parametrize(("text", "arguments"), [('{"a": 1}', {"a": 1}), ("", {}), (" ", {})])
def test_arguments_are_an_object(text: str, arguments: dict[str, int]) -> None:
    assert arguments_of(text, "at") == arguments


@pytest.mark.parametrize("text", ["[1]", "{", "null", '{"a": NaN}', "[" * 100_000])
def test_other_arguments_are_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="at is not the text of a JSON object"):
        arguments_of(text, "at")
