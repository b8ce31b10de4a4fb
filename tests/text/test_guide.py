"""The way of one reply: thinking and its budget, what is forced, where the reply may end."""

from __future__ import annotations

import json

import numpy as np
import pytest

from flashmoe.errors import ClosedError, InputError
from flashmoe.text import Tokenizer
from flashmoe.text.forms import JsonSchema, Regex
from flashmoe.text.grammar import Grammars
from flashmoe.text.guide import Guide
from flashmoe.text.vocabulary import Vocabulary
from tests.text.bound import drawn, grammars_of, listed, tool

CLOCK = tool("clock")


@pytest.fixture(scope="module")
def grammars(byte_level: Tokenizer) -> Grammars:
    return grammars_of(byte_level)


def follow(guide: Guide, tokenizer: Tokenizer, text: str) -> None:
    """Take a text that the guide admits, token by token."""
    for id in tokenizer.encode(text):
        mask = guide.mask()
        assert mask is None or mask[id], tokenizer.token(id)
        guide.accept(id)


def given(guide: Guide, tokenizer: Tokenizer) -> str:
    """The text that the guide forces from here on."""
    ids = []
    while (mask := guide.mask()) is not None and mask.sum() == 1:
        ids.append(int(np.argmax(mask)))
        guide.accept(ids[-1])
        if ids[-1] in tokenizer.stop_ids:
            break
    return tokenizer.decode(ids)


def test_a_budget_closes_thinking_as_the_template_would(grammars, byte_level):
    guide = grammars.guide(thinking=True, thinking_budget=2)
    thought = byte_level.encode(" and and")
    assert len(thought) == 2
    follow(guide, byte_level, " and and")
    assert given(guide, byte_level) == "\n</think>\n\n"
    assert guide.mask() is None
    none = grammars.guide(thinking=True, thinking_budget=0)
    assert given(none, byte_level) == "\n</think>\n\n"


@pytest.mark.parametrize("kind", ["byte_level", "untagged", "sentence_piece"])
def test_a_budget_ends_between_two_characters(kind, request):
    """Bytes that are tokens: the budget is spent in the middle of one."""
    tokenizer = request.getfixturevalue(kind)
    grammars = grammars_of(tokenizer)
    single = Vocabulary(tokenizer, tokenizer.stop_ids, tokenizer.vocab_size)._single
    for asked in ({}, {"form": Regex("ab")}):
        guide = grammars.guide(thinking=True, thinking_budget=2, **asked)
        for id in single("a日😀".encode()[:4]):
            mask = guide.mask()
            assert mask is None or mask.sum() > 1
            guide.accept(id)
        assert given(guide, tokenizer).startswith("\n</think>\n\n")
    spent = grammars.guide(thinking=True, thinking_budget=1)
    for id in single(b"\xf0" * 4):  # which is no character, however it goes on
        assert spent.mask() is None
        spent.accept(id)
    assert given(spent, tokenizer) == "\n</think>\n\n"


def test_thinking_that_ends_in_time_is_let_alone(grammars, byte_level):
    guide = grammars.guide(thinking=True, thinking_budget=50)
    follow(guide, byte_level, "so\n</think> and")
    assert guide.mask() is None


def test_a_budget_holds_where_the_model_opens_its_thinking(grammars, byte_level):
    guide = grammars.guide(thinking_budget=1)
    assert guide.mask() is None
    follow(guide, byte_level, "<think> and")
    assert given(guide, byte_level) == "\n</think>\n\n"


def test_a_reply_that_is_bound_cannot_end_while_it_thinks(grammars, byte_level):
    stop = byte_level.id_of("<|im_end|>")
    for asked in ({"form": Regex("ab")}, {"tools": [CLOCK], "tool_choice": "required"}):
        guide = grammars.guide(thinking=True, **asked)
        assert not guide.mask()[stop] and guide.mask()[byte_level.id_of("a")]
        follow(guide, byte_level, "so</think>")
        begun = given(guide, byte_level)
        assert begun.startswith("\n\n" + ("ab" if "form" in asked else "<tool_call>\n<function="))
    free = grammars.guide(thinking=True, tools=[CLOCK])
    assert free.mask() is None


def test_a_budget_leads_to_what_is_bound(grammars, byte_level):
    guide = grammars.guide(thinking=True, thinking_budget=1, form=Regex("ab"))
    follow(guide, byte_level, " and")
    assert given(guide, byte_level) == "\n</think>\n\nab<|im_end|>"


