"""Files of tool requests: both forms, and what is wrong named by its place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flashmoe.apps.eval import document
from flashmoe.apps.eval.cases import read_cases
from flashmoe.errors import InputError

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}}
GOOD = {"messages": [{"role": "user", "content": "Rain?"}], "tools": [TOOL]}


def spoken(call) -> dict:
    """A case whose conversation has a call already."""
    return {**GOOD, "messages": [{"role": "assistant", "content": "", "tool_calls": [call]}]}


def written(tmp_path, text: str):
    path = tmp_path / "cases"
    path.write_text(text)
    return path


def test_lines_and_a_list_are_the_same(tmp_path):
    entries = [
        GOOD,
        {**GOOD, "tool_choice": "required", "name": "get_weather", "arguments": {"city": "Bath"}},
        {"prompt": "<|im_start|>user\nRain?", "tools": [TOOL], "name": "get_weather", "user": "-"},
    ]
    lines = read_cases(written(tmp_path, "\n\n".join(map(json.dumps, entries)) + "\n"))
    listed = read_cases(written(tmp_path, "\n" + json.dumps(entries, indent=1)))
    assert [case.place.split(", ")[1] for case in lines] == ["line 1", "line 3", "line 5"]
    assert [case.place.split(", ")[1] for case in listed] == ["case 1", "case 2", "case 3"]
    for one, other in zip(lines, listed, strict=True):
        assert vars(one) | {"place": ""} == vars(other) | {"place": ""}
    free, required, raw = lines
    assert (free.tool_choice, free.name, free.arguments) == ("auto", None, None)
    assert (required.tool_choice, required.name) == ("required", "get_weather")
    assert required.arguments == {"city": "Bath"} and required.schemas == {"get_weather": SCHEMA}
    assert raw.prompt == "<|im_start|>user\nRain?" and raw.messages == ()


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        ("{", "line 2 is not JSON: Expecting property name enclosed in double quotes (character 2"),
        ("[" * 100_000, "line 2 is not JSON: it is nested too deep"),
        (
            spoken({"function": {"name": "f", "arguments": "{"}}),
            "line 2: the arguments of a call of f",
        ),
        (
            spoken({"function": {"name": "f", "arguments": [1]}}),
            "line 2: the arguments of a call of f",
        ),
        (spoken({"name": "f"}), "line 2: a message's tool_calls are not of the form"),
        (
            {**GOOD, "messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "line 2: the content of a message has a part that is no text",
        ),
        ("[1]", "line 2 is not an object"),
        ("7", "line 2 is not an object"),
        ({**GOOD, "expect": 1}, "line 2 has the unknown key 'expect'; a case takes arguments, "),
        ({"tools": [TOOL]}, "line 2 needs either messages or prompt"),
        ({**GOOD, "prompt": "x"}, "line 2 needs either messages or prompt"),
        ({**GOOD, "messages": "x"}, "line 2: messages is not a list of objects"),
        ({**GOOD, "messages": []}, "line 2: messages is empty"),
        ({"prompt": "", "tools": [TOOL]}, "line 2: prompt is no text"),
        ({**GOOD, "tools": []}, "line 2: tools is no list of at least one tool"),
        ({**GOOD, "tools": [{"name": "f"}]}, "line 2: a tool is not of the form"),
        (
            {**GOOD, "tools": [{"function": {"name": "f", "parameters": 3}}]},
            "line 2: the parameters of f are no JSON schema",
        ),
        ({**GOOD, "tool_choice": "none"}, "line 2: tool_choice is 'none'"),
        ({**GOOD, "name": 3}, "line 2: name is 3"),
        ({**GOOD, "name": "g"}, "line 2: name is 'g', which none of its tools has"),
        ({**GOOD, "arguments": {}}, "line 2 has arguments and no name"),
        ({**GOOD, "name": "get_weather", "arguments": [1]}, "line 2: arguments is"),
    ],
)
def test_what_is_malformed_is_named_by_its_line(tmp_path, entry, fault):
    line = entry if isinstance(entry, str) else json.dumps(entry)
    with pytest.raises(InputError) as refused:
        read_cases(written(tmp_path, f"{json.dumps(GOOD)}\n{line}\n"))
    assert fault in str(refused.value)


def test_messages_of_openai_s_api_are_turned_into_those_of_templates(tmp_path):
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": [1]}'}}
    parts = [{"type": "text", "text": "Will it "}, {"type": "text", "text": "rain?"}]
    entry = spoken(call)
    entry["messages"].insert(0, {"role": "user", "content": parts})
    (case,) = read_cases(written(tmp_path, "\ufeff" + json.dumps(entry) + "\r\n"))
    assert case.messages[0]["content"] == "Will it rain?"
    assert case.messages[1]["tool_calls"][0]["function"]["arguments"] == {"a": [1]}


def test_a_list_that_is_none_and_a_file_without_cases(tmp_path):
    with pytest.raises(InputError, match="not a JSON list of cases"):
        read_cases(written(tmp_path, "[{]"))
    for text in ("", "\n \n", "[]"):
        with pytest.raises(InputError, match="has no cases"):
            read_cases(written(tmp_path, text))
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_cases(tmp_path / "missing")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_cases(tmp_path)
    (tmp_path / "latin").write_bytes(b"a\nb\xe4c")
    with pytest.raises(InputError, match=r"line 2 is not UTF-8 \(byte 0xE4, 3 bytes from"):
        read_cases(tmp_path / "latin")


def test_a_file_without_measure_is_not_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(document, "LARGEST_BYTES", 100)
    (tmp_path / "large").write_text("a" * 101)
    for path in (tmp_path / "large", Path("/dev/zero")):
        with pytest.raises(InputError, match=r"is larger than .*take a part"):
            read_cases(path)
    (tmp_path / "large").write_text("a" * 100)
    assert len(document.read_text(tmp_path / "large")) == 100
