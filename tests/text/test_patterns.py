"""Patterns for grammars: anchors, and the formats of JSON Schema."""

from __future__ import annotations

import re

import jsonschema
import pytest

from flashmoe.errors import InputError
from flashmoe.text.forms import Regex
from flashmoe.text.patterns import FORMATS, searched, whole
from tests.text.bound import drawn, grammars_of


@pytest.mark.parametrize(
    ("pattern", "body"),
    [
        ("ab", "/ab/"),
        ("^ab$", "/ab/"),
        ("^a|b$", "/a|b/"),
        (r"a\$", r"/a\$/"),
        (r"a\\$", r"/a\\/"),
        ("a/b", r"/a\/b/"),
        ("[$^]", "/[$^]/"),
        ("[]$]x", "/[]$]x/"),
        ("a\nb", r"/a\nb/"),
    ],
)
def test_a_whole_match_needs_no_anchors(pattern, body):
    assert whole(pattern, "it") == body


@pytest.mark.parametrize(
    ("pattern", "body"),
    [
        ("ab", "/(?s:.*)(?:ab)(?s:.*)/"),
        ("^ab", "/(?:ab)(?s:.*)/"),
        ("ab$", "/(?s:.*)(?:ab)/"),
        ("^(?:a|b)$", "/(?:(?:a|b))/"),
        ("a|b", "/(?s:.*)(?:a|b)(?s:.*)/"),
    ],
)
def test_a_search_is_open_where_there_is_no_anchor(pattern, body):
    assert searched(pattern, "it") == body


@pytest.mark.parametrize("pattern", ["^a|b", "a|b$", "(^a)", "a(b$)c", 5])
def test_anchors_that_would_be_lost_are_refused(pattern):
    with pytest.raises(InputError, match="it: the pattern"):
        searched(pattern, "it")


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_what_a_format_admits_fits_it(byte_level, name):
    """By jsonschema, as far as it checks the format without further packages."""
    schema = {"type": "string", "format": name}
    grammars = grammars_of(byte_level)
    for seed in range(4):
        guide = grammars.guide(form=Regex(FORMATS[name]))
        ids, _ = drawn(guide, byte_level, seed)
        text = byte_level.decode([id for id in ids if id not in byte_level.stop_ids])
        assert re.fullmatch(FORMATS[name], text)
        jsonschema.validate(
            text, schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
        )
