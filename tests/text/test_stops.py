"""Text ends before the stop string that is complete first, however it comes in pieces."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flashmoe.errors import InputError
from flashmoe.text.stops import Stops


def stopped(text: str, stop: list[str]) -> tuple[str, str | None]:
    """What must come out: the text before the stop string that is complete first."""
    for end in range(len(text) + 1):
        met = [word for word in stop if text[:end].endswith(word)]
        if met:
            longest = max(met, key=len)
            return text[: end - len(longest)], longest
    return text, None


WORDS = st.lists(st.text("ab\n€", min_size=1, max_size=4), max_size=3)


@given(pieces=st.lists(st.text("ab\n€", max_size=6), max_size=12), stop=WORDS)
@example(pieces=list("aabaabaaab"), stop=["aabaaa", "abaaab"])
def test_stop_strings(pieces: list[str], stop: list[str]) -> None:
    stops, output, text = Stops(stop), "", ""
    for piece in pieces:
        text += piece
        output += stops.push(piece)
        held = "" if stops.met else text[len(output) :]
        assert not any(word in output for word in stop)
        assert held == "" or any(word.startswith(held) for word in stop)
    output += stops.flush()
    assert (output, stops.met) == stopped(text, stop)


def test_text_that_may_become_a_stop_string_is_held_back() -> None:
    stops = Stops(["END"])
    assert [stops.push(letter) for letter in "aENEND!"] == ["a", "", "", "EN", "", "", ""]
    assert stops.met == "END"
    assert stops.flush() == ""


def test_after_an_interruption_the_search_begins_anew() -> None:
    stops = Stops(["END"])
    assert [stops.push("xEN"), stops.flush(), stops.push("D"), stops.flush()] == [
        "x", "EN", "D", "",
    ]  # fmt: skip
    assert stops.met is None


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(InputError, match="empty"):
        Stops(["a", ""])
