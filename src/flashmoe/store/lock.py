"""One process at a time in a directory, for the moment of a write.

Owns the waiting. Whoever must be the only one for longer (a conversation, a conversion) refuses
at once instead, with a lock file of its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PAUSE_S = 0.005


@contextmanager
def alone(directory: Path, patience_s: float) -> Iterator[None]:
    """The only process inside, where the system and the file system have locks.

    Raises:
        OSError: the directory cannot be opened; BlockingIOError: others have not let go of it for
            ``patience_s`` seconds.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        give_up = time.monotonic() + patience_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > give_up:
                    raise BlockingIOError(
                        error.errno, "another process has locked the directory"
                    ) from error
                time.sleep(_PAUSE_S)
        yield
    finally:
        os.close(descriptor)
