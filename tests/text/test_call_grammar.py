"""Calls as rules: the model's own writing of a call is one that the rules admit."""

from __future__ import annotations

import json

import pytest

from flashmoe.text.call_grammar import tools_of
from tests.text.bound import grammars_of, listed, tool

SHOP = tool(
    "buy",
    listed(
        {
            "what": {"type": "string"},
            "many": {"type": "integer"},
            "now": {"type": "boolean"},
            "to": {"type": ["string", "null"]},
            "how": listed({"gift": {"type": "boolean"}, "notes": {"type": "array"}}, []),
            "last": {"anyOf": [{"type": "number"}, {"enum": ["never"]}]},
        },
        ["what", "now"],
    ),
)
CALLS = [
    {"what": "a <b> & </i>\n\n", "now": True},
    {"what": "", "many": 3, "now": False, "to": None},
    {"what": "x", "now": True, "how": {"gift": True, "notes": ["a", 1, None, {"b": [2.5e3]}]}},
    {"what": "x < y", "many": -12, "now": True, "to": "é 日", "how": {}, "last": 0.25},
    {"what": "</parameter", "now": False, "last": "never"},
]


def as_template_writes(arguments):
    """What Qwen3.5's template makes of a call: values that are no JSON containers by ``str``."""
    written = "".join(
        f"<parameter={name}>\n"
        f"{json.dumps(value) if isinstance(value, list | dict) else value}\n</parameter>\n"
        for name, value in arguments.items()
    )
    return f"<tool_call>\n<function=buy>\n{written}</function>\n</tool_call>"


@pytest.mark.parametrize("form", ["xml", "json"])
@pytest.mark.parametrize("arguments", CALLS)
def test_what_templates_write_is_admitted(byte_level, form, arguments):
    body = json.dumps({"name": "buy", "arguments": arguments}, ensure_ascii=False)
    text = {
        "xml": as_template_writes(arguments),
        "json": f"<tool_call>\n{body}\n</tool_call>",
    }[form]
    guide = grammars_of(byte_level, form).guide(tools=[SHOP], tool_choice="required")
    for id in byte_level.encode(text):
        assert guide.mask()[id], (byte_level.token(id), text)
        guide.accept(id)
    assert guide.mask()[list(byte_level.stop_ids)].all()


@pytest.mark.parametrize(
    "text",
    [
        "\n<function=sell>",
        "\n<function=buy>\n<parameter=many>",
        "\n<function=buy>\n<parameter=what>\nx\n</parameter>\n</function>",
        "\n<function=buy>\n<parameter=what>\nx\n</parameter>\n<parameter=now>\nperhaps",
        "\n<function=buy>\n<parameter=what>\nx\n</parameter>\n<parameter=what>\n",
        "\n<function=buy>\n<parameter=what>\nx\n</parameter>\n<parameter=now>\ntrue\n</parameter>\n"
        "<parameter=more>",
    ],
)
def test_what_is_no_call_is_shut_out(byte_level, text):
    guide = grammars_of(byte_level).guide(tools=[SHOP], tool_choice="required")
    admitted = True
    for id in byte_level.encode(f"<tool_call>{text}"):
        admitted = bool(guide.mask()[id])
        if not admitted:
            break
        guide.accept(id)
    assert not admitted


def test_tools_without_parameters_take_none():
    (found,) = tools_of([tool("clock")])
    assert found.parameters["additionalProperties"] is False
    (bare,) = tools_of([{"name": "clock", "parameters": {"type": "object", "properties": {}}}])
    assert bare == found
