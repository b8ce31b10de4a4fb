"""One request that waits for the model, or is being replied to.

Owns its cancellation, from whatever thread; the reply itself is ``worker``'s.

Invariant: after :meth:`Job.cancel` nothing passes for it beyond the layer at hand.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from flashmoe.apps.serve.ask import Head, Refusal
from flashmoe.apps.serve.channel import Channel
from flashmoe.apps.serve.refusals import busy
from flashmoe.apps.serve.room import Share
from flashmoe.errors import CancelledError
from flashmoe.options import Sampling
from flashmoe.progress import Progress
from flashmoe.session import Session
from flashmoe.turn import Opening


class Job:
    """What to reply to, and where the reply goes. ``share`` has room for what the reply takes
    until it is sent; ``arrived`` is when the request came, by the monotonic clock."""

    def __init__(
        self,
        opening: Opening,
        sampling: Sampling,
        head: Head,
        channel: Channel,
        share: Share,
        *,
        source: str = "",
        arrived: float = 0.0,
        echo: bool = False,
        generates: bool = True,
    ) -> None:
        self.opening = opening
        self.sampling = sampling
        self.head = head
        self.channel = channel
        self.share = share
        self.source = source
        self.echo = echo
        self.generates = generates
        self.arrived = arrived
        self._lock = threading.Lock()
        self._session: Session | None = None
        self._cancelled: Refusal | None = None

    def cancel(self, why: Refusal) -> None:
        """End it, for the first reason that is given; from any thread."""
        with self._lock:
            if self._cancelled is None:
                self._cancelled = why
            if self._session is not None:
                self._session.cancel()

    @property
    def cancelled(self) -> Refusal | None:
        """Why it was cancelled, if it was."""
        return self._cancelled

    def check(self) -> None:
        """Raises CancelledError where it was cancelled."""
        if self._cancelled is not None:
            raise CancelledError(str(self._cancelled))

    def hold(self, size: int) -> None:
        """Take room for so many bytes of the reply. Raises Refusal where there is none."""
        if not self.share.grow(size):
            raise busy("replies that have not been read yet")

    def told(self, progress: Progress) -> None:
        """What the session calls while the prompt passes."""
        self.check()
        self.channel.progress = progress

    @contextmanager
    def running(self, session: Session) -> Iterator[None]:
        """While the block runs a cancel reaches the session."""
        with self._lock:
            self._session = session
        try:
            yield
        finally:
            with self._lock:
                self._session = None
