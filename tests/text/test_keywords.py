"""Values of keywords: what is wrong with one, in plain words."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashmoe.text.keywords import LARGEST_PATTERN, _matched, contradiction, fault, too_large


@pytest.mark.parametrize(
    ("keyword", "value", "words"),
    [
        ("type", "strin", "one of null, boolean"),
        ("type", ["string", 3], "one of null, boolean"),
        ("type", [], "one of null, boolean"),
        ("enum", [], "at least one value"),
        ("required", "name", "a list of names"),
        ("minLength", -1, "a whole number"),
        ("maxItems", True, "a whole number"),
        ("maxLength", 10**30, "a whole number"),
        ("minimum", "3", "a number"),
        ("minimum", float("inf"), "a number"),
        ("exclusiveMinimum", True, "a number"),
        ("multipleOf", 0, "above 0"),
        ("multipleOf", 10**7, "at most 100000"),
        ("anyOf", {}, "a list of at least one schema"),
        ("properties", [], "gives each name a schema"),
        ("pattern", 3, "as text"),
        ("pattern", "a" * 20_000, "make it shorter"),
        ("pattern", "(a{1000}){1000}", "lower them"),
        ("$ref", 3, "#/$defs/name"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named(keyword, value, words):
    found = fault(keyword, value)
    assert found is not None and words in found
    assert len(found) < 300


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("type", "null"),
        ("type", ["integer", "null"]),
        ("enum", [None]),
        ("required", []),
        ("maxLength", 3.0),
        ("minimum", -(10**400)),
        ("multipleOf", 0.01),
        ("pattern", "^[a-z]{1,64}@(?:[a-z]{1,63}[.]){1,8}$"),
        ("x-mine", object()),
    ],
)
def test_what_is_right_has_no_fault(keyword, value):
    assert fault(keyword, value) is None


def test_limits_that_leave_nothing_between_them():
    assert contradiction({"minLength": 3, "maxLength": 3}) is None
    for least, most in (("minLength", "maxLength"), ("minimum", "maximum")):
        found = contradiction({least: 3, most: 2})
        assert found is not None and least in found and most in found


PARTS = st.recursive(
    st.sampled_from(["a", "[b]c{9}]", r"[^]\]{3}]", r"\d", ".", r"\{3}", "é"]),
    lambda inner: st.one_of(
        st.builds(lambda part, most: f"(?:{part}){{{most}}}", inner, st.integers(0, 4)),
        st.builds(lambda part, most: f"({part}){{1,{most}}}", inner, st.integers(1, 4)),
        st.builds(lambda one, other: one + other, inner, inner),
    ),
    max_leaves=5,
)


def longest(pattern: str) -> int:
    """How many characters Python's own reading of a pattern matches at most."""
    return re._parser.parse(pattern).getwidth()[1]  # type: ignore[attr-defined]


@settings(deadline=None)
@given(pattern=PARTS)
def test_the_size_of_a_pattern_is_what_it_matches_at_most(pattern):
    assert _matched(pattern) == longest(pattern)


def test_repeats_multiply():
    assert too_large(f"a{{{LARGEST_PATTERN}}}") is None
    assert too_large(f"a{{{LARGEST_PATTERN + 1}}}") is not None
    assert too_large("(?:[0-9a-f]{4}-){10}" * 20) is None
    assert too_large(r"\x{40000}\p{Greek}\u{1F600}[{99999}]") is None
    assert too_large("((((a{20}){20}){20}){20})") is not None
