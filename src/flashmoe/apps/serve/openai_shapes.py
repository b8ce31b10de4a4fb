"""What OpenAI's APIs write alike: errors, usage, tokens with their probabilities.

Owns those JSON forms; not the replies around them.
"""

from __future__ import annotations

from typing import Any

from flashmoe.apps.serve.ask import Refusal, Token
from flashmoe.turn import Usage

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def refused(refusal: Refusal) -> dict[str, Any]:
    """The body of an error."""
    internal = refusal.status >= 500
    kind = "server_error" if internal else _TYPES.get(refusal.status, "invalid_request_error")
    return {
        "error": {
            "message": refusal.message,
            "type": kind,
            "param": refusal.param,
            "code": refusal.code,
        }
    }


def usage_of(usage: Usage) -> dict[str, Any]:
    """What a completion has cost, of either API that has completions."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def token_of(token: Token) -> dict[str, Any]:
    """A token with its alternatives."""
    return {**_alone(token), "top_logprobs": [_alone(other) for other in token.top]}


def _alone(token: Token) -> dict[str, Any]:
    return {"token": token.text, "logprob": token.logprob, "bytes": list(token.data)}
