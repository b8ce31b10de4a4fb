"""What a request may be: how large, how deep, how slow.

Owns the bounds, and the reading of a body within them. Invariant: a body that is returned is one
JSON object of real numbers whose keys are unique, no longer and no deeper than the bounds, and
what it became takes no more memory than there is for it.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from flashmoe.apps.serve.ask import BadRequest, Refusal
from flashmoe.apps.serve.refusals import busy
from flashmoe.apps.serve.room import Share
from flashmoe.errors import InputError
from flashmoe.stream.units import format_bytes

Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]


class Gone(Exception):
    """The client has closed the connection."""


@dataclass(frozen=True)
class Limits:
    """Bounds of one server. Times are in seconds.

    At most ``connections`` are open at once; ``body_bytes`` and ``depth`` (levels of JSON) bound a
    body, ``body_s`` how long it may take to come; ``idle_s`` is how long a connection may take to
    send a request's head, or stay without a request; ``request_s`` bounds a whole request, from
    its head to the end of its reply; ``write_s`` is how long a client may leave what was sent to
    it unread; ``grace_s`` is what a reply under way gets when the server stops. At most
    ``waiting`` requests wait.

    Raises:
        InputError: a time that is none, or a body that nothing fits into.
    """

    connections: int = 256
    body_bytes: int = 4 << 20
    depth: int = 64
    body_s: float = 30.0
    idle_s: float = 30.0
    request_s: float = 3600.0
    write_s: float = 30.0
    grace_s: float = 30.0
    waiting: int = 128

    def __post_init__(self) -> None:
        for flag, seconds in (
            ("--request-timeout", self.request_s),
            ("--write-timeout", self.write_s),
            ("--idle-timeout", self.idle_s),
            ("--grace", self.grace_s),
        ):
            if not 0 <= seconds <= LONGEST_S:
                raise InputError(f"{flag} is {seconds:g}: give seconds, up to {LONGEST_S} (a week)")
        if self.body_bytes < LEAST_BODY_BYTES:
            raise InputError(
                f"--max-body is {format_bytes(self.body_bytes)}, into which no request fits: give "
                f"{format_bytes(LEAST_BODY_BYTES)} or more"
            )


LONGEST_S = 7 * 24 * 3600

LEAST_BODY_BYTES = 1 << 10

DISCARDED_BYTES = 64 << 20
"""So much of a body that is refused is still taken, and thrown away: a client that is cut off
while it sends does not read why."""


async def read_body(
    receive: Receive, announced: int | None, limits: Limits, share: Share
) -> bytearray:
    """The whole body, which ``share`` has room for.

    Raises:
        Refusal: it is too long (413), takes too long (408), or there is no room for it (503).
        Gone: the client went away.
    """
    body, size, why = bytearray(), 0, _unfit(announced or 0, limits)
    seconds = min(limits.body_s, limits.request_s)
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Gone
                part = message.get("body", b"")
                size += len(part)
                why = why or _unfit(size, limits)
                if why is None and not share.grow(len(part)):
                    why = busy("the requests that are being read")
                if why is None:
                    body += part
                else:
                    body.clear()
                if not message.get("more_body") or size > DISCARDED_BYTES:
                    break
    except TimeoutError:
        why = why or Refusal(
            408, f"the body has not come within {seconds:g} seconds", code="timeout"
        )
    if why is not None:
        raise why
    return body


def _unfit(size: int, limits: Limits) -> Refusal | None:
    if size <= limits.body_bytes:
        return None
    return Refusal(
        413,
        f"the body is longer than {format_bytes(limits.body_bytes)}: send less of the "
        "conversation (--max-body allows more)",
        code="request_too_large",
    )


# One without an end goes on to the end of the text: else each quote in it would be tried anew.
_STRINGS = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)


def parsed(body: bytes | bytearray, depth: int, most_bytes: int) -> tuple[dict[str, Any], int]:
    """The JSON object that a body is, and how much memory it takes at the most, in bytes.

    Raises:
        BadRequest: it is something else, or nested deeper than ``depth``.
        Refusal: it would take more memory than ``most_bytes`` (413).
    """
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise BadRequest(f"the body is not UTF-8: {error.reason} at byte {error.start}") from None
    size = _size(text)
    if size > most_bytes:
        raise Refusal(
            413,
            f"the body takes {format_bytes(size)} of memory once it is read, and there are "
            f"{format_bytes(most_bytes)}: send fewer values, or less text (--max-body allows more)",
            code="request_too_large",
        )
    try:
        value = json.loads(
            text, parse_constant=_no_number, parse_float=_finite, object_pairs_hook=_unique
        )
    except RecursionError:
        raise _too_deep(depth) from None
    except json.JSONDecodeError as error:
        told = f"{error.msg} at line {error.lineno}, column {error.colno}"
        if text.startswith("\ufeff"):
            told = "it begins with a byte order mark: leave that out"
        raise BadRequest(f"the body is not JSON: {told}", code="invalid_json") from None
    except ValueError:  # Python's own limit on the digits of a whole number
        raise BadRequest(
            "the body is not JSON: a whole number in it has too many digits", code="invalid_json"
        ) from None
    if not isinstance(value, dict):
        raise BadRequest("the body is not a JSON object", code="invalid_json")
    _check_depth(value, depth)
    return value, size


_OBJECT_BYTES, _VALUE_BYTES = 256, 112
"""What Python takes for a list or an object of JSON, and for any other value or name besides its
letters, with its place in what holds it."""


def _size(text: str) -> int:
    """An upper bound of what the text and the values in it take, found without making them."""
    letters = 2 * sys.getsizeof(text)  # once here, once in strings of their own
    if "\\u" in text:  # which may make four bytes of every letter, and as it grows two more
        letters += 6 * len(text)
    frame = _STRINGS.sub("", text)
    objects = frame.count("[") + frame.count("{")
    return letters + _OBJECT_BYTES * objects + _VALUE_BYTES * (frame.count(",") + frame.count(":"))


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
