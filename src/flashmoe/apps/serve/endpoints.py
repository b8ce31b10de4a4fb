"""The paths to which a request is POSTed, each with the API that it speaks.

Owns the list, and which API a path belongs to where nothing answers it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flashmoe.apps.serve import openai_chat
from flashmoe.apps.serve.ask import Endpoint, Refusal
from flashmoe.apps.serve.openai_errors import refused

ENDPOINTS: tuple[Endpoint, ...] = (openai_chat.ENDPOINT,)


def shape_of(path: str) -> Callable[[Refusal], dict[str, Any]]:
    """How an error at this path is told: as the API whose path it is, or is below."""
    for endpoint in ENDPOINTS:
        if path == endpoint.path or path.startswith(f"{endpoint.path}/"):
            return endpoint.refused
    return refused
