"""Reading the small files in which earlier runs have left a word for later ones.

Owns how such a file is read: within bounds, and without ever waiting. What it says, and what is
made of one that cannot be used, is its owner's (``usage``, ``device``).
"""

from __future__ import annotations

import os
import stat
from pathlib import Path


def read_kept(path: Path, most_bytes: int) -> str:
    """The text of a regular file; opening anything else, such as a pipe, must not block.

    Raises:
        OSError: it is not there, or cannot be read.
        ValueError: it is no text, no regular file or larger than ``most_bytes``.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is not a regular file")
        with open(descriptor, "rb", closefd=False) as file:
            raw = file.read(most_bytes + 1)
    finally:
        os.close(descriptor)
    if len(raw) > most_bytes:
        raise ValueError(f"it is larger than {most_bytes} bytes")
    return raw.decode()
