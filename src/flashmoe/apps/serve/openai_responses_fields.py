"""What a request to OpenAI's ``/v1/responses`` may hold, as tables.

Owns the parameters and items of that API, and why some are not taken; not what they mean.
"""

from __future__ import annotations

from flashmoe.apps.serve.ask import EFFORTS
from flashmoe.apps.serve.fields import (
    Either,
    Flag,
    Free,
    Items,
    Kind,
    Only,
    Record,
    Refused,
    Tagged,
    Text,
    Whole,
)
from flashmoe.apps.serve.openai_stream import UNPADDED
from flashmoe.apps.serve.sampling_fields import DRAWN, EXTENSIONS
from flashmoe.apps.serve.tool_names import ToolName

SEALED = "reasoning.encrypted_content"
"""What ``include`` calls reasoning in a form to be handed back."""

LOGPROBS = "message.output_text.logprobs"
"""What ``include`` calls the tokens' probabilities."""

_SEES_TEXT = "the model reads text alone: leave it out"
_NOTHING_KEPT = "nothing is kept between requests: give the whole conversation in input"
_NO_SERVER_TOOLS = "no tool runs in this server: describe one of your own as a function"
_WAITED_FOR = "all calls are waited for: leave it out"
_ELSEWHERE = "it belongs to OpenAI's own servers: leave it out"

_NOT_TEXT = dict.fromkeys(("input_image", "input_file", "input_audio"), _SEES_TEXT)
_GIVEN_TEXT = Record({"text": Text(), "prompt_cache_breakpoint": Free()}, ("text",))
_STATUS = Text(("in_progress", "completed", "incomplete"))


def _words(*more: tuple[str, Record]) -> Kind:
    """A string, or parts of text and of ``more``."""
    parts = Tagged("type", {"input_text": _GIVEN_TEXT, **dict(more)}, _NOT_TEXT)
    return Either((Text(), Items(parts)), "a string or a list of parts")


_WRITTEN = Record(
    {"text": Text(), "annotations": Items(Free()), "logprobs": Items(Free())}, ("text",)
)
_MESSAGE = Record(
    {
        "role": Text(("user", "assistant", "system", "developer")),
        "content": _words(
            ("output_text", _WRITTEN), ("refusal", Record({"refusal": Text()}, ("refusal",)))
        ),
        "id": Text(),
        "status": _STATUS,
        "phase": Text(("commentary", "final_answer")),
    },
    ("role", "content"),
)
_REASONING = Record(
    {
        "id": Text(),
        "summary": Items(Tagged("type", {"summary_text": Record({"text": Text()}, ("text",))})),
        "content": Items(Tagged("type", {"reasoning_text": Record({"text": Text()}, ("text",))})),
        "encrypted_content": Text(),
        "status": _STATUS,
    }
)
_CALL = Record(
    {
        "id": Text(),
        "call_id": Text(),
        "name": Text(),
        "arguments": Text(),
        "status": _STATUS,
        "caller": Tagged("type", {"direct": Record({})}),
        "namespace": Refused(_NO_SERVER_TOOLS),
        "async": Only(False, _WAITED_FOR),
    },
    ("call_id", "name", "arguments"),
)
_OUTPUT = Record(
    {
        "id": Text(),
        "call_id": Text(),
        "output": _words(),
        "name": Text(),
        "status": _STATUS,
        "caller": Tagged("type", {"direct": Record({})}),
        "namespace": Refused(_NO_SERVER_TOOLS),
    },
    ("call_id", "output"),
)
_ITEM = Tagged(
    "type",
    {
        "message": _MESSAGE,
        "reasoning": _REASONING,
        "function_call": _CALL,
        "function_call_output": _OUTPUT,
    },
    {
        "item_reference": _NOTHING_KEPT,
        "compaction": "only its own server can read it",
        **dict.fromkeys(
            (
                "file_search_call",
                "web_search_call",
                "computer_call",
                "computer_call_output",
                "image_generation_call",
                "code_interpreter_call",
                "local_shell_call",
                "local_shell_call_output",
                "shell_call",
                "shell_call_output",
                "apply_patch_call",
                "apply_patch_call_output",
                "mcp_call",
                "mcp_list_tools",
                "custom_tool_call",
                "custom_tool_call_output",
            ),
            "the tools here are functions: give a function_call and its output",
        ),
    },
    default="message",
)

