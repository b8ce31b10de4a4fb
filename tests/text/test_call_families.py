"""Calls in JSON as published families write them: found, read back, and bound."""

from __future__ import annotations

import json
from dataclasses import astuple
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flashmoe.text import Call, Content, ReplyParser, Tokenizer
from flashmoe.text.grammar import Grammars
from tests.text.bound import drawn, listed, tool
from tests.text.templates import FAMILIES, GAPS
from tests.text.test_reply_round_trip import (
    JSON,
    NAME,
    QUESTION,
    TEXT,
    after,
    call,
    round_trip,
    template_of,
)

QUIET = settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
FAMILY = pytest.mark.parametrize("family", sorted(FAMILIES))
TAGGED = pytest.mark.parametrize("kind", ["byte_level", "untagged"])
SHOP = tool(
    "buy",
    listed({"what": {"type": "string", "maxLength": 9}, "many": {"type": "integer"}}, ["what"]),
)
CLOCK = tool("clock", listed({}))


@FAMILY
@TAGGED
def test_the_form_is_json_with_the_templates_own_gaps(family: str, kind: str, request: Any) -> None:
    _, syntax = template_of(FAMILIES[family], request.getfixturevalue(kind))
    assert syntax.calls == "json"
    assert astuple(syntax.gaps) == GAPS[family]
    assert syntax.think_close is not None


def times(family: str) -> int:
    return 1 if family == "one call alone" else 2


@FAMILY
@TAGGED
@QUIET
@given(name=NAME, arguments=st.dictionaries(TEXT, JSON, max_size=3), content=st.sampled_from("x "))
def test_calls_come_back(
    family: str, kind: str, name: str, arguments: Any, content: str, request: Any
) -> None:
    tokenizer = request.getfixturevalue(kind)
    made = [call(name, arguments)] * times(family)
    found = round_trip(
        FAMILIES[family], tokenizer, [tool(name)], content=content.strip(), tool_calls=made
    )
    texts = [piece.text for piece in found if isinstance(piece, Content)]
    assert texts == ([content] if content.strip() else [])
    calls = [piece for piece in found if isinstance(piece, Call)]
    assert [one.name for one in calls] == [name] * times(family)
    assert all(json.dumps(json.loads(one.arguments)) == json.dumps(arguments) for one in calls)


def guide_of(family: str, tokenizer: Tokenizer, **asked: Any) -> Any:
    _, syntax = template_of(FAMILIES[family], tokenizer)
    grammars = Grammars(tokenizer, syntax, tokenizer.stop_ids, tokenizer.vocab_size)
    return grammars.guide(tools=[SHOP, CLOCK], **asked)


@pytest.mark.parametrize("family", ["Qwen3", "SmolLM3", "on one line", "one call alone"])
@pytest.mark.parametrize("choice", ["auto", "required"])
@TAGGED
def test_what_the_template_writes_is_admitted(
    family: str, choice: str, kind: str, request: Any
) -> None:
    tokenizer = request.getfixturevalue(kind)
    template, _ = template_of(FAMILIES[family], tokenizer)
    made = [call("buy", {"what": "tea", "many": 2}), call("clock", {})][: times(family)]
    message = {"role": "assistant", "content": "", "tool_calls": made}
    written = after(
        template.render([QUESTION]),
        template.render([QUESTION, message], add_generation_prompt=False),
    )
    guide = guide_of(family, tokenizer, tool_choice=choice)
    for id in tokenizer.encode_segments(written):
        mask = guide.mask()
        assert mask is None or mask[id], tokenizer.token(id)
        guide.accept(id)
    mask = guide.mask()
    assert mask is None or mask[list(tokenizer.stop_ids)].all()


@FAMILY
@pytest.mark.parametrize("choice", ["auto", "required"])
@TAGGED
@pytest.mark.parametrize("seed", range(3))
def test_what_is_bound_is_read_as_calls(
    family: str, choice: str, kind: str, seed: int, request: Any
) -> None:
    tokenizer = request.getfixturevalue(kind)
    _, syntax = template_of(FAMILIES[family], tokenizer)
    guide = guide_of(family, tokenizer, tool_choice=choice, parallel_calls=False)
    opening = tuple(tokenizer.encode("<tool_call>"))
    ids, ended = drawn(guide, tokenizer, seed, begin=opening, most=200)
    assert ended
    parser = ReplyParser(tokenizer, syntax, [SHOP, CLOCK], thinking=False)
    pieces = [piece for id in ids[:-1] for piece in parser.push(id)] + parser.finish()
    (found,) = pieces
    assert isinstance(found, Call) and found.name in ("buy", "clock")
    assert found.name == "clock" or "what" in json.loads(found.arguments)
