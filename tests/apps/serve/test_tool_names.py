"""Tools have the names that OpenAI and Anthropic take, and no others."""

import re

import pytest

from flashmoe.apps.serve import anthropic, openai_chat, openai_responses
from flashmoe.apps.serve.ask import BadRequest
from flashmoe.apps.serve.tool_names import ToolName

HI = [{"role": "user", "content": "Hi"}]


def chat(name):
    tool = {"type": "function", "function": {"name": name}}
    return openai_chat.read({"model": "m", "messages": HI, "tools": [tool]})


def responses(name):
    tool = {"type": "function", "name": name}
    return openai_responses.read({"model": "m", "input": "Hi", "tools": [tool]})


def messages(name):
    tool = {"name": name, "input_schema": {}}
    return anthropic.read({"model": "m", "messages": HI, "max_tokens": 9, "tools": [tool]})


APIS = [(chat, "tools[0].function.name"), (responses, "tools[0].name"), (messages, "tools[0].name")]


@pytest.mark.parametrize(("api", "path"), APIS)
@pytest.mark.parametrize(
    "name", ["a b", "files.read", "größe", "f\n", "<f>", "f" * 129, "", "\ud800"]
)
def test_others_are_refused_by_place(api, path, name):
    with pytest.raises(BadRequest) as caught:
        api(name)
    assert caught.value.param == path and caught.value.message.startswith(path)


@pytest.mark.parametrize(("api", "path"), APIS)
@pytest.mark.parametrize("name", ["f", "get_weather-2", "F" * 64])
def test_these_are_taken(api, path, name):
    assert api(name).turn.tools[0]["function"]["name"] == name


def test_anthropic_has_longer_ones():
    assert messages("f" * 128)
    with pytest.raises(BadRequest, match="must be 1 to 64 letters"):
        chat("f" * 65)


def test_its_schema_says_the_same():
    pattern = ToolName(8).schema()["pattern"]
    for name in ("abc", "", "a" * 9, "a.b", "a-_Z"):
        try:
            taken = bool(ToolName(8).read(name, "name"))
        except BadRequest:
            taken = False
        assert taken == bool(re.search(pattern, name))
