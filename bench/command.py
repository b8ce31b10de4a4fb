"""How a bench takes its flags, and how it ends.

Owns the kinds of numbers that flags are, and what becomes of a mistake: one line on standard error
and exit code 2. A traceback is a bug of the bench. Knows no bench.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from flashmoe.errors import FlashMoeError

REFUSED = 2
INTERRUPTED = 130


def run(main: Callable[[], object]) -> None:
    """Run a bench, and end the process where it cannot be run as it was asked for."""
    try:
        main()
    except SystemExit as ended:
        if isinstance(ended.code, str):  # what `sys.exit("error: …")` says
            _refuse(ended.code)
        raise
    except FlashMoeError as error:
        _refuse(f"error: {error}")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _refuse(f"error: {where}{error.strerror or error}")
    except MemoryError as error:
        _refuse(f"error: there is not enough memory for this ({error}): give smaller numbers")
    except subprocess.CalledProcessError as error:
        _refuse(f"error: a command that the bench runs ended with {error.returncode}: see above")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _refuse(message: str) -> None:
    print(" ".join(message.split()), file=sys.stderr)
    raise SystemExit(REFUSED)


def whole(low: int = 1, high: int = 1 << 40) -> Callable[[str], int]:
    """A flag that is a whole number from ``low`` to ``high``."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {low} to {high}")
        return value

    return read


def above_zero(text: str) -> float:
    """A flag that is a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value


def shares(text: str) -> list[float]:
    """A flag that is shares with commas between them, each above 0 and at most 1."""
    values = [above_zero(word) for word in text.split(",")]
    if max(values) > 1:
        raise argparse.ArgumentTypeError(f"{max(values)} is no share: 1 is all")
    return values


def folder(text: str) -> Path:
    """A flag that is a directory which is there."""
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"there is no directory {path}: make it")
    return path
