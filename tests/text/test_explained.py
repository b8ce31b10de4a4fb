"""Tools in the messages of a template that has no word on them."""

import json

from flashmoe.text.explained import explained

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": "ü"}}}


def test_the_system_message_says_what_there_is():
    (system, user) = explained([{"role": "user", "content": "Hi"}], [TOOL])
    assert system["role"] == "system" and json.dumps(TOOL["function"]) in system["content"]
    assert user == {"role": "user", "content": "Hi"}


def test_a_system_message_that_is_there_comes_first():
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    system, _ = explained(messages, [TOOL])
    assert system["content"].startswith("Be brief.\n\nYou may call")
    assert messages[0]["content"] == "Be brief."


def test_calls_and_results_are_text():
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Well:", "tool_calls": [CALL]},
        {"role": "tool", "content": "5", "tool_call_id": "x"},
    ]
    _, _, assistant, result = explained(messages, [TOOL])
    assert assistant == {
        "role": "assistant",
        "content": 'Well:\n<tool_call>\n{"name": "f", "arguments": {"a": "ü"}}\n</tool_call>',
    }
    assert result == {"role": "user", "content": "<tool_response>\n5\n</tool_response>"}
