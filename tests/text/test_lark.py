"""Quoting for llguidance's grammars: texts given by callers stay texts."""

from __future__ import annotations

import re

import llguidance
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashmoe.text.lark import Lark, any_but, either, escaped, literal, mark, without
from flashmoe.text.syntax import Mark
from flashmoe.text.vocabulary import Vocabulary

UGLY = st.one_of(
    st.text(max_size=12), st.sampled_from(['"', "/", "\\", 'a" | "b', "\n", "é😀", "\x7f"])
)
CLOSE = "</parameter>"
QUIET = settings(deadline=None)  # a slow machine is no failure


@pytest.fixture(scope="module")
def vocabulary(byte_level):
    return Vocabulary(byte_level, byte_level.stop_ids, byte_level.vocab_size)


def matches(vocabulary, grammar, text):
    matcher = llguidance.LLMatcher(vocabulary.backend, grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    ids = vocabulary._single(text.encode())
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


@QUIET
@given(text=UGLY, other=UGLY)
def test_a_literal_is_just_its_text(vocabulary, text, other):
    grammar = Lark().grammar(literal(text) or '""')
    assert matches(vocabulary, grammar, text)
    assert matches(vocabulary, grammar, other) == (text == other)


@QUIET
@given(text=UGLY, other=UGLY)
def test_an_escaped_text_is_just_itself_in_a_pattern(vocabulary, text, other):
    lark = Lark()
    grammar = lark.grammar(lark.terminal(f"/x{escaped(text)}/"))
    assert matches(vocabulary, grammar, "x" + text)
    assert matches(vocabulary, grammar, "x" + other) == (text == other)


def python(pattern: str) -> str:
    """The same pattern as Python spells it."""
    return re.sub(r"\\x\{([0-9A-F]+)\}", lambda found: f"\\u{int(found[1], 16):04x}", pattern)


@QUIET
@given(parts=st.lists(st.sampled_from([CLOSE, "<", "</", "</par", "/parameter>", "<<", "a", "\n"])))
def test_any_text_but_one_that_holds_a_word(vocabulary, parts):
    text = "".join(parts)
    pattern = any_but(CLOSE)
    assert (re.fullmatch(python(pattern), text) is not None) == (CLOSE not in text)
    lark = Lark()
    grammar = lark.grammar(lark.terminal(f"/{pattern}{escaped(CLOSE)}/"))
    assert matches(vocabulary, grammar, text + CLOSE) == (CLOSE not in text)
    other = Lark()
    grammar = other.grammar(other.terminal(without([CLOSE])))
    assert matches(vocabulary, grammar, text) == (CLOSE not in text)


def test_a_mark_is_its_id_where_it_has_one(byte_level, vocabulary):
    id = byte_level.id_of("<think>")
    by_id = llguidance.LLMatcher(vocabulary.backend, Lark().grammar(mark(Mark("<think>", id))))
    assert by_id.validate_tokens([id]) == 1
    assert by_id.validate_tokens(vocabulary._single(b"<think>")) == 0
    assert matches(vocabulary, Lark().grammar(mark(Mark("<think>"))), "<think>")


def test_rules_go_by_their_names(vocabulary):
    lark = Lark()
    start = either([lark.rule('"a" "b"'), lark.terminal("/c+/")])
    grammar = lark.grammar(f"{start} {lark.lazy('/d+/')}?")
    found = {
        text for text in ("ab", "ccc", "abd", "d", "abdd") if matches(vocabulary, grammar, text)
    }
    assert found == {"ab", "ccc", "abd"}
