"""Events as bytes: one event is one event, whatever it says."""

import json

from hypothesis import given
from hypothesis import strategies as st

from flashmoe.apps.serve import sse
from flashmoe.apps.serve.ask import Event


@given(st.text(), st.sampled_from([None, "ping"]))
def test_an_event_ends_where_it_ends(text, name):
    data = sse.encoded(Event({"text": text}, name)).decode()
    assert data.endswith("\n\n") and data.count("\n\n") == 1
    *named, line = data.removesuffix("\n\n").split("\n")
    assert named == ([f"event: {name}"] if name else [])
    assert "\r" not in line
    assert json.loads(line.removeprefix("data: ")) == {"text": text}


@given(st.text(st.characters(codec="utf-8")))
def test_a_comment_is_one_line(text):
    data = sse.comment(text).decode()
    assert data.startswith(":") and data.endswith("\n\n")
    assert "\n" not in data[:-2] and "\r" not in data


def test_a_word_stands_as_it_is():
    assert sse.encoded(Event("[DONE]")) == b"data: [DONE]\n\n"
