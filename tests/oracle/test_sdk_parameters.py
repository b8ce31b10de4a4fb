"""What the official SDKs can send is known here: honoured, or refused in words of its own."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("openai")
pytest.importorskip("anthropic")

from anthropic.types import (
    message_count_tokens_params,
    message_create_params,
    tool_param,
)
from anthropic.types.beta import message_create_params as beta_message_create_params
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import function_tool_param, response_create_params

from flashmoe.apps.serve import (
    anthropic_fields,
    openai_chat,
    openai_completions,
    openai_responses_fields,
)
from flashmoe.apps.serve.fields import Items, Kind, Record, Tagged

pytestmark = pytest.mark.oracle


def parameters(form: Any) -> set[str]:
    """The keys of a typed dictionary, those of the dictionaries that it extends among them."""
    inherited = (parameters(base) for base in getattr(form, "__orig_bases__", ()))
    return set(getattr(form, "__annotations__", {})).union(*inherited)


def tool_of(table: Record, kind: str) -> Record:
    """What a tool of this kind may hold."""
    tools: Kind = table.fields["tools"]
    assert isinstance(tools, Items) and isinstance(tools.of, Tagged)
    return tools.of.forms[kind]


@pytest.mark.parametrize(
    ("form", "table", "apart"),
    [
        (chat_create_params.CompletionCreateParamsStreaming, openai_chat.REQUEST, set()),
        (
            completion_create_params.CompletionCreateParamsStreaming,
            openai_completions.PARAMETERS,
            set(),
        ),
        (
            response_create_params.ResponseCreateParamsStreaming,
            openai_responses_fields.PARAMETERS,
            set(),
        ),
        (
            function_tool_param.FunctionToolParam,
            tool_of(openai_responses_fields.PARAMETERS, "function"),
            {"type"},
        ),
        (
            message_create_params.MessageCreateParamsStreaming,
            anthropic_fields.PARAMETERS,
            set(),
        ),
        (
            beta_message_create_params.MessageCreateParamsStreaming,
            anthropic_fields.PARAMETERS,
            {"betas"},  # of which the SDK makes a header
        ),
        (message_count_tokens_params.MessageCountTokensParams, anthropic_fields.COUNTED, set()),
        (tool_param.ToolParam, tool_of(anthropic_fields.PARAMETERS, "custom"), {"type"}),
    ],
)
def test_no_parameter_is_unheard_of(form: Any, table: Record, apart: set[str]) -> None:
    assert len(parameters(form)) > 5
    assert parameters(form) - table.fields.keys() == apart
