"""Where the command line keeps things: what it has learned of this machine, and what was said.

Owns the names of the places; what is in them is the library's, or a command's.
"""

from __future__ import annotations

import os
from pathlib import Path


def device_cache() -> Path | None:
    """The file of disk measurements; None where this user has no home."""
    cache = _own("XDG_CACHE_HOME", ".cache")
    return None if cache is None else cache / "devices.json"


def prefix_directory() -> Path | None:
    """The prefix cache of those commands that have one unless they are told otherwise."""
    cache = _own("XDG_CACHE_HOME", ".cache")
    return None if cache is None else cache / "prefixes"


def data_directory() -> Path | None:
    """What a user would miss: conversations, and what was typed."""
    return _own("XDG_DATA_HOME", ".local/share")


def _own(variable: str, otherwise: str) -> Path | None:
    """Our directory in the one that the variable names, or else in one below home."""
    given = Path(os.environ.get(variable, ""))
    try:
        place = given if given.is_absolute() else Path.home() / otherwise
    except RuntimeError:
        return None
    return place / "flashmoe"
