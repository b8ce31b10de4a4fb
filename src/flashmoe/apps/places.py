"""Where the command line keeps what it has learned of this machine.

Owns the names of the files; what is in them is the library's.
"""

from __future__ import annotations

import os
from pathlib import Path


def device_cache() -> Path | None:
    """The file of disk measurements: in ``XDG_CACHE_HOME``, else in ``~/.cache``; None where
    this user has no home."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        cache = given if given.is_absolute() else Path.home() / ".cache"
    except RuntimeError:
        return None
    return cache / "flashmoe" / "devices.json"


def prefix_directory() -> Path | None:
    """Where ``serve`` keeps beginnings of conversations; None where this user has no home."""
    devices = device_cache()
    return None if devices is None else devices.parent / "prefixes"
