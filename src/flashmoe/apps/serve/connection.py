"""What uvicorn's HTTP/1.1 leaves open: connections that are too many, never ask, never read, or
ask nonsense.

Owns one timer a connection, how much is read of it at once, and the error for what is no HTTP. A
connection that sends nothing, or only half a head, is closed after ``idle_s``; one that has been
answered and does not read the answer is cut off after ``write_s``. ``scope["state"]["abort"]`` cuts
it off at once; ``scope["state"]["crowded"]`` says that it is one too many.

Invariant: there are never more connections than ``limits.connections`` and the few that are told
so, and none holds more than ``room.CONNECTION_BYTES``.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

from flashmoe.apps.serve import sse
from flashmoe.apps.serve.ask import BadRequest
from flashmoe.apps.serve.limits import Limits
from flashmoe.apps.serve.openai_errors import refused
from flashmoe.apps.serve.room import SPARE_CONNECTIONS

READ_BYTES = 32 << 10
"""So much is taken from the kernel at once; asyncio's own is 256 KiB, for each connection."""

WRITE_BYTES = 16 << 10
"""More is not written while so much waits to be sent."""


class Connection(H11Protocol):
    """A connection within ``limits``."""

    limits = Limits()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.max_size = READ_BYTES  # type: ignore[attr-defined]
        transport.set_write_buffer_limits(high=WRITE_BYTES)
        crowd = len(self.connections) - self.limits.connections
        self.app_state = {**self.app_state, "abort": transport.abort, "crowded": crowd > 0}
        self._idle: asyncio.TimerHandle | None = None
        if crowd > SPARE_CONNECTIONS:
            transport.abort()
            return
        self._wait_for_a_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        asked = self.cycle is not None and not self.cycle.response_complete
        if asked:
            self._stop_waiting()
        elif self._idle is None:
            self._wait_for_a_head()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self.loop.call_later(self.limits.write_s, self.transport.abort)

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            super().timeout_keep_alive_handler()

    def send_400_response(self, msg: str) -> None:
        error = refused(BadRequest("what was sent is no HTTP request", code="invalid_http"))
        body = sse.dumped(error).encode()
        head = (
            "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        answering = self.cycle is not None and not self.cycle.response_complete
        if not answering:  # else it would stand inside another answer
            self.transport.write(head.encode() + body)
        self.transport.close()

    def _wait_for_a_head(self) -> None:
        self._idle = self.loop.call_later(self.limits.idle_s, self._give_up)

    def _stop_waiting(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _give_up(self) -> None:
        self._idle = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()


def protocol(limits: Limits) -> type[Connection]:
    """The class of connections within these limits."""
    return type("Connection", (Connection,), {"limits": limits})
