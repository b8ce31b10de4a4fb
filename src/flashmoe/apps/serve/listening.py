"""The listening socket, and the way a server ends.

Owns where it listens and what a signal does. The first SIGTERM or SIGINT: what waits and what comes
is refused, in words, and ``/health`` says 503; what is under way has ``grace_s`` and is then
cancelled; then the socket closes and the process ends with 0. A second one takes the grace away,
and one that comes after all connections are closed ends the process at once.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import uvicorn

from flashmoe.apps.serve.app import Door
from flashmoe.apps.serve.connection import protocol
from flashmoe.apps.serve.limits import Limits
from flashmoe.apps.serve.service import Service
from flashmoe.errors import InputError, reason

HEAD_BYTES = 32 << 10
"""The longest head of a request."""

SEND_BYTES = 128 << 10
"""What the kernel keeps for a client that does not read: left to itself it would take megabytes,
and a client would count as reading for as long."""

LAST_WORDS_S, HURRIED_WORDS_S = 5.0, 1.0
"""What is left, once all work has been cancelled, for its clients to be told; and that after a
second signal."""

LOOK_S = 0.05
"""How often it is looked whether the last reply is out."""

ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""Addresses that stand for all of this machine's, and one that can be opened."""


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 takes a free one.

    Raises:
        InputError: the name is unknown, or the address cannot be had.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
        listener = socket.create_server(address[:2], family=family, backlog=512)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)  # of its connections
        return listener
    except (OSError, UnicodeError, OverflowError) as error:
        raise InputError(f"cannot listen at {host} port {port}: {_mend(error, host)}") from error


def _mend(error: Exception, host: str) -> str:
    """Why an address cannot be had, and what to do."""
    if isinstance(error, socket.gaierror | UnicodeError):
        return f"no address is known for {host}; give an address of this machine as --host"
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.EADDRINUSE:
        return "another program listens there; end it, or give another --port (0 takes a free one)"
    if number == errno.EADDRNOTAVAIL:
        return (
            "that is no address of this machine; give --host 127.0.0.1 (this machine alone), "
            "0.0.0.0 (every address of it) or one of its own"
        )
    if number in (errno.EACCES, errno.EPERM):
        return (
            "the system does not allow it to this user, as for most ports below 1024; give "
            "--port 1024 or above"
        )
    return f"{reason(error)}; give another --host or --port"


def is_loopback(listener: socket.socket) -> bool:
    """Whether only this machine can reach it."""
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def is_everywhere(listener: socket.socket) -> bool:
    """Whether it listens at every address of this machine."""
    return listener.getsockname()[0] in ANYWHERE


def address_of(listener: socket.socket) -> str:
    """``http://…``, to be opened on this machine."""
    host, port = listener.getsockname()[:2]
    host = ANYWHERE.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def listen(
    listener: socket.socket,
    door: Door,
    service: Service,
    ready: Callable[[], None],
    tell: Callable[[str], None],
    proxies: Sequence[str] = (),
) -> None:
    """Serve until a signal ends it; ``ready`` is called once connections are taken, and ``tell``
    with what becomes of a signal. ``proxies`` are addresses of proxies, whose X-Forwarded-For says
    who asks."""
    Listening(door, service, ready, tell, proxies).run(sockets=[listener])


class Listening(uvicorn.Server):
    """uvicorn with our ending; :meth:`run` or :meth:`serve` takes the sockets."""

    def __init__(
        self,
        door: Door,
        service: Service,
        ready: Callable[[], None],
        tell: Callable[[str], None],
        proxies: Sequence[str] = (),
    ) -> None:
        super().__init__(_config(door, service.limits, proxies))
        self._service = service
        self._ready = ready
        self._tell = tell
        self._ending: asyncio.Task[None] | None = None

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
        if self._ending is not None:
            self.config.timeout_graceful_shutdown = int(HURRIED_WORDS_S)
            service.worker.cut_short()
            self.should_exit = True
            return
        left = service.open_replies - len(service.queue)
        service.stop()
        if left:
            replies = "1 reply" if left == 1 else f"{left} replies"
            self._tell(f"stopping: waiting for {replies} (Ctrl-C again stops at once)")
        self._ending = asyncio.get_running_loop().create_task(self._end())

    async def _end(self) -> None:
        """Let what is under way come to its end, then have the socket closed."""
        service, loop = self._service, asyncio.get_running_loop()
        until = loop.time() + service.limits.grace_s
        while service.open_replies and loop.time() < until:
            await asyncio.sleep(LOOK_S)
        service.worker.cut_short()
        self.should_exit = True


def _config(door: Door, limits: Limits, proxies: Sequence[str]) -> uvicorn.Config:
    return uvicorn.Config(
        door,
        http=protocol(limits),
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=bool(proxies),
        forwarded_allow_ips=list(proxies),
        server_header=False,
        timeout_keep_alive=max(int(limits.idle_s), 1),
        timeout_graceful_shutdown=int(LAST_WORDS_S),
        h11_max_incomplete_event_size=HEAD_BYTES,
    )
