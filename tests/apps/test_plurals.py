"""No "1 turns", and no "2 replys"."""

from __future__ import annotations

import pytest

from flashmoe.apps.plurals import counted


@pytest.mark.parametrize(
    ("number", "noun", "told"),
    [
        (0, "token", "0 tokens"),
        (1, "token", "1 token"),
        (1.0, "token", "1 token"),
        (2.0, "token", "2 tokens"),
        (2, "reply", "2 replies"),
        (2, "miss", "2 misses"),
        (2, "day", "2 days"),
        (1, "miss", "1 miss"),
    ],
)
def test_the_noun_has_the_form_of_its_number(number: float, noun: str, told: str) -> None:
    assert counted(number, noun) == told
