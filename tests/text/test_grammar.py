"""Grammars of replies: whatever noise is drawn under them is what was asked for."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st

from flashmoe.errors import InputError
from flashmoe.text import Tokenizer
from flashmoe.text.forms import JsonSchema, Named, Regex
from flashmoe.text.grammar import Grammars
from flashmoe.text.guide import Guide
from flashmoe.text.parser import ReplyParser
from flashmoe.text.pieces import Call, Content, Piece
from tests.text.bound import NAMES, SCHEMAS, drawn, grammars_of, listed, objects, syntax_of, tool

SEEDS = st.integers(0, 1 << 32)
FEW = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
WEATHER = tool(
    "get_weather",
    listed({"city": {"type": "string", "maxLength": 12}, "days": {"type": "integer"}}, ["city"]),
)
CLOCK = tool("clock")
ANSWER = JsonSchema(listed({"yes": {"type": "boolean"}}))


@pytest.fixture(scope="module")
def grammars(byte_level: Tokenizer) -> dict[str, Grammars]:
    return {form: grammars_of(byte_level, form) for form in ("xml", "json")}


@pytest.fixture(scope="module")
def spelled(untagged: Tokenizer) -> dict[str, Grammars]:
    return {form: grammars_of(untagged, form) for form in ("xml", "json")}


def valid(value: object, schema: Any) -> None:
    jsonschema.validate(
        value, schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    )


def pieces(
    ids: list[int], tokenizer: Tokenizer, form: str, tools: list[Any], *, thinking: bool = False
) -> list[Piece]:
    parser = ReplyParser(tokenizer, syntax_of(tokenizer, form), tools, thinking=thinking)
    kept = [id for id in ids if id not in tokenizer.stop_ids]
    return [piece for id in kept for piece in parser.push(id)] + parser.finish()


def text(ids: list[int], tokenizer: Tokenizer) -> str:
    return tokenizer.decode([id for id in ids if id not in tokenizer.stop_ids])


@FEW
@given(schema=SCHEMAS, seed=SEEDS)
def test_an_answer_fits_its_schema(grammars, byte_level, schema, seed):
    guide = grammars["xml"].guide(form=JsonSchema(schema))
    ids, ended = drawn(guide, byte_level, seed)
    event("came to an end" if ended else "was cut")
    if ended:
        valid(json.loads(text(ids, byte_level)), schema)


@pytest.mark.parametrize("form", ["xml", "json"])
@FEW
@given(data=st.data(), seed=SEEDS, name=NAMES)
def test_a_call_fits_its_tool(grammars, byte_level, form, data, seed, name):
    schema = data.draw(objects(SCHEMAS))
    tools = [tool(name, schema), tool(name + "_2", listed({"x": {"type": "integer"}}))]
    guide = grammars[form].guide(tools=tools, tool_choice="required", parallel_calls=False)
    ids, ended = drawn(guide, byte_level, seed)
    event("came to an end" if ended else "was cut")
    assume(ended)
    (call,) = pieces(ids, byte_level, form, tools)
    wanted = {one["function"]["name"]: one["function"]["parameters"] for one in tools}
    assert isinstance(call, Call)
    valid(json.loads(call.arguments), wanted[call.name])


@pytest.mark.parametrize("form", ["xml", "json"])
@settings(FEW, max_examples=25)
@given(data=st.data(), seed=SEEDS)
def test_a_call_fits_its_tool_where_marks_are_text(spelled, untagged, form, data, seed):
    tools = [tool("look", data.draw(objects(SCHEMAS)))]
    guide = spelled[form].guide(tools=tools, tool_choice=Named("look"))
    ids, ended = drawn(guide, untagged, seed)
    assume(ended)
    (call,) = pieces(ids, untagged, form, tools)
    assert isinstance(call, Call)
    valid(json.loads(call.arguments), tools[0]["function"]["parameters"])


@FEW
@given(
    seed=SEEDS,
    pattern=st.sampled_from(
        ["[a-z]{3}", "^yes|no$", r"\d{3}-\d{4}", "a/b+", "(?:red|green) [0-9]*", "é?日", "\n x"]
    ),
)
def test_an_answer_matches_its_pattern(grammars, byte_level, pattern, seed):
    ids, ended = drawn(grammars["json"].guide(form=Regex(pattern)), byte_level, seed)
    if ended:
        assert re.fullmatch(pattern, text(ids, byte_level))


def test_references_lead_where_they_led(grammars, byte_level):
    schema = {
        "$defs": {"size/2": {"type": "integer", "enum": [3, 4]}, "any": {"type": "null"}},
        **listed({"a": {"$ref": "#/$defs/size~12"}, "b": {"type": "array", "minItems": 1,
                  "items": {"anyOf": [{"$ref": "#/properties/a"}, {"$ref": "#/$defs/any"}]}}}),
    }  # fmt: skip
    for form, seed in (("xml", 0), ("json", 1), ("xml", 2), ("json", 3)):
        guide = grammars[form].guide(tools=[tool("f", schema)], tool_choice="required")
        ids, ended = drawn(guide, byte_level, seed)
        assert ended
        for call in pieces(ids, byte_level, form, [tool("f", schema)]):
            assert isinstance(call, Call)
            valid(json.loads(call.arguments), schema)


def allowed(guide: Guide | None, tokenizer: Tokenizer) -> set[str]:
    assert guide is not None
    mask = guide.mask()
    every = range(tokenizer.vocab_size)
    return {tokenizer.token(id) or "" for id in every if mask is None or mask[id]}


STOPS = {"<|im_end|>"}


def test_nothing_asked_is_no_guide(grammars):
    assert grammars["xml"].guide() is None
    assert grammars["xml"].guide(thinking=True) is None
    assert grammars["xml"].guide(tools=[CLOCK], constrained=False, thinking=True) is None


def test_auto_is_free_until_a_call_opens(grammars, byte_level):
    guide = grammars["xml"].guide(tools=[WEATHER, CLOCK])
    assert guide.mask() is None
    guide.accept(byte_level.id_of("She"))
    assert guide.mask() is None
    guide.accept(byte_level.id_of("<tool_call>"))
    assert allowed(guide, byte_level) == {"Ċ"}
    for id in byte_level.encode("\n<function=clock>\n</function>\n"):
        assert not allowed(guide, byte_level) & STOPS
        guide.accept(id)
    assert allowed(guide, byte_level) == {"</tool_call>"}
    guide.accept(byte_level.id_of("</tool_call>"))
    assert guide.mask() is None


def test_one_call_alone_is_followed_by_the_end(grammars, byte_level):
    guide = grammars["xml"].guide(tools=[CLOCK], parallel_calls=False)
    call = byte_level.encode("<tool_call>\n<function=clock>\n</function>\n</tool_call>")
    for id in call:
        guide.accept(id)
    assert allowed(guide, byte_level) == STOPS
    several = grammars["xml"].guide(tools=[CLOCK], tool_choice="required")
    for id in call:
        several.accept(id)
    assert allowed(several, byte_level) == STOPS | {"Ċ"}
    assert allowed(grammars["xml"].guide(tools=[CLOCK]), byte_level) > STOPS


def test_none_shuts_out_the_mark_and_nothing_else(grammars, byte_level, spelled, untagged):
    every = allowed(grammars["xml"].guide(tools=[CLOCK]), byte_level)
    guide = grammars["xml"].guide(tools=[CLOCK], tool_choice="none")
    assert every - allowed(guide, byte_level) == {"<tool_call>"}
    assert grammars["xml"].guide(tool_choice="none") is None
    guide = spelled["json"].guide(tools=[CLOCK], tool_choice="none")
    for id in untagged.encode("go <tool_call"):
        assert allowed(guide, untagged) >= STOPS
        guide.accept(id)
    assert ">" not in allowed(guide, untagged) and "!" in allowed(guide, untagged)


def test_a_named_tool_is_the_only_one(grammars, byte_level):
    for seed in range(5):
        guide = grammars["json"].guide(tools=[CLOCK, WEATHER], tool_choice=Named("get_weather"))
        ids, ended = drawn(guide, byte_level, seed)
        assert ended
        (call,) = pieces(ids, byte_level, "json", [CLOCK, WEATHER])
        assert isinstance(call, Call) and call.name == "get_weather"


def test_an_answer_that_is_bound_leaves_calls_possible(grammars, byte_level):
    guide = grammars["xml"].guide(tools=[CLOCK], form=ANSWER)
    assert "<tool_call>" in allowed(guide, byte_level)
    barred = grammars["xml"].guide(tools=[CLOCK], form=ANSWER, tool_choice="none")
    assert "<tool_call>" not in allowed(barred, byte_level)
    called = (byte_level.id_of("<tool_call>"),)
    ids, ended = drawn(guide, byte_level, begin=called)
    assert ended and Call("clock", "{}") in pieces(ids, byte_level, "xml", [CLOCK])
    ids, ended = drawn(barred, byte_level)
    assert ended and json.loads(text(ids, byte_level))["yes"] in (True, False)


def test_calls_whose_marks_are_text_are_bound_from_the_mark_on(spelled, untagged):
    guide = spelled["json"].guide(tools=[CLOCK])
    begin = tuple(untagged.encode("Well <b>. <tool_call>"))
    ids, ended = drawn(guide, untagged, begin=begin)
    assert ended
    found = pieces(ids, untagged, "json", [CLOCK])
    assert found[:2] == [Content("Well <b>."), Call("clock", "{}")]
    guide = spelled["json"].guide(tools=[CLOCK], parallel_calls=False)
    for id in untagged.encode('<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'):
        guide.accept(id)
    assert allowed(guide, untagged) == STOPS


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"tool_choice": "required"}, "no tools"),
    ({"tools": [CLOCK], "tool_choice": Named("gone")}, "'gone'"),
    ({"tools": [CLOCK], "tool_choice": "perhaps"}, "perhaps"),
    ({"tools": [CLOCK], "tool_choice": "required", "constrained": False}, "ensure"),
    ({"tools": [CLOCK], "form": ANSWER, "constrained": False}, "exclude"),
    ({"tools": [CLOCK, CLOCK]}, "two tools are called 'clock'"),
    ({"tools": [{"type": "function"}]}, "tool 0 has no name"),
    ({"thinking_budget": -1}, "thinking_budget"),
    ({"form": JsonSchema({"not": {"type": "null"}})}, "#/not: the keyword 'not'"),
    ({"form": JsonSchema(listed({"a/b": {"type": "strin"}}))}, "#/properties/a~1b: .*strin"),
    ({"form": JsonSchema({"type": "string", "pattern": "(?=x)y"})}, "look-around"),
    ({"form": JsonSchema({"$ref": "http://elsewhere/x"})}, "elsewhere"),
    ({"form": JsonSchema({"type": "string", "minLength": 3, "maxLength": 2})}, "minLength"),
    ({"form": Regex("(?=x)y")}, "regular expression"),
    ({"form": Regex("a[")}, "regular expression"),
    ({"form": Regex(r"\bx")}, "regular expression"),
    ({"form": Regex("(^a)b")}, "anchor"),
    (
        {"tools": [tool("f", listed({"p": {"uniqueItems": True}}))]},
        "tool 'f', at #/properties/p/uni",
    ),
    ({"tools": [tool("f>", listed({}))]}, "f>"),
    ({"tools": [tool("f", listed({"a>": {}}))]}, "a>"),
    ({"tools": [tool("f", {"type": "array"})]}, "no object"),
    ({"tools": [tool("f", {"type": "object", "anyOf": [{"required": ["a"]}]})]}, "anyOf"),
    ({"tools": [tool("f", listed({"a": {"enum": ["</parameter>"]}}))]}, "cannot express"),
]


@pytest.mark.parametrize(("asked", "message"), REFUSED)
def test_what_cannot_be_enforced_is_refused_by_name(grammars, asked, message):
    with pytest.raises(InputError, match=message):
        grammars["xml"].guide(**asked)


def test_a_model_without_calls_is_offered_no_tools(byte_level):
    syntax = syntax_of(byte_level, "xml")
    bare = Grammars(byte_level, type(syntax)(), byte_level.stop_ids, byte_level.vocab_size)
    with pytest.raises(InputError, match="no form of calls"):
        bare.guide(tools=[CLOCK])
    assert bare.guide(form=ANSWER) is not None


def test_the_same_tools_are_compiled_once(byte_level):
    grammars = grammars_of(byte_level)
    for _ in range(3):
        grammars.guide(tools=[WEATHER])
    assert len(grammars._compiled) == 1
    for index in range(40):
        grammars.guide(tools=[tool(f"f{index}")])
    assert len(grammars._compiled) < 20


def test_a_vocabulary_with_byte_fallback(sentence_piece):
    grammars = Grammars(
        sentence_piece, syntax_of(sentence_piece, "json"), sentence_piece.stop_ids, 272
    )
    guide = grammars.guide(form=Regex("the thé 日\\?"))
    ids, ended = drawn(guide, sentence_piece)
    assert ended and text(ids, sentence_piece) == "the thé 日?"
    schema = listed({"é": {"type": "string", "maxLength": 4}})
    ids, ended = drawn(grammars.guide(form=JsonSchema(schema)), sentence_piece, 3)
    assert ended
    valid(json.loads(text(ids, sentence_piece)), schema)


def test_the_demo_names_its_own_tags():
    """What the tests take for the demo's syntax is what it has."""
    source = Path(__file__).parents[2] / "src" / "flashmoe" / "demo"
    tokenizer = Tokenizer.load(source)
    syntax = syntax_of(tokenizer, "xml")
    found = type(syntax).of((source / "chat_template.jinja").read_text(), tokenizer)
    assert found == syntax
