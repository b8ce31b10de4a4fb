"""Read-ahead of the disk under a file, and what the page cache holds of a file.

Owns two switches of the system. Invariant: the read-ahead that was found is put back.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

DEVICES = Path("/sys/dev/block")


def read_ahead_file(path: Path, devices: Path = DEVICES) -> Path | None:
    """The control file of the disk under ``path``; None where no block device is."""
    number = path.stat().st_dev
    device = devices / f"{os.major(number)}:{os.minor(number)}"
    if not device.exists():
        return None
    for place in (device.resolve(), device.resolve().parent):  # a partition's queue is its disk's
        if (place / "queue" / "read_ahead_kb").exists():
            return place / "queue" / "read_ahead_kb"
    return None


@contextmanager
def read_ahead(path: Path, kib: int | None, devices: Path = DEVICES) -> Iterator[int | None]:
    """Set the read-ahead under ``path`` for a while, or leave it where ``kib`` is None.

    Gives what is in force, in KiB; None where the file lies on no block device.
    """
    control = read_ahead_file(path, devices)
    if control is None:
        if kib is not None:
            sys.exit(f"error: {path} lies on no block device whose read-ahead could be set")
        yield None
        return
    found = int(control.read_text())
    if kib is None or kib == found:
        yield found
        return
    try:
        try:
            control.write_text(str(kib))
        except OSError as error:
            sys.exit(f"error: the read-ahead cannot be set ({error}): run as root")
        yield kib
    finally:
        control.write_text(str(found))


def drop_pages(paths: Iterable[Path]) -> None:
    """Nothing of these files is left in the page cache, where nobody maps them."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # pages not yet written cannot be dropped
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
