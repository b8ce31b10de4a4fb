"""Texts that are too long: refused without encoding them whole, and never one that is not."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashmoe import Engine
from flashmoe.errors import ContextError
from flashmoe.options import Budget
from flashmoe.text import length
from flashmoe.text.template import Segment
from flashmoe.turn import Opening, Plain, Turn

WORDS = [
    "Emma was ",
    "a",
    " ",
    "\n",
    "    ",
    "é",
    "漢字",
    "\U0001f600",
    "12,345 ",
    "<|im_end|>",
    "'ll",
]


@pytest.fixture(scope="module")
def engine():
    with Engine.open("demo", budget=Budget(context_tokens=512)) as engine:
        yield engine


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(WORDS), st.integers(1, 9000), st.booleans()),
        min_size=1,
        max_size=6,
    )
)
def test_what_is_said_to_be_too_long_is(engine, drawn):
    segments = [Segment(word * times, markup) for word, times, markup in drawn]
    ids = engine.tokenizer.encode_segments(segments)
    assert not length.exceeds(engine.tokenizer, segments, len(ids))


@pytest.mark.parametrize("word", [word for word in WORDS if word.strip()])
def test_what_is_far_too_long_is_seen_after_a_part_of_it(engine, word, monkeypatch):
    encoded = []
    real = type(engine.tokenizer).encode_segments

    def encode(self, segments):
        encoded.append(sum(len(segment.text) for segment in segments))
        return real(self, segments)

    monkeypatch.setattr(type(engine.tokenizer), "encode_segments", encode)
    text = word * (1_000_000 // len(word))
    for turn in (Turn(({"role": "user", "content": text},)), Plain(text)):
        encoded.clear()
        with pytest.raises(ContextError, match="far longer than the context"):
            Opening.of(engine, turn)
        assert max(encoded) <= 16 << 10 and sum(encoded) < 100_000


def test_many_short_messages_are_seen_as_well(engine):
    turn = Turn(tuple({"role": "user", "content": "Hello"} for _ in range(50_000)))
    with pytest.raises(ContextError, match="far longer than the context"):
        Opening.of(engine, turn)
