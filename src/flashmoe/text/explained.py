"""Tools for a chat template that has no word on them: told in the conversation's own messages.

Owns the explanation, and how earlier calls and their results are written, in the JSON form
(``text.syntax``), which is what most models have seen. Not needed, and not used, where the template
writes tools itself. All of it is content: no message becomes markup by it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

_HOW = """\
You may call functions. These are there, each with a JSON schema of its arguments:
<tools>
{tools}
</tools>
To call one, answer with nothing but its name and arguments, as JSON between these tags:
<tool_call>
{{"name": "the function's name", "arguments": {{"an argument's name": "its value"}}}}
</tool_call>
What it returns comes back between <tool_response> and </tool_response>."""


def explained(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], ...]:
    """The conversation with the tools in its system message, and calls and results as text."""
    listed = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    how = _HOW.format(tools=listed)
    told = [_told(message) for message in messages]
    if told and told[0].get("role") == "system":
        told[0]["content"] = f"{told[0].get('content', '')}\n\n{how}"
    else:
        told.insert(0, {"role": "system", "content": how})
    return tuple(told)


def _told(message: Mapping[str, Any]) -> dict[str, Any]:
    told = dict(message)
    if told.get("role") == "tool":
        content = told.get("content") or ""
        return {"role": "user", "content": f"<tool_response>\n{content}\n</tool_response>"}
    calls = told.pop("tool_calls", None) or ()
    written = [
        "<tool_call>\n"
        + json.dumps(
            {"name": call["function"]["name"], "arguments": call["function"]["arguments"]},
            ensure_ascii=False,
        )
        + "\n</tool_call>"
        for call in calls
    ]
    if written:
        told["content"] = "\n".join([*filter(None, [told.get("content")]), *written])
    return told
