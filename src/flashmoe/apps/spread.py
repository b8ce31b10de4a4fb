"""``spread``: a store's experts over several drives.

Owns what is shown while it works, and the last lines.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from flashmoe.apps import progress, terminal
from flashmoe.store.spread import spread as spread_store


def spread(store: str, directories: Sequence[Path], *, mirror: bool) -> None:
    """Spread, showing progress; then a line a part, and how to use them."""
    terminal.take_interrupts()
    began = time.monotonic()
    try:
        with progress.shown("spreading") as watcher:
            parts = spread_store(store, directories, mirror=mirror, progress=watcher)
    except KeyboardInterrupt:
        terminal.note("interrupted: the same command goes on where it stopped")
        raise
    for directory, part in zip(directories, parts, strict=True):
        terminal.write(f"{directory}: {part} of {store}\n")
    flags = " ".join(f"--store-dir {directory}" for directory in directories)
    terminal.write(f"{time.monotonic() - began:.1f} s; use them with {flags}\n")
