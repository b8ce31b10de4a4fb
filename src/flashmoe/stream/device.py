"""Which disk a file lies on, and what was measured of disks before.

Owns the identity of a device and the small file in which measurements are kept. Measures nothing
(``rate`` does) and decides nothing (``depth`` does). A file that is missing, damaged or not ours
counts as empty and is replaced; one that cannot be written is done without.

Invariant: the file changes as a whole or not at all, so that two processes may use it at once;
what the earlier of two writers found may be lost, and is then measured again.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from flashmoe.options import MAX_IO_THREADS
from flashmoe.stream.kept import read_kept

_log = logging.getLogger(__name__)

ROOT = Path("/")
VERSION = 1
LIMIT_BYTES = 1 << 20
"""A larger file is not ours: a device takes about 100 bytes."""

MAX_DEVICES = 256
"""Kept at most, the latest: removable disks and containers bring ever new ones."""


def identity(path: Path, root: Path = ROOT) -> str:
    """The device of a file: its numbers, and model, serial and the like where the system tells.

    The numbers alone may belong to another disk after a restart. Of a partition the whole disk
    is asked, where it has no answer of its own.

    Raises:
        OSError: the file is gone.
    """
    device = path.stat().st_dev
    numbers = f"{os.major(device)}:{os.minor(device)}"
    place = root / "sys/dev/block" / numbers
    names = ("device/model", "device/serial", "serial", "wwid")
    disks = (place, place / "..")
    found = [text for disk in disks for name in names if (text := _line(disk / name))]
    return " ".join([numbers, *dict.fromkeys(found)])


def _line(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(256)
    except OSError:
        return ""
    text = raw.decode("ascii", errors="replace")
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


class Depths:
    """The depths kept in a file, by key. ``path`` None keeps nothing."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def get(self, key: str) -> int | None:
        """The depth kept for a key, or None."""
        return None if self._path is None else _read(self._path).get(key)

    def put(self, key: str, depth: int) -> None:
        """Keep a depth; where that cannot be done, it is logged and no more."""
        if self._path is None:
            return
        depths = _read(self._path)
        depths.pop(key, None)
        latest = dict(list(depths.items())[-MAX_DEVICES + 1 :])
        content = json.dumps({"version": VERSION, "depths": {**latest, key: depth}}, indent=1)
        try:
            _replace(self._path, content)
        except OSError as error:
            _log.info("what was measured of the disk is not kept: %s", error)


def _read(path: Path) -> dict[str, int]:
    try:
        return _checked(json.loads(read_kept(path, LIMIT_BYTES)))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        _log.info("%s is not used, and will be replaced: %s", path, error)
        return {}


def _checked(document: Any) -> dict[str, int]:
    if not isinstance(document, dict) or document.get("version") != VERSION:
        raise ValueError(f"it is not of version {VERSION}")
    depths = document.get("depths")
    if not isinstance(depths, dict):
        raise ValueError("it has no depths")
    for key, depth in depths.items():
        if type(depth) is not int or not 1 <= depth <= MAX_IO_THREADS:
            raise ValueError(f"the depth of {key!r:.80} is {depth!r:.80}")
    return depths


def _replace(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, partial = tempfile.mkstemp(prefix=path.name, dir=path.parent)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(content)
        os.replace(partial, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(partial)
        raise
