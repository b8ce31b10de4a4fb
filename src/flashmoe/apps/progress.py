"""How far a long job is: a bar on a terminal, otherwise a line now and then.

Owns the display, always on standard error; the library counts the bytes, and a prompt's tokens.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

from flashmoe.apps.terminal import note
from flashmoe.apps.visible import visible
from flashmoe.stream.units import format_bytes

if TYPE_CHECKING:
    from rich import progress as rich_progress
    from rich.console import Console

    from flashmoe.progress import Progress as PromptProgress
    from flashmoe.store.convert import Progress

INTERVAL_S = 2.0
"""Plain lines come no faster than this, so that a log file stays short."""

PATIENCE_S = 1.0
"""A prompt that takes no longer shows no bar."""

PROMPT_INTERVAL_S = 5.0
"""Plain lines of a prompt, and the first of them: replies that begin sooner stay without."""

FRAME_S = 0.1
"""The bar of a prompt is drawn no more often: layers may take a millisecond."""

Watcher: TypeAlias = Callable[["Progress"], None]
PromptWatcher: TypeAlias = Callable[["PromptProgress"], None]


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
def loading(store: str) -> Iterator[None]:
    """While the block runs a line says that the store is being loaded; nothing where standard
    error is no terminal."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(stderr=True)
    line = Text(f"loading {visible(store)} …", style="dim", no_wrap=True, overflow="ellipsis")
    if not console.is_terminal:
        yield
    elif console.is_dumb_terminal:  # nothing can be taken back
        console.print(line)
        yield
    else:
        with Live(line, console=console, auto_refresh=False, transient=True):
            yield


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


@contextmanager
def prompt_shown(*, plain: bool, what: str = "prompt") -> Iterator[PromptWatcher]:
    """Show a prompt that takes its time, until it is done or the block is left.

    A bar on a terminal; elsewhere lines, where ``plain`` says so. ``what`` names it.
    """
    bar = PromptBar(what)
    try:
        if sys.stderr.isatty():
            yield bar
        else:
            yield PromptLines(what) if plain else _say_nothing
    finally:
        bar.stop()


def _say_nothing(state: PromptProgress) -> None:
    """Standard error is for a program, or for nobody."""


class PromptBar:
    """Tokens done, rate and time left; gone when the prompt is done."""

    def __init__(self, what: str = "prompt") -> None:
        self._what = what
        self._bar: rich_progress.Progress | None = None
        self._drawn = 0.0

    def __call__(self, state: PromptProgress) -> None:
        if state.done_tokens >= state.total_tokens:
            self.stop()  # before the first word of the reply
        elif self._bar is not None:
            if state.elapsed - self._drawn >= FRAME_S:
                self._draw(state)
        elif state.elapsed >= PATIENCE_S:
            self._bar = _prompt_bar()
            self._bar.add_task(self._what, total=state.total_tokens, told="")
            self._bar.start()
            self._draw(state)

    def stop(self) -> None:
        """Take the bar away, if there is one."""
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.stop()

    def _draw(self, state: PromptProgress) -> None:
        assert self._bar is not None
        self._drawn = state.elapsed
        task = self._bar.task_ids[0]
        self._bar.update(task, completed=state.done_tokens, told=_told(state), refresh=True)


def _prompt_bar() -> rich_progress.Progress:
    from rich import progress
    from rich.console import Console

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        progress.TextColumn("{task.fields[told]}"),
        console=Console(stderr=True),
        auto_refresh=False,  # a thread that draws would take time from the prompt
        transient=True,
    )


class PromptLines:
    """A plain line every :data:`PROMPT_INTERVAL_S`."""

    def __init__(self, what: str = "prompt") -> None:
        self._what = what
        self._last = 0.0

    def __call__(self, state: PromptProgress) -> None:
        if state.elapsed - self._last >= PROMPT_INTERVAL_S and (
            state.done_tokens < state.total_tokens
        ):
            self._last = state.elapsed
            note(f"{self._what}: {_told(state)}")


class Tally:
    """A plain line every :data:`PROMPT_INTERVAL_S` of a job that is done piece by piece."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last >= PROMPT_INTERVAL_S:
            self._last = now
            note(f"{self._what}: {done} of {total}")


def _told(state: PromptProgress) -> str:
    left = state.seconds_left
    return (
        f"{int(state.done_tokens)} of {state.total_tokens} tokens, "
        f"{state.tokens_per_second:.1f} tok/s, "
        f"{'unknown time' if left is None else _clock(left)} left"
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
