"""Errors in OpenAI's shape, which is also that of paths that belong to no API."""

from __future__ import annotations

from typing import Any

from flashmoe.apps.serve.ask import Refusal

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


def refused(refusal: Refusal) -> dict[str, Any]:
    """The body of an error; in a stream, the data of its event."""
    kind = _TYPES.get(refusal.status)
    if kind is None:
        kind = "invalid_request_error" if refusal.status < 500 else "server_error"
    return {
        "error": {
            "message": refusal.message,
            "type": kind,
            "param": refusal.param,
            "code": refusal.code,
        }
    }
