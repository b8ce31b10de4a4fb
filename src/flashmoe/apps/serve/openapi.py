"""The OpenAPI document, from the tables that check parameters.

Owns what is said around them; a parameter is in the document because it is in its table.
"""

from __future__ import annotations

from typing import Any

from flashmoe import __version__
from flashmoe.apps.serve.endpoints import ENDPOINTS

_ERRORS = {
    "400": "A parameter is unknown, unsupported or out of range; the message names it",
    "401": "The API key is missing or wrong",
    "403": "The host or the origin is not allowed",
    "404": "The model is another",
    "405": "Another method is taken",
    "408": "The body did not come in time",
    "413": "The body is too long",
    "415": "The body is not JSON",
    "429": "Too many wait",
    "500": "The server has failed",
    "503": "The server is stopping",
    "504": "The reply has taken too long",
}
_LOOKED_AT = {
    "/health": ("Whether the server is up", {"200": "It is", "503": "It is stopping"}),
    "/v1/models": ("The model that is served", {"200": "A list of one"}),
    "/v1/models/{model}": ("The same by its name", {"200": "It", "404": _ERRORS["404"]}),
}
_NAMED = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}


def document(model: str) -> dict[str, Any]:
    """The document of a server of this model."""
    paths: dict[str, Any] = {
        endpoint.path: {
            "post": {
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": dict(endpoint.schema)}},
                },
                "responses": {
                    "200": {
                        "description": "The reply",
                        "content": {"application/json": {}, "text/event-stream": {}},
                    },
                    **_described(_ERRORS),
                },
            }
        }
        for endpoint in ENDPOINTS
    }
    for path, (summary, answers) in _LOOKED_AT.items():
        responses = _described({**answers, "401": _ERRORS["401"], "403": _ERRORS["403"]})
        named = {"parameters": [_NAMED]} if "{model}" in path else {}
        paths[path] = {"get": {"summary": summary, **named, "responses": responses}}
    return {
        "openapi": "3.1.0",
        "info": {"title": f"flashmoe: {model}", "version": __version__},
        "paths": paths,
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"key": []}],
    }


def _described(answers: dict[str, str]) -> dict[str, Any]:
    return {
        status: {"description": text, "content": {"application/json": {}}}
        for status, text in answers.items()
    }
