"""The way out of one response.

Owns the headers of every response, and the patience with a client that does not read: what is
sent goes in parts, and each has so many seconds. So a connection holds little of a long reply,
and whoever leaves it unread for too long is cut off.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, TypeAlias

from flashmoe.apps.serve.limits import Gone

Scope: TypeAlias = MutableMapping[str, Any]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]

PART_BYTES = 16 << 10


class Outlet:
    """An ASGI send for a request of this ``scope``; knows the status that went out, or 0."""

    def __init__(
        self,
        send: Send,
        scope: Scope,
        headers: Sequence[tuple[bytes, bytes]],
        patience_s: float,
    ) -> None:
        self._send = send
        self._scope = scope
        self._headers = headers
        self._patience_s = patience_s
        self.status = 0

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        """Send it.

        Raises:
            Gone: the client has left it unread for too long, and was cut off.
        """
        if message["type"] == "http.response.start":
            self.status = message["status"]
            await self._sent({**message, "headers": [*message.get("headers", []), *self._headers]})
            return
        body, more = message.get("body", b""), message.get("more_body", False)
        for start in range(0, max(len(body), 1), PART_BYTES):
            part, follows = body[start : start + PART_BYTES], start + PART_BYTES < len(body)
            await self._sent({**message, "body": part, "more_body": more or follows})

    async def _sent(self, message: MutableMapping[str, Any]) -> None:
        try:
            async with asyncio.timeout(self._patience_s):
                await self._send(message)
        except TimeoutError:
            if abort := self._scope["state"].get("abort"):
                abort()  # what waits to be sent is not waited for
                await asyncio.sleep(0)  # until uvicorn knows: else it would answer in our place
            raise Gone from None
