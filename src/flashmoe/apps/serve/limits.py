"""What a request may be: how large, how deep, how slow.

Owns the bounds, and the reading of a body within them. Invariant: a body that is returned is one
JSON object of real numbers whose keys are unique, no longer and no deeper than the bounds.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from flashmoe.apps.serve.ask import BadRequest, Refusal
from flashmoe.stream.units import format_bytes

Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]


class Gone(Exception):
    """The client has closed the connection."""


@dataclass(frozen=True)
class Limits:
    """Bounds of one server. Times are in seconds.

    ``body_bytes`` and ``depth`` (levels of JSON) bound a body, ``body_s`` how long it may take to
    come; ``idle_s`` is how long a connection may take to send a request's head, or stay without a
    request; ``request_s`` bounds a whole reply, its wait included; ``write_s`` is how long a
    client may leave what was sent to it unread; ``grace_s`` is what a reply under way gets when
    the server stops. At most ``waiting`` requests wait.
    """

    body_bytes: int = 8 << 20
    depth: int = 64
    body_s: float = 30.0
    idle_s: float = 30.0
    request_s: float = 3600.0
    write_s: float = 30.0
    grace_s: float = 30.0
    waiting: int = 128


DISCARDED_BYTES = 64 << 20
"""So much of a body that is too long is still taken, and thrown away: a client that is cut off
while it sends does not read why."""


async def read_body(receive: Receive, announced: int | None, limits: Limits) -> bytes:
    """The whole body.

    Raises:
        Refusal: it is too long (413) or takes too long (408).
        Gone: the client went away.
    """
    parts: list[bytes] = []
    size, too_long = 0, announced is not None and announced > limits.body_bytes
    try:
        async with asyncio.timeout(limits.body_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Gone
                part = message.get("body", b"")
                size += len(part)
                too_long = too_long or size > limits.body_bytes
                if too_long:
                    parts.clear()
                else:
                    parts.append(part)
                if not message.get("more_body") or size > DISCARDED_BYTES:
                    break
    except TimeoutError:
        if not too_long:
            raise Refusal(
                408, f"the body has not come within {limits.body_s:g} seconds", code="timeout"
            ) from None
    if too_long:
        raise Refusal(
            413,
            f"the body is longer than {format_bytes(limits.body_bytes)}: send less of the "
            "conversation (--max-body allows more)",
            code="request_too_large",
        )
    return b"".join(parts)


def parsed(body: bytes, depth: int) -> dict[str, Any]:
    """The JSON object that a body is.

    Raises:
        BadRequest: it is something else, or nested deeper than ``depth``.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise BadRequest(f"the body is not UTF-8: {error.reason} at byte {error.start}") from None
    try:
        value = json.loads(
            text, parse_constant=_no_number, parse_float=_finite, object_pairs_hook=_unique
        )
    except RecursionError:
        raise _too_deep(depth) from None
    except ValueError as error:
        raise BadRequest(f"the body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise BadRequest("the body is not a JSON object", code="invalid_json")
    _check_depth(value, depth)
    return value


def _no_number(name: str) -> float:
    raise BadRequest(f"the body has {name}, which is no number of JSON", code="invalid_json")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise BadRequest(f"the body has {text[:40]}, which is too large", code="invalid_json")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise BadRequest(f"the body has {name[:80]!r} twice in one object", code="invalid_json")
        found[name] = value
    return found


def _too_deep(depth: int) -> BadRequest:
    return BadRequest(f"the body is nested over {depth} levels deep: flatten it")


def _check_depth(value: Any, depth: int) -> None:
    level: list[Any] = [value]
    for _ in range(depth):
        inner: list[Any] = []
        for one in level:
            inner += one.values() if isinstance(one, dict) else one
        level = [one for one in inner if isinstance(one, dict | list)]
        if not level:
            return
    raise _too_deep(depth)
