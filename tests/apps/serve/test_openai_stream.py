"""Options of a stream come with a stream."""

import pytest

from flashmoe.apps.serve.ask import BadRequest
from flashmoe.apps.serve.fields import Record
from flashmoe.apps.serve.openai_stream import STREAMED, check_stream, wants_usage

TABLE = Record(STREAMED)


@pytest.mark.parametrize(
    ("body", "wants"),
    [
        ({}, False),
        ({"stream": True}, False),
        ({"stream": False, "stream_options": None}, False),
        ({"stream": True, "stream_options": {"include_usage": True}}, True),
        ({"stream": True, "stream_options": {"continuous_usage_stats": False}}, False),
    ],
)
def test_the_figures_come_where_they_are_wanted(body, wants):
    given = TABLE.read(body)
    check_stream(given)
    assert wants_usage(given) is wants


@pytest.mark.parametrize("body", [{}, {"stream": False}])
def test_options_without_a_stream_are_refused(body):
    with pytest.raises(BadRequest, match="set stream to true") as caught:
        check_stream(TABLE.read({**body, "stream_options": {"include_usage": True}}))
    assert caught.value.param == "stream_options"


@pytest.mark.parametrize("name", ["continuous_usage_stats", "include_obfuscation"])
def test_what_no_stream_here_has_is_refused_by_name(name):
    with pytest.raises(BadRequest) as caught:
        TABLE.read({"stream": True, "stream_options": {name: True}})
    assert caught.value.param == f"stream_options.{name}"
