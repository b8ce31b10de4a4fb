"""No text that others wrote can steer a terminal."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmoe.apps.visible import exact, one_line, visible


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
        ("r\u200bm\u00ad \u200e\u061c\u2063", "r\\u200bm\\u00ad \\u200e\\u061c\\u2063"),
        ("\u115f\u1160\u3164\uffa0", "\\u115f\\u1160\\u3164\\uffa0"),
        ("می\u200cشود \u0600", "می\u200cشود \u0600"),
    ],
)
def test_what_steers_is_shown(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_what_is_agreed_to_is_shown_to_the_last_character() -> None:
    assert exact("ls -l | grep 'naïve 漢字'\n\tüber ⣿") == "ls -l | grep 'naïve 漢字'\n\tüber ⣿"
    assert exact("a\u200db\u200c\ufe0f\r\n\xa0c\u2800") == (
        "a\\u200db\\u200c\\ufe0f␍\n\\u00a0c\\u2800"
    )
    every = [chr(code) for code in range(0x110000)]
    formats = [char for char in every if unicodedata.category(char) == "Cf"]
    assert exact("".join(formats)).isascii()
    seen = [char for char in formats if visible(char) == char]
    assert not {"\u200b", "\u200e", "\u200f", "\u061c", "\u00ad", "\ufeff"} & {*seen}
    assert {unicodedata.name(char).split()[0] for char in seen} <= {
        "ZERO", "ARABIC", "SYRIAC", "KAITHI", "EGYPTIAN"
    }  # fmt: skip


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
