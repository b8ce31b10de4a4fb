"""What was read from each drive of a store that lies on several, as JSON and as lines.

Owns the wording; the numbers are :class:`flashmoe.stream.drives.Drive`'s, counted since the
engine was opened or its cache emptied.
"""

from __future__ import annotations

from typing import Any

from flashmoe.engine import Engine
from flashmoe.stream.units import format_bytes


def drives_of(engine: Engine) -> list[dict[str, Any]]:
    """What was read from each drive, with the directories that lie on it."""
    return [
        {**vars(drive), "directories": [str(place) for place in drive.directories]}
        for drive in engine.drives
    ]


def drive_lines(drives: list[dict[str, Any]]) -> list[str]:
    """The same for a person."""
    lines = []
    for drive in drives:
        failed = f", {drive['failed']} failed" if drive["failed"] else ""
        size = format_bytes(drive["bytes_read"])
        lines.append(
            f"{' and '.join(drive['directories'])}: {drive['reads']} reads{failed}, {size}"
        )
    return lines
