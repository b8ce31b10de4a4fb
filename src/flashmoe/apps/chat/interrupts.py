"""Ctrl-C while a reply comes: the first one ends the reply, and only a second one the waiting.

Owns the signal for as long as that lasts; at other times it is a KeyboardInterrupt.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from flashmoe.session import Session


class Stop:
    """Whether the reply is to end."""

    asked = False


@contextmanager
def stopping(session: Session) -> Iterator[Stop]:
    """While the block runs, Ctrl-C cancels the session's reply within a layer.

    A second one raises KeyboardInterrupt at once. Outside the main thread, where no signals come,
    nothing changes.
    """
    stop = Stop()

    def end(number: int, frame: FrameType | None) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True
        session.cancel()

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.signal(signal.SIGINT, end)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
