"""Standard output and standard error: results on the first, everything else on the second.

Owns writing to both. Whatever is written is flushed, so that a full disk is noticed here and
named; a reader that went away (BrokenPipeError) passes through, for the host to end quietly.
A terminal gets no control characters of what a model, a store or a file says (``visible``);
files and pipes get every text as it is.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO, TextIOWrapper
from typing import TYPE_CHECKING

from flashmoe.apps.visible import visible
from flashmoe.errors import InputError

if TYPE_CHECKING:
    from rich.console import RenderableType


AGAIN_S = 0.01
"""After so long an interrupt that was lost comes once more."""


@contextmanager
def _writing(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        raise InputError(f"{name} cannot be written: {error.strerror}") from error


def take_interrupts() -> None:
    """From here on Ctrl-C is a KeyboardInterrupt, and the command ends in an orderly way.

    One that comes while a finalizer or a callback from C runs, where Python prints an exception
    and goes on, comes once more.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.unraisablehook = _interrupt_again


def _interrupt_again(lost: sys.UnraisableHookArgs) -> None:
    # While the interpreter ends no thread can start, and nothing is left to be interrupted.
    if issubclass(lost.exc_type, KeyboardInterrupt) and not sys.is_finalizing():
        # Not from here: it would be raised in this very function, and be lost as well.
        again = threading.Timer(AGAIN_S, os.kill, (os.getpid(), signal.SIGINT))
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(lost)


def write(text: str) -> None:
    """Write text to standard output."""
    with _writing("standard output"):
        sys.stdout.write(visible(text) if sys.stdout.isatty() else text)
        sys.stdout.flush()


def note(text: str) -> None:
    """Write a line to standard error."""
    print(visible(text) if sys.stderr.isatty() else text, file=sys.stderr, flush=True)


def show(*tables: RenderableType) -> None:
    """Print tables and lines on standard output."""
    from rich.console import Console

    with _writing("standard output"):
        console = Console(file=sys.stdout, highlight=False)
        for table in tables:
            console.print(table, soft_wrap=isinstance(table, str), markup=False)
        sys.stdout.flush()


def show_aside(table: RenderableType) -> None:
    """Print a table on standard error."""
    from rich.console import Console

    Console(stderr=True, highlight=False).print(table)


def end_line(text: str) -> None:
    """End a reply that does not end with a line: standard output has nothing but the reply.

    So the line break goes to standard error, unless a person reads both on one terminal.
    """
    if text and not text.endswith("\n"):
        if sys.stdout.isatty():
            write("\n")
        else:
            note("")


def open_streams() -> None:
    """Make both streams usable: closed ones swallow, characters they cannot hold become ``?``."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, _Swallow())
        elif name == "stdout" and isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")


class _Swallow(StringIO):
    """A stream that keeps nothing."""

    def write(self, text: str) -> int:
        return len(text)


class LogHandler(logging.Handler):
    """Shows what the library logs, a line a record, on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        note(f"{prefix}{record.getMessage()}")


@contextmanager
def logged() -> Iterator[None]:
    """Show the library's log while the block runs."""
    logger, handler = logging.getLogger("flashmoe"), LogHandler()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
