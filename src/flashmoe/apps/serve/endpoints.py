"""The paths to which a request is POSTed, each with the API that it speaks.

Owns the list, and which API a path belongs to where nothing answers it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flashmoe.apps.serve import anthropic, openai_chat, openai_completions, openai_responses
from flashmoe.apps.serve.ask import Endpoint, Refusal
from flashmoe.apps.serve.openai_errors import refused

ENDPOINTS: tuple[Endpoint, ...] = (
    openai_chat.ENDPOINT,
    openai_completions.ENDPOINT,
    openai_responses.ENDPOINT,
    anthropic.MESSAGES,
    anthropic.COUNT_TOKENS,
)


def shape_of(
    path: str, headers: Mapping[str, str] | None = None
) -> Callable[[Refusal], dict[str, Any]]:
    """How an error at this path is told: as the API whose path it is, or is below. A path that is
    nobody's, or two APIs' as ``/v1/models`` is, speaks as it is asked: ``headers``, by their names
    in lower case, name Anthropic's version or do not."""
    for endpoint in ENDPOINTS:
        if path == endpoint.path or path.startswith(f"{endpoint.path}/"):
            return endpoint.refused
    asked, _ = anthropic.VERSIONS
    return anthropic.MESSAGES.refused if asked in (headers or {}) else refused