def test_a_call_in_open_thinking_ends_it(grammars, byte_level):
    for choice in ("auto", "required"):
        guide = grammars.guide(thinking=True, tools=[CLOCK], tool_choice=choice)
        follow(guide, byte_level, "so <tool_call>")
        assert given(guide, byte_level).startswith("\n<function=clock>\n</function>\n</tool_call>")
    call = byte_level.id_of("<tool_call>")
    for asked in ({"tool_choice": "none"}, {"tool_choice": "none", "form": Regex("a")}):
        assert not grammars.guide(thinking=True, tools=[CLOCK], **asked).mask()[call]


def test_thinking_whose_tags_are_text(untagged):
    grammars = grammars_of(untagged, "json")
    guide = grammars.guide(thinking=True, thinking_budget=9, form=Regex("ab"))
    follow(guide, untagged, "so")
    assert not guide.mask()[untagged.id_of("<|im_end|>")]
    follow(guide, untagged, "</think>")
    assert given(guide, untagged) == "\n\nab<|im_end|>"
    spent = grammars.guide(thinking=True, thinking_budget=1, form=Regex("ab"))
    follow(spent, untagged, " and")
    assert given(spent, untagged) == "\n</think>\n\nab<|im_end|>"
    free = grammars.guide(thinking=True, thinking_budget=99)
    follow(free, untagged, "so</think> <think")
    assert free.mask() is None


@pytest.mark.parametrize("form", ["schema", "call"])
def test_white_space_takes_no_tokens(byte_level, form):
    """The worst a model can do: nothing but white space wherever some is admitted."""
    schema = listed({"a": {"type": "null"}, "b": {"type": "array", "maxItems": 0}})
    asked = {"form": JsonSchema(schema)}
    if form == "call":
        asked = {"tools": [tool("f", schema)], "tool_choice": "required", "parallel_calls": False}
    guide = grammars_of(byte_level, "json").guide(**asked)
    blank = np.array([not byte_level.decode([id]).strip() for id in range(byte_level.vocab_size)])
    ids = []
    while (mask := guide.mask()) is not None and not mask[list(byte_level.stop_ids)].any():
        blanks = np.flatnonzero(mask & blank)
        ids.append(int(blanks[0] if blanks.size else np.argmax(mask)))
        guide.accept(ids[-1])
        assert len(ids) < 200, "the answer did not come to an end"
    value = json.dumps({"a": None, "b": []})
    if form == "call":
        value = f'<tool_call>\n{{"name": "f", "arguments": {value}}}\n</tool_call>'
    assert byte_level.decode(ids) == value


def test_a_guide_serves_one_reply(grammars):
    guide = grammars.guide(form=Regex("a"))
    guide.take()
    with pytest.raises(InputError, match="another one"):
        guide.take()


def test_a_token_that_was_not_admitted_is_noticed(grammars, byte_level):
    guide = grammars.guide(form=Regex("ab"))
    guide.accept(byte_level.id_of("z"))
    with pytest.raises(InputError, match="the answer cannot go on"):
        guide.mask()


def test_a_mask_admits_no_id_without_a_word(byte_level):
    grammars = Grammars(
        byte_level, grammars_of(byte_level)._syntax, byte_level.stop_ids, byte_level.vocab_size + 70
    )
    mask = grammars.guide(form=Regex("(?s:.*)")).mask()
    assert mask.shape == (byte_level.vocab_size + 70,) and not mask[-70:].any()
    structure = sorted(set(byte_level.structure) - byte_level.stop_ids)
    assert mask[: byte_level.vocab_size].sum() > 4000 and not mask[structure].any()


def test_guides_of_several_replies_do_not_meet(grammars, byte_level):
    schema = JsonSchema(listed({"a": {"type": "integer", "minimum": 0}}))
    alone = [drawn(grammars.guide(form=schema), byte_level, seed)[0] for seed in range(4)]
    guides = [grammars.guide(form=schema) for _ in range(4)]
    found: list[list[int]] = [[] for _ in guides]
    for step in range(max(map(len, alone))):
        for index, guide in enumerate(guides):
            if step < len(alone[index]):
                assert guide.mask()[alone[index][step]]
                found[index].append(alone[index][step])
                guide.accept(alone[index][step])
    assert found == alone


def test_a_guide_of_a_closed_engine_says_so(byte_level):
    grammars = grammars_of(byte_level)
    guide = grammars.guide(form=Regex("ab"))
    grammars.close()
    with pytest.raises(ClosedError):
        guide.accept(byte_level.id_of("a"))
