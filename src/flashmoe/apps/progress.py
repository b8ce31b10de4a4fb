"""How far a long job is: a bar on a terminal, otherwise a line now and then.

Owns the display, always on standard error; the library counts the bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

from flashmoe.apps.terminal import note
from flashmoe.stream.units import format_bytes

if TYPE_CHECKING:
    from rich.console import Console

    from flashmoe.store.convert import Progress

INTERVAL_S = 2.0
"""Plain lines come no faster than this, so that a log file stays short."""

Watcher: TypeAlias = Callable[["Progress"], None]


@contextmanager
def shown(verb: str) -> Iterator[Watcher]:
    """Show what the yielded function is told, with rate and time left."""
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        with _bar(verb, console) as watcher:
            yield watcher
    else:
        yield Lines(verb)


@contextmanager
def _bar(verb: str, console: Console) -> Iterator[Watcher]:
    from rich import progress

    bar = progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        progress.DownloadColumn(binary_units=True),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    tasks: list[progress.TaskID] = []

    def watch(state: Progress) -> None:
        if not tasks:  # what an earlier run did is not part of this run's rate
            description = f"{verb} {state.what}"
            tasks.append(
                bar.add_task(description, total=state.total_bytes, completed=state.done_bytes)
            )
        bar.update(tasks[0], completed=state.done_bytes, description=f"{verb} {state.what}")

    with bar:
        yield watch


class Lines:
    """A plain line at most every :data:`INTERVAL_S`; the first one after as long."""

    def __init__(self, verb: str) -> None:
        self._verb = verb
        self._began = self._last = time.monotonic()
        self._first_bytes: int | None = None

    def __call__(self, state: Progress) -> None:
        if self._first_bytes is None:
            self._first_bytes = state.done_bytes
        now = time.monotonic()
        if now - self._last < INTERVAL_S:
            return
        self._last = now
        rate = (state.done_bytes - self._first_bytes) / (now - self._began)
        left = _clock((state.total_bytes - state.done_bytes) / rate) if rate else "unknown time"
        note(
            f"{self._verb} {state.what}: {state.done_bytes / max(state.total_bytes, 1):.1%} of "
            f"{format_bytes(state.total_bytes)}, {rate / 1e6:.1f} MB/s, {left} left"
        )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
