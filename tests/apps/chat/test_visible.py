"""No text that others wrote can steer a terminal."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmoe.apps.chat.visible import one_line, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, naïve, 漢字, 👩‍👩‍👧\n\ttabbed", "plain, naïve, 漢字, 👩‍👩‍👧\n\ttabbed"),
        ("\x1b[2J\x1b]52;c;cm0=\x07", "␛[2J␛]52;c;cm0=␇"),
        ("a\rb\x08c\x7f", "a␍b␈c␡"),
        ("one\r\ntwo\r\n", "one\ntwo\n"),
        ("\x9b31m", "\\u009b31m"),
        ("rm \u202etxt.exe", "rm \\u202etxt.exe"),
        ("a\u2028b", "a\\u2028b"),
        ("\ud800", "\\ud800"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_what_steers_is_shown(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(st.text(st.characters(codec=None)))
def test_nothing_that_steers_is_left(text: str) -> None:
    left = visible(text)
    assert not [c for c in left if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t"]
    assert not set(left) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
    left.encode("utf-8")


@given(st.text(), st.integers(1, 30))
def test_one_line_is_one_line_of_that_width(text: str, width: int) -> None:
    line = one_line(text, width)
    assert len(line) <= width and "\n" not in line and "\t" not in line
