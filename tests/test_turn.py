"""Turns and replies: what is asked becomes ids, and ids become pieces; what is known stays."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from flashmoe.engine import Engine
from flashmoe.errors import CancelledError, ContextError, InputError, TemplateError
from flashmoe.options import Budget, PrefixCache
from flashmoe.text.pieces import Call, Content, Reasoning
from flashmoe.text.syntax import Syntax
from flashmoe.text.template import ChatTemplate
from flashmoe.turn import (
    JsonSchema,
    Named,
    Opening,
    Plain,
    Reply,
    Turn,
    Usage,
    default_thinking,
)

TOOLS = tuple(json.loads((Path(__file__).parents[1] / "examples" / "tools.json").read_text()))
ASKED = {"role": "user", "content": "What is the weather in Paris on Monday?"}
WEATHER = Turn((ASKED,), tools=TOOLS, thinking=False)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    kept = PrefixCache(memory_bytes=64 << 20)
    with Engine.open("demo", budget=Budget(context_tokens=1024), prefix_cache=kept) as engine:
        yield engine


@pytest.fixture(scope="module")
def session(engine):
    return engine.session()


def said(engine, session, turn, **sampling):
    options = {"max_tokens": 64, "temperature": 0.0, **sampling}
    reply = Reply(engine, session, turn, engine.sampling(**options))
    pieces = [piece for beat in reply for piece in beat.pieces]
    return reply, pieces


def test_a_request_of_a_tool_becomes_a_call(engine, session):
    reply, pieces = said(engine, session, WEATHER)
    (call,) = pieces
    assert isinstance(call, Call) and call.name == "get_weather"
    assert json.loads(call.arguments) == {"city": "Paris", "day": "Monday"}
    assert reply.finish_reason == "tool_calls" and reply.stop_sequence is None
    assert reply.usage.prompt_tokens == reply.prompt_tokens == 333
    assert reply.usage.completion_tokens == 30


@pytest.mark.parametrize("constrained", [True, False])
def test_a_call_that_max_tokens_cuts_is_left_out(engine, session, constrained):
    turn = replace(WEATHER, constrained=constrained)
    for bound in (1, 8, 24):
        reply, pieces = said(engine, session, turn, max_tokens=bound)
        assert (pieces, reply.finish_reason) == ([], "length")
        assert reply.usage.completion_tokens == bound


def test_the_reply_does_not_depend_on_what_the_session_held(engine, session):
    turn = Turn(({"role": "user", "content": "Who is Emma?"},), thinking=False)
    _, first = said(engine, engine.session(), turn)
    said(engine, session, WEATHER)
    _, again = said(engine, session, turn)
    assert again == first


def test_a_text_is_continued_and_a_stop_string_ends_it(engine, session):
    reply, pieces = said(engine, session, Plain("Emma was sitting"), max_tokens=12)
    text = "".join(piece.text for piece in pieces)
    assert reply.finish_reason == "length" and reply.usage.completion_tokens == 12
    word = text.split()[2]
    stopped, shorter = said(engine, session, Plain("Emma was sitting"), stop=(word,))
    assert (stopped.finish_reason, stopped.stop_sequence) == ("stop", word)
    assert "".join(piece.text for piece in shorter) == text[: text.index(word)]


def test_ids_are_continued_as_they_are(engine, session):
    ids = tuple(engine.tokenizer.encode("Emma was sitting"))
    _, by_text = said(engine, session, Plain("Emma was sitting"), max_tokens=5)
    _, by_ids = said(engine, session, Plain(ids), max_tokens=5)
    assert by_ids == by_text


def test_a_reply_begins_inside_reasoning_where_the_template_says_so(engine, session):
    turn = Turn(({"role": "user", "content": "Hello"},), thinking=True)
    assert Opening.of(engine, turn).thinking
    reply, pieces = said(engine, session, turn, max_tokens=3)
    assert all(isinstance(piece, Reasoning) for piece in pieces)
    assert 0 < reply.usage.reasoning_tokens <= reply.usage.completion_tokens


def test_a_beginning_of_the_reply_is_gone_on_from(engine, session):
    messages = ({"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Emma was "})
    opening = Opening.of(engine, Turn(messages, continues=True))
    text = engine.tokenizer.decode(opening.ids)
    assert text.endswith("Emma was") and not opening.thinking
    _, pieces = said(engine, session, Turn(messages, continues=True), max_tokens=4)
    assert all(isinstance(piece, Content) for piece in pieces)


def test_the_second_turn_passes_what_is_new_alone(engine):
    """Without reasoning between, the template writes the reply again as it was."""
    session = engine.session()
    text = "Emma was sitting one evening " * 12
    first, _ = said(engine, session, Plain(text), max_tokens=8)
    held = len(session.ids)
    longer = (*session.ids, *engine.tokenizer.encode(" and then"))
    second, _ = said(engine, session, Plain(longer), max_tokens=2)
    assert first.usage.cached_tokens == 0
    assert second.usage.cached_tokens == held - 1  # the last token had no pass of its own yet


def test_another_session_begins_where_the_turn_before_ended(engine):
    """What the reply is in the next prompt differs from how it was written (its reasoning goes):
    all before it is known."""
    system = {"role": "system", "content": "You answer in the manner of Highbury. " * 30}
    first = Turn((system, {"role": "user", "content": "Who is Emma?"}), thinking=True)
    reply, _ = said(engine, engine.session(), first, max_tokens=8)
    messages = (
        *first.messages,
        {"role": "assistant", "content": "A young lady.", "reasoning_content": "Hm."},
        {"role": "user", "content": "Where does she live?"},
    )
    again, _ = said(engine, engine.session(), Turn(messages, thinking=True), max_tokens=2)
    shared = again.usage.cached_tokens
    assert shared % 64 == 0 and reply.prompt_tokens - 64 - 8 < shared < reply.prompt_tokens


def test_another_conversation_with_the_same_tools_begins_behind_them(engine):
    other = Turn(({"role": "user", "content": "Set an alarm for six, please."},), tools=TOOLS)
    said(engine, engine.session(), WEATHER)
    reply, _ = said(engine, engine.session(), other, max_tokens=2)
    assert reply.usage.cached_tokens >= 256


def test_one_call_is_enough_where_no_more_are_wanted(engine, session):
    turn = Turn((ASKED,), tools=TOOLS, thinking=False, parallel_calls=False)
    reply, pieces = said(engine, session, turn)
    assert [type(piece) for piece in pieces] == [Call] and reply.finish_reason == "tool_calls"


def test_progress_is_told_and_may_cancel(engine):
    told = []

    def watch(progress):
        told.append(progress)
        raise CancelledError("enough")

    reply = Reply(engine, engine.session(), WEATHER, engine.sampling(), watch)
    with pytest.raises(CancelledError, match="enough"):
        next(iter(reply))
    assert len(told) == 1 and reply.usage == Usage(333, reply.usage.cached_tokens, 0, 0)


def test_a_reply_that_is_closed_leaves_the_session_usable(engine, session):
    reply = Reply(engine, session, WEATHER, engine.sampling(temperature=0.0))
    next(iter(reply))
    reply.close()
    assert said(engine, session, WEATHER)[0].finish_reason == "tool_calls"


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        (Turn((ASKED,), tool_choice=Named("fly")), "tool_choice names 'fly'"),
        (Turn((ASKED,), tool_choice="required"), "there are no tools"),
        (Turn((ASKED,), continues=True), "assistant's text"),
        (Turn((), continues=True), "assistant's text"),
        (
            Turn((ASKED, {"role": "assistant", "content": "A"}), continues=True, thinking=True),
            "neither reason first",
        ),
        (
            Turn((ASKED,), continues=True, form=JsonSchema({"type": "object"})),
            "neither reason first",
        ),
        (Plain(""), "empty"),
        (Plain((1, 1 << 30)), "outside the vocabulary"),
    ],
)
def test_what_contradicts_itself_is_refused_before_anything_passes(engine, session, turn, words):
    held = session.ids
    with pytest.raises(InputError, match=words):
        Reply(engine, session, turn, engine.sampling())
    assert session.ids == held


def test_what_the_template_rejects_is_refused_with_its_words(engine):
    with pytest.raises(TemplateError, match="No user query"):
        Opening.of(engine, Turn(({"role": "assistant", "content": "Hm."},)))


def test_a_prompt_without_room_for_a_reply_is_refused(engine):
    with pytest.raises(ContextError, match="the context 1024"):
        Opening.of(engine, Plain("Emma " * 2000))


SAID = "{% for m in messages %}{{ m.content }}{% endfor %}"
CLOSED = "<think></think>"


@pytest.mark.parametrize(
    ("ending", "reasons"),
    [
        ("", False),
        (CLOSED, False),
        ("<think>", True),
        (
            "{% if enable_thinking is defined and not enable_thinking %}" + CLOSED + "{% endif %}",
            True,
        ),
        ("{% if enable_thinking %}<think>{% else %}" + CLOSED + "{% endif %}", False),
    ],
)
def test_whether_a_template_lets_the_model_reason_by_itself(engine, monkeypatch, ending, reasons):
    markup = engine.tokenizer.markup
    monkeypatch.setattr(Engine, "template", ChatTemplate(SAID + ending, markup=markup))
    assert default_thinking(engine) is reasons


def test_a_model_without_a_mark_for_reasoning_does_not(engine, monkeypatch):
    monkeypatch.setattr(Engine, "syntax", Syntax())
    assert default_thinking(engine) is False
