"""How a bench takes its flags, and how it ends.

Owns the kinds of values that flags have, a look at the room on disks, and what becomes of a
mistake: one line on standard error and exit code 2. A traceback is a bug of the bench.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from flashmoe.errors import FlashMoeError
from flashmoe.stream.units import format_bytes

REFUSED = 2
INTERRUPTED = 130

MARGIN_BYTES = 256 << 20
"""Left free on a disk, for small files and the rest of the machine."""


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


def check_space(wanted: dict[Path, int], mend: str) -> None:
    """End with a message where a disk has no room for what is to be written under the paths."""
    disks: dict[int, tuple[Path, int]] = {}
    for path, nbytes in wanted.items():
        place = next(parent for parent in path.absolute().parents if parent.is_dir())
        device = place.stat().st_dev
        disks[device] = (place, disks.get(device, (place, 0))[1] + nbytes)
    for place, nbytes in disks.values():
        free = shutil.disk_usage(place).free - MARGIN_BYTES
        if nbytes > free:
            sys.exit(
                f"error: {format_bytes(nbytes)} are needed below {place} and "
                f"{format_bytes(max(free, 0))} are free: {mend}"
            )
