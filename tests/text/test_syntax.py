"""Which marks a template's replies have, and whether a prompt ends inside reasoning."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmoe.text import ChatTemplate, Segment, Tokenizer
from flashmoe.text.syntax import Mark, Syntax
from tests.text.conftest import AUSTEN
from tests.text.templates import HERMES, PLAIN, QWEN

FOREIGN = (
    "{% for m in messages %}{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name }}"
    "<arg_key>{{ tools }}</arg_key></tool_call>{% endfor %}{% endfor %}"
)
REFUSING = "{{ tools }}{{ raise_exception('nothing but questions') }}"
TEXT_ARGUMENTS = (
    "{% if tools %}-{% endif %}{% for m in messages %}{% for c in m.tool_calls or [] %}"
    '<tool_call>\n{"name": "{{ c.function.name }}", "arguments": {{ \'\' + c.function.arguments }}}'
    "\n</tool_call>{% endfor %}{% endfor %}"
)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def test_qwen_thinks_and_calls_in_xml(byte_level: Tokenizer) -> None:
    syntax = Syntax.of(QWEN, byte_level)
    assert syntax.calls == "xml"
    assert syntax.think_open == Mark("<think>", 4094)
    assert syntax.think_close == Mark("</think>", 4095)
    assert syntax.call_open == Mark("<tool_call>", 4090)
    assert syntax.call_close == Mark("</tool_call>", 4091)
    assert syntax.thought_end == "\n</think>\n\n"


def test_marks_that_are_no_added_tokens_are_text(sentence_piece: Tokenizer) -> None:
    syntax = Syntax.of(QWEN, sentence_piece)
    assert syntax.calls == "xml"
    assert syntax.think_open == Mark("<think>", None)
    assert syntax.call_close == Mark("</tool_call>", None)


@pytest.mark.parametrize(
    ("source", "calls", "thinks"),
    [
        (HERMES, "json", False),
        (TEXT_ARGUMENTS, "json", False),
        (PLAIN, "json", False),
        (PLAIN + "{# </think> #}", "json", True),
        (FOREIGN, None, False),
        (REFUSING, None, False),
        (None, None, False),
    ],
    ids=["hermes", "text", "plain", "plain, thinking", "foreign", "refusing", "none"],
)
def test_forms(source: str | None, calls: str | None, thinks: bool, byte_level: Tokenizer) -> None:
    syntax = Syntax.of(source, byte_level)
    assert syntax.calls == calls
    assert (syntax.call_open is None) == (syntax.call_close is None) == (calls is None)
    assert (syntax.think_open is not None) == (syntax.think_close is not None) == thinks
    assert bool(syntax.thought_end) == thinks


@pytest.mark.parametrize("by_id", [True, False])
@pytest.mark.parametrize(("thinking", "starts"), [(None, True), (True, True), (False, False)])
def test_qwen_starts_inside_reasoning(thinking: bool | None, starts: bool, by_id: bool) -> None:
    template, syntax = qwen(by_id)
    segments = template.render([user("Hi")], enable_thinking=thinking)
    assert syntax.starts_thinking(segments) is starts
    assert syntax.starts_thinking("".join(piece.text for piece in segments)) is starts


def test_a_model_without_reasoning_never_starts_inside(byte_level: Tokenizer) -> None:
    assert not Syntax.of(HERMES, byte_level).starts_thinking("<think>\n")
    assert not Syntax.of(HERMES, byte_level).starts_thinking([Segment("<think>", markup=True)])


PIECES = st.sampled_from(["<think>", "</think>", "\n", " ", "a"])


@cache
def qwen(by_id: bool) -> tuple[ChatTemplate, Syntax]:
    """Qwen's template and syntax over a vocabulary with and without the tags."""
    tokenizer = Tokenizer.load(AUSTEN)
    if by_id:
        return ChatTemplate(QWEN, markup=tokenizer.markup), Syntax.of(QWEN, tokenizer)
    return ChatTemplate(QWEN, markup=()), Syntax(Mark("<think>"), Mark("</think>"))


@given(text=st.lists(PIECES).map("".join), by_id=st.booleans(), thinking=st.booleans())
def test_what_the_user_says_decides_nothing(text: str, by_id: bool, thinking: bool) -> None:
    template, syntax = qwen(by_id)
    messages = [{"role": "system", "content": text}, user(text)]
    segments = template.render(messages, enable_thinking=thinking)
    assert syntax.starts_thinking(segments) is thinking
