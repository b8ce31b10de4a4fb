"""The listening socket, and the way a server ends.

Owns where it listens and what a signal does. The first SIGTERM or SIGINT: no connection is taken
any more, what waits is refused, what is under way has ``grace_s`` and is then cancelled, and the
process ends with 0. A second one takes the grace away, and one that comes after all connections
are closed ends the process at once.
"""

from __future__ import annotations

import asyncio
import ipaddress
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from flashmoe.apps.serve.app import Door
from flashmoe.apps.serve.connection import protocol
from flashmoe.apps.serve.limits import Limits
from flashmoe.apps.serve.service import Service
from flashmoe.errors import InputError

HEAD_BYTES = 32 << 10
"""The longest head of a request."""

LAST_WORDS_S = 5.0
"""What is left, once all work has been cancelled, for its clients to be told."""


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 takes a free one.

    Raises:
        InputError: the name is unknown, or the address cannot be had.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
        return socket.create_server(address[:2], family=family, backlog=512)
    except (OSError, UnicodeError, OverflowError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise InputError(
            f"cannot listen at {host} port {port}: {why}; give another --host or --port"
        ) from error


def is_loopback(listener: socket.socket) -> bool:
    """Whether only this machine can reach it."""
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def address_of(listener: socket.socket) -> str:
    """``http://…``, to be asked for on this machine."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def listen(
    listener: socket.socket, door: Door, service: Service, ready: Callable[[], None]
) -> None:
    """Serve until a signal ends it; ``ready`` is called once connections are taken."""
    Listening(door, service, ready).run(sockets=[listener])


class Listening(uvicorn.Server):
    """uvicorn with our ending; :meth:`run` or :meth:`serve` takes the sockets."""

    def __init__(self, door: Door, service: Service, ready: Callable[[], None]) -> None:
        super().__init__(_config(door, service.limits))
        self._service = service
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Ours: uvicorn's own raise the signal again, once all is done."""
        if threading.current_thread() is not threading.main_thread():
            yield  # signals are the host's
            return
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGINT, signal.SIGTERM)
        for number in numbers:
            loop.add_signal_handler(number, self.end)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_DFL)  # what is left is only to be written

    def end(self) -> None:
        """Begin to end, or end at once where that has begun; in the loop's thread."""
        service = self._service
        if self.should_exit:
            service.worker.cut_short()
            return
        self.should_exit = True
        service.stop()
        loop = asyncio.get_running_loop()
        loop.call_later(service.limits.grace_s, service.worker.cut_short)


def _config(door: Door, limits: Limits) -> uvicorn.Config:
    return uvicorn.Config(
        door,
        http=protocol(limits),
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=max(int(limits.idle_s), 1),
        timeout_graceful_shutdown=int(limits.grace_s + LAST_WORDS_S),
        h11_max_incomplete_event_size=HEAD_BYTES,
    )