_TOOL = Tagged(
    "type",
    {
        "function": Record(
            {
                "name": ToolName(),
                "description": Text(),
                "parameters": Free(),
                "strict": Flag(),
                "defer_loading": Only(False, "all tools are in the prompt: leave it out"),
                "allowed_callers": Items(Text(("direct",))),
                "async": Only(False, _WAITED_FOR),
                "output_schema": Refused("the model is not told of it: say it in description"),
            },
            ("name",),
            {"strict": "Calls are held to the schema in any case."},
        )
    },
    dict.fromkeys(
        (
            "file_search",
            "web_search",
            "web_search_preview",
            "computer",
            "computer_use_preview",
            "mcp",
            "code_interpreter",
            "image_generation",
            "local_shell",
            "shell",
            "custom",
            "apply_patch",
            "namespace",
            "tool_search",
        ),
        _NO_SERVER_TOOLS,
    ),
)
_CHOICE = Either(
    (
        Text(("none", "auto", "required")),
        Tagged(
            "type",
            {"function": Record({"name": Text()}, ("name",))},
            {"allowed_tools": "give in tools what may be called"},
        ),
    ),
    "a word or an object",
)
_FORMAT = Tagged(
    "type",
    {
        "text": Record({}),
        "json_object": Record({}),
        "json_schema": Record(
            {"name": Text(), "schema": Free(), "description": Text(), "strict": Flag()},
            ("name", "schema"),
            {
                "name": "Has no effect.",
                "description": "Has no effect: the schema alone binds the answer.",
                "strict": "Answers are held to the schema in any case.",
            },
        ),
    },
)
_UNSUMMED = Only("auto", "reasoning comes as it is, not as a summary: leave it out")

PARAMETERS = Record(
    {
        "model": Text(),
        "input": Either((Text(least=1), Items(_ITEM, least=1)), "a string or a list of items"),
        "instructions": Text(),
        "max_output_tokens": Whole(1),
        "stream": Flag(),
        "stream_options": Record(UNPADDED),
        "tools": Items(_TOOL),
        "tool_choice": _CHOICE,
        "parallel_tool_calls": Flag(),
        "max_tool_calls": Whole(1),
        "text": Record(
            {
                "format": _FORMAT,
                "verbosity": Only("medium", "the model has no such setting: leave it out"),
            }
        ),
        "reasoning": Record(
            {
                "effort": Text(tuple(EFFORTS)),
                "summary": _UNSUMMED,
                "generate_summary": _UNSUMMED,
                "context": Only("auto", "the chat template decides: leave it out"),
                "mode": Only("standard", "there is one mode: leave it out"),
            }
        ),
        "include": Items(Text((SEALED, LOGPROBS))),
        "top_logprobs": Whole(0, 20),
        "truncation": Only("disabled", "nothing of a conversation is dropped: shorten it"),
        "background": Only(False, "a reply is waited for: leave it out"),
        "background_options": Refused("a reply is waited for: leave it out"),
        "store": Flag(),
        "metadata": Free(),
        "user": Text(),
        "safety_identifier": Text(),
        "prompt_cache_key": Text(),
        "prompt_cache_retention": Text(("in_memory", "24h")),
        "service_tier": Text(("auto", "default")),
        "previous_response_id": Refused(_NOTHING_KEPT),
        "conversation": Refused(_NOTHING_KEPT),
        "prompt": Refused(_NOTHING_KEPT),
        "context_management": Refused("nothing of a conversation is dropped: shorten it"),
        "moderation": Refused(_ELSEWHERE),
        "access_programs": Refused(_ELSEWHERE),
        "prompt_cache_options": Refused(_ELSEWHERE),
        "image": Refused(_SEES_TEXT),
        **DRAWN,
        **EXTENSIONS,
    },
    required=("model", "input"),
    notes={
        "store": "Nothing is kept, whatever it says; the reply says false.",
        "max_tool_calls": "Has no effect: it bounds tools of the server's own, and there are none.",
        "include": f"{SEALED} is not encrypted: reasoning, in a form to be handed back.",
        "prompt_cache_key": "Has no effect: beginnings of prompts are kept without being asked.",
        "prompt_cache_retention": "Has no effect: what was used longest ago is dropped first.",
        "metadata": "Comes back.",
        "user": "Comes back.",
        "safety_identifier": "Comes back.",
        "service_tier": "Has no effect: there is one tier.",
    },
)
"""The body of ``/v1/responses``."""
