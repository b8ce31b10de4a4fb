"""A call can be wanted of tools that there are, and of no others."""

import pytest

from flashmoe.apps.serve.ask import BadRequest
from flashmoe.apps.serve.tool_choice import allowed
from flashmoe.turn import Named

TOOLS = tuple({"type": "function", "function": {"name": name}} for name in ("look", "go"))


@pytest.mark.parametrize("choice", ["auto", "none", "required", Named("go")])
def test_what_the_tools_allow_stays(choice):
    assert allowed(choice, TOOLS) == choice


@pytest.mark.parametrize("choice", ["auto", "none"])
def test_without_tools_nothing_need_be_called(choice):
    assert allowed(choice, ()) == choice


@pytest.mark.parametrize(
    ("choice", "tools", "param", "words"),
    [
        ("required", (), "tool_choice", "there are no tools"),
        (Named("go"), (), "tool_choice", "there are no tools"),
        (Named("stay"), TOOLS, "tool_choice.name", "'stay', which no tool has"),
    ],
)
def test_what_they_do_not_is_named(choice, tools, param, words):
    with pytest.raises(BadRequest, match=words) as caught:
        allowed(choice, tools)
    assert (caught.value.param, caught.value.code) == (param, "invalid_value")
