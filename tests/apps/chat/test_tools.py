"""Every call is answered with text, and a tool that is off is never used."""

from __future__ import annotations

import pytest

from flashmoe.apps.chat.tools import RESULT_CHARACTERS, Refusal, Tool, Toolbox, bounded, defined
from flashmoe.errors import InputError
from flashmoe.text.pieces import Call


def refuse(arguments: object) -> str:
    raise Refusal("not today")


ECHO = Tool.of("echo", "says it again", {"text": {}}, use=lambda given: str(given["text"]))
NEVER = Tool.of("never", "refuses", {}, use=refuse)


@pytest.fixture
def box() -> Toolbox:
    box = Toolbox.of([ECHO, NEVER])
    box.switch("echo")
    return box


def test_what_is_off_is_neither_told_of_nor_used(box: Toolbox) -> None:
    assert box.definitions == (ECHO.definition,)
    assert box.answer(Call("echo", '{"text": "hi"}')) == "hi"
    assert box.answer(Call("never", "{}")) == "error: there is no tool 'never'; there are echo"
    assert box.switch("echo") is False and box.definitions == ()
    assert box.answer(Call("echo", '{"text": "hi"}')) == (
        "error: there is no tool 'echo'; there are none"
    )


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ("[1]", "error: the arguments are no JSON object"),
        ("{", "error: Expecting property name"),
        ("[" * 100_000, "error: "),
    ],
)
def test_arguments_that_are_none_are_answered(box: Toolbox, arguments: str, answer: str) -> None:
    assert box.answer(Call("echo", arguments)).startswith(answer)


def test_a_refusal_is_an_answer(box: Toolbox) -> None:
    box.switch("never")
    assert box.answer(Call("never", "{}")) == "error: not today"


def test_an_answer_is_bounded(box: Toolbox) -> None:
    text = "a" * RESULT_CHARACTERS + "z" * 9
    answer = box.answer(Call("echo", f'{{"text": "{text}"}}'))
    assert answer.startswith("aaa") and answer.endswith("zzz")
    assert "[… 9 characters left out …]" in answer
    assert bounded("short") == "short"


def test_tools_of_a_file_are_answered_by_a_person() -> None:
    definition = {"type": "function", "function": {"name": "ask", "description": "asks"}}
    (tool,) = defined([definition], lambda call: f"typed for {call.name} {call.arguments}")
    assert tool.use({"ö": 1}) == 'typed for ask {"ö": 1}'
    assert (tool.name, tool.description) == ("ask", "asks")
    for wrong in ({}, {"function": {}}, {"function": {"name": 3}}, {"function": "x"}):
        with pytest.raises(InputError, match="has no name"):
            defined([wrong], lambda call: "")


def test_names_are_told_apart() -> None:
    with pytest.raises(InputError, match="two tools named echo"):
        Toolbox.of([ECHO, ECHO])
    with pytest.raises(InputError, match="no tool 'ecko': there are echo, never"):
        Toolbox.of([ECHO, NEVER]).switch("ecko")
