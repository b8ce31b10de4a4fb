"""What a request to Anthropic's ``/v1/messages`` may hold, as tables.

Owns the parameters and blocks of that API, and why some are not taken; not what they mean.
"""

from __future__ import annotations

from collections.abc import Mapping

from flashmoe.apps.serve.fields import (
    Either,
    Flag,
    Free,
    Items,
    Kind,
    Only,
    Real,
    Record,
    Refused,
    Tagged,
    Text,
    Whole,
)
from flashmoe.apps.serve.sampling_fields import STOP_STRINGS
from flashmoe.apps.serve.tool_names import ToolName

_SEES_TEXT = "the model reads text alone: leave it out"
_NO_SERVER_TOOLS = "no tool runs in this server: describe one of your own, with an input_schema"
_UNCITED = "replies have no citations here: leave it out"

_CACHED: Mapping[str, Kind] = {
    "cache_control": Record({"type": Text(("ephemeral",)), "ttl": Text(("5m", "1h"))}, ("type",))
}
_TEXT = Record({"text": Text(), "citations": Refused(_UNCITED), **_CACHED}, ("text",))
_NOT_TEXT = {
    "image": _SEES_TEXT,
    "search_result": "give it as text",
    "container_upload": "there are no containers: give a file as text",
    **dict.fromkeys(
        (
            "server_tool_use",
            "web_search_tool_result",
            "web_fetch_tool_result",
            "code_execution_tool_result",
            "bash_code_execution_tool_result",
            "text_editor_code_execution_tool_result",
            "tool_search_tool_result",
            "tool_reference",
            "browser_state",
            "mcp_tool_use",
            "mcp_tool_result",
        ),
        "no tool runs in this server: leave it out",
    ),
}
_FILES = dict.fromkeys(("base64", "url", "file"), "documents are read as text alone: give a text")


def _words(*more: tuple[str, Record]) -> Kind:
    """A string, or blocks of text and of ``more``."""
    forms = {"text": _TEXT, **dict(more)}
    refused = {name: why for name, why in _NOT_TEXT.items() if name not in forms}
    return Either((Text(), Items(Tagged("type", forms, refused))), "a string or a list of blocks")


_SOURCE = Tagged(
    "type",
    {
        "text": Record({"data": Text(), "media_type": Text(("text/plain",))}, ("data",)),
        "content": Record({"content": _words()}, ("content",)),
    },
    _FILES,
)
_DOCUMENT = Record(
    {
        "source": _SOURCE,
        "title": Text(),
        "context": Text(),
        "citations": Record({"enabled": Only(False, _UNCITED)}),
        **_CACHED,
    },
    ("source",),
)
_RESULT = Record(
    {
        "tool_use_id": Text(),
        "content": _words(("document", _DOCUMENT)),
        "is_error": Flag(),
        "toolset_name": Refused(_NO_SERVER_TOOLS),
        **_CACHED,
    },
    ("tool_use_id",),
    {"is_error": "The text then begins with 'Error: '."},
)
_USE = Record(
    {
        "id": Text(),
        "name": Text(),
        "input": Free(),
        "caller": Tagged("type", {"direct": Record({})}),
        "toolset_name": Refused(_NO_SERVER_TOOLS),
        **_CACHED,
    },
    ("id", "name", "input"),
)
_THOUGHT = Record({"thinking": Text(), "signature": Text()}, ("thinking",))
_REDACTED = Record({"data": Text()}, ("data",))

_MESSAGE = Tagged(
    "role",
    {
        "user": Record(
            {"content": _words(("document", _DOCUMENT), ("tool_result", _RESULT))}, ("content",)
        ),
        "assistant": Record(
            {
                "content": _words(
                    ("tool_use", _USE), ("thinking", _THOUGHT), ("redacted_thinking", _REDACTED)
                )
            },
            ("content",),
        ),
        "system": Record({"content": _words()}, ("content",)),
    },
)

_DISPLAY: Mapping[str, Kind] = {"display": Text(("summarized", "omitted"))}
_THINKING = Tagged(
    "type",
    {
        "enabled": Record({"budget_tokens": Whole(1), **_DISPLAY}, ("budget_tokens",)),
        "adaptive": Record(_DISPLAY),
        "disabled": Record({}),
    },
    {"between_tools": "a model thinks before all of its reply or not at all"},
)

