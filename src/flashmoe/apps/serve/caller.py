"""Who has asked: the client at the other end of one request.

Owns what comes from it: its body, and, once that is there, whether it still listens. Nothing else
takes what it sends.

Invariant: whoever waits through :meth:`Caller.wait` or :meth:`Caller.result` hears at once that
the client has gone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

from flashmoe.apps.serve.limits import Gone, Limits, Receive, read_body
from flashmoe.apps.serve.refusals import stopping
from flashmoe.apps.serve.room import Share

T = TypeVar("T")


class Caller:
    """One request's client. Made, and used, in the event loop."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._news = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._watching: asyncio.Task[None] | None = None
        self._gone = False

    async def body(self, announced: int | None, limits: Limits, share: Share) -> bytearray:
        """The whole body; from then on it is watched whether the client goes away.

        Raises:
            Refusal, Gone: as for ``limits.read_body``.
        """
        body = await read_body(self._receive, announced, limits, share)
        self._watching = asyncio.create_task(self._watch())
        return body

    def close(self) -> None:
        """Watch no longer."""
        if self._watching is not None:
            self._watching.cancel()

    def wake(self) -> None:
        """Say that there is news; from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended before the reply
            self._loop.call_soon_threadsafe(self._news.set)

    async def wait(self, patience: float | None = None) -> None:
        """Wait for news, or so many seconds.

        Raises:
            Gone: the client went away.
        """
        try:
            async with asyncio.timeout(patience):
                await self._news.wait()
        except TimeoutError:
            pass
        self._news.clear()
        self.check()

    def check(self) -> None:
        """Raises Gone where the client went away."""
        if self._gone:
            raise Gone

    async def result(self, executor: Executor, work: Callable[[], T]) -> T:
        """What the work comes to, in a thread of the executor; not begun for one who has gone.

        Raises:
            Gone: the client went away.
            Refusal: the executor has been shut down.
        """
        try:
            future = self._loop.run_in_executor(executor, work)
        except RuntimeError:
            raise stopping() from None
        future.add_done_callback(lambda _: self._news.set())
        try:
            while not future.done():
                await self.wait()
        finally:
            future.cancel()  # which does nothing to one that is done
        if future.cancelled():
            raise stopping()
        return future.result()

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        self._news.set()
