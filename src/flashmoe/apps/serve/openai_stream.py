"""``stream`` and ``stream_options``, as OpenAI's APIs have them.

Owns the table and the check that the second comes with the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flashmoe.apps.serve.ask import BadRequest
from flashmoe.apps.serve.fields import Flag, Kind, Only, Record

UNPADDED: Mapping[str, Kind] = {
    "include_obfuscation": Only(False, "nothing is padded here: leave it out")
}
STREAMED: Mapping[str, Kind] = {
    "stream": Flag(),
    "stream_options": Record(
        {
            "include_usage": Flag(),
            "continuous_usage_stats": Only(
                False, "the figures come once, at the end: leave it out"
            ),
            **UNPADDED,
        }
    ),
}


def check_stream(given: Mapping[str, Any]) -> None:
    """Raises BadRequest for options of a stream where none is wanted."""
    if "stream_options" in given and not given.get("stream", False):
        raise BadRequest(
            "stream_options is for streams: set stream to true, or leave it out",
            "stream_options",
            "invalid_value",
        )


def wants_usage(given: Mapping[str, Any]) -> bool:
    """Whether a stream is to end with the figures."""
    return bool(given.get("stream_options", {}).get("include_usage", False))