_TOOL = Tagged(
    "type",
    {
        "custom": Record(
            {
                "name": ToolName(most=128),
                "description": Text(),
                "input_schema": Free(),
                "strict": Flag(),
                "eager_input_streaming": Flag(),
                "defer_loading": Only(False, "all tools are in the prompt: leave it out"),
                "allowed_callers": Items(Text(("direct",))),
                "input_examples": Refused("put examples into the description"),
                **_CACHED,
            },
            ("name", "input_schema"),
            {"strict": "Calls are held to the schema in any case."},
        )
    },
    dict.fromkeys(
        (
            "bash_20250124",
            "text_editor_20250124",
            "text_editor_20250429",
            "text_editor_20250728",
            "memory_20250818",
            "browser_toolset_20260801",
            "computer_20250124",
            "computer_toolset_20260801",
            "code_execution_20250522",
            "code_execution_20250825",
            "code_execution_20260120",
            "code_execution_20260521",
            "tool_search_tool_bm25",
            "tool_search_tool_bm25_20251119",
            "tool_search_tool_regex",
            "tool_search_tool_regex_20251119",
            "web_search_20250305",
            "web_search_20260209",
            "web_search_20260318",
            "web_fetch_20250910",
            "web_fetch_20260209",
            "web_fetch_20260309",
            "web_fetch_20260318",
        ),
        _NO_SERVER_TOOLS,
    ),
    default="custom",
)
_ALONE: Mapping[str, Kind] = {"disable_parallel_tool_use": Flag()}
_CHOICE = Tagged(
    "type",
    {
        "auto": Record(_ALONE),
        "any": Record(_ALONE),
        "tool": Record({"name": Text(), **_ALONE}, ("name",)),
        "none": Record({}),
    },
)
_SCHEMA_FORM = Tagged("type", {"json_schema": Record({"schema": Free()}, ("schema",))})
_OUTPUT = Record(
    {
        "effort": Text(("low", "medium", "high", "xhigh", "max")),
        "format": _SCHEMA_FORM,
        "task_budget": Refused("give max_tokens, which bounds each reply"),
    }
)
_KEPT = Record(
    {
        "edits": Items(
            Tagged(
                "type",
                {
                    "clear_thinking_20251015": Record(
                        {"keep": Only("all", "nothing is cleared here: keep all of it")}, ("keep",)
                    )
                },
            )
        )
    }
)

_ELSEWHERE = "it belongs to Anthropic's own servers: leave it out"
_OF_A_PROMPT: Mapping[str, Kind] = {
    "model": Text(),
    "messages": Items(_MESSAGE, least=1),
    "system": _words(),
    "tools": Items(_TOOL),
    "tool_choice": _CHOICE,
    "thinking": _THINKING,
    "output_config": _OUTPUT,
    "context_management": _KEPT,
    "speed": Only("standard", "there is one speed: leave it out"),
    "user_profile_id": Refused(_ELSEWHERE),
    "workspace_id": Refused(_ELSEWHERE),
    **_CACHED,
}
_NOTES = {
    "cache_control": "Has no effect: beginnings of prompts are kept without being asked.",
    "system": "Blocks of text become paragraphs of one.",
    "thinking": "Nothing is thought unless it is enabled or adaptive.",
    "output_config": "effort bounds what is thought: low 1024 tokens, medium 4096, others not.",
    "context_management": "Only what changes nothing.",
    "metadata": "Has no effect.",
    "service_tier": "Has no effect: there is one tier.",
}
PARAMETERS = Record(
    {
        **_OF_A_PROMPT,
        "max_tokens": Whole(1),
        "stream": Flag(),
        "stop_sequences": Items(Text(least=1), most=STOP_STRINGS),
        "temperature": Real(0, 1),
        "top_p": Real(0, 1, above=True),
        "top_k": Whole(0),
        "metadata": Record({"user_id": Text()}),
        "service_tier": Text(("auto", "standard_only")),
        "mcp_servers": Refused(_NO_SERVER_TOOLS),
        "compaction": Refused("nothing of a conversation is dropped: shorten it"),
        "output_format": Refused("give output_config.format instead"),
        **dict.fromkeys(
            (
                "billing_policy",
                "container",
                "diagnostics",
                "fallback_credit_token",
                "fallbacks",
                "inference_geo",
                "thread",
            ),
            Refused(_ELSEWHERE),
        ),
    },
    required=("model", "messages", "max_tokens"),
    notes=_NOTES,
)
"""The body of ``/v1/messages``."""

COUNTED = Record(_OF_A_PROMPT, required=("model", "messages"), notes=_NOTES)
"""The body of ``/v1/messages/count_tokens``."""
