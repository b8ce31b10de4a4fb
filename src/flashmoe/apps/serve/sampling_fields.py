"""Parameters of sampling, as several APIs have them.

Owns their kinds and what they come to as fields of :class:`flashmoe.Sampling`; which of them an
API has is said there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flashmoe.apps.serve.fields import Either, Items, Kind, Real, Text, Whole

STOP_STRINGS = 16
"""More of them than any API allows."""

DRAWN: Mapping[str, Kind] = {
    "temperature": Real(0, 2),
    "top_p": Real(0, 1, above=True),
    "presence_penalty": Real(-2, 2),
    "frequency_penalty": Real(-2, 2),
    "seed": Whole(),
}
"""OpenAI's own."""

EXTENSIONS: Mapping[str, Kind] = {
    "top_k": Whole(-1),
    "min_p": Real(0, 1),
    "repetition_penalty": Real(0.01, 100),
}
"""What other servers of open models have as well."""

STOP = Either(
    (Text(least=1), Items(Text(least=1), most=STOP_STRINGS)), "a string or a list of strings"
)

_SAME = (*DRAWN, *EXTENSIONS)


def drawn(given: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the sampling for what is given of :data:`DRAWN` and :data:`EXTENSIONS`, and for
    ``stop``."""
    fields = {name: given[name] for name in _SAME if name in given}
    if fields.get("top_k") == -1:
        fields["top_k"] = 0  # the one and the other keep all
    if "stop" in given:
        stop = given["stop"]
        fields["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
    return fields
