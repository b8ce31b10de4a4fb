"""One part of a store that was spread over several directories: what it is, and its files.

Owns ``part.json``, the names and headers of a part's files, and which records each holds. Which
parts make up a store is ``sources``' business, writing them ``spread``'s.

Invariant: the part alone decides where in its files a record lies, so that whoever writes and
whoever reads it cannot disagree. Does no I/O.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from flashmoe.errors import StoreError
from flashmoe.store.layout import RecordLayout, records_header
from flashmoe.store.manifest import LayerEntry, seal

PART = "part.json"
SPREAD_JOURNAL = "spread.journal"
"""What part.json is called until the part is complete."""

PART_LIMIT_BYTES = 1 << 16
MAX_PARTS = 32
_KINDS = ("stripe", "mirror")


@dataclass(frozen=True)
class Part:
    """Part ``index`` of ``parts`` of the store whose manifest has the checksum ``store``.

    A stripe has the experts e with ``e % parts == index`` of every layer, a mirror has all.
    """

    store: str
    kind: str
    index: int
    parts: int

    def to_json(self) -> str:
        """The text of part.json, sealed like a manifest."""
        document = {"format": "flashmoe part", "version": 1, **vars(self)}
        return json.dumps({**document, "checksum": seal(document)}, indent=1) + "\n"

    @staticmethod
    def from_json(text: str, origin: str) -> Part:
        """Read a part.json; ``origin`` names it in errors.

        Raises:
            StoreError: not one, of another version, or changed since it was written.
        """
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as bad:
            raise _malformed(origin, str(bad)) from bad
        if not isinstance(document, dict) or document.get("format") != "flashmoe part":
            raise _malformed(origin, "it is not that of a part of a store")
        if document.get("version") != 1:
            raise _malformed(origin, f"its version is {document.get('version')!r}, not 1")
        given: list[Any] = [document.get(key) for key in ("store", "kind", "index", "parts")]
        part = Part(*given)
        if not part._is_sound():
            raise _malformed(origin, "store, kind, index and parts do not fit")
        if part.to_json() != text:
            raise _malformed(origin, "it does not match its own checksum")
        return part

    def _is_sound(self) -> bool:
        numbers = type(self.index) is int and type(self.parts) is int
        return (
            isinstance(self.store, str)
            and self.kind in _KINDS
            and numbers
            and 0 <= self.index < self.parts <= MAX_PARTS
        )

    def __str__(self) -> str:
        return f"{self.kind} {self.index} of {self.parts}"

    def source(self, directory: Path, entry: LayerEntry) -> Source:
        """This part's file of a layer."""
        if self.kind == "mirror":
            return whole(directory, entry)
        stem, end = entry.file.rsplit(".", 1)
        name = f"{stem}.{self.index}of{self.parts}.{end}"
        return Source(directory, name, entry, self.index, self.parts)


@dataclass(frozen=True)
class Source:
    """A file that holds the experts ``first``, ``first + step``, … of one layer."""

    directory: Path
    name: str
    entry: LayerEntry
    first: int
    step: int

    @property
    def path(self) -> Path:
        """The file."""
        return self.directory / self.name

    @property
    def experts(self) -> range:
        """Whose records it holds, in order."""
        return range(self.first, len(self.entry.checksums), self.step)

    @property
    def header(self) -> bytes:
        """What its first bytes must be."""
        return records_header(self.entry.layout, self.experts)

    @property
    def data_offset(self) -> int:
        """Where its first record begins."""
        if self.step == 1:
            return self.entry.data_offset
        return _header_bytes(self.entry.layout, self.experts)

    def offset(self, expert: int) -> int:
        """Byte offset of the record of one of its experts."""
        return self.data_offset + expert // self.step * self.entry.layout.record_bytes

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return self.data_offset + len(self.experts) * self.entry.layout.record_bytes


def whole(directory: Path, entry: LayerEntry) -> Source:
    """The layer file of a store, or a copy of it."""
    return Source(directory, entry.file, entry, 0, 1)


@lru_cache(maxsize=64)  # layers of one layout have headers of one length: do not write each
def _header_bytes(layout: RecordLayout, experts: range) -> int:
    return len(records_header(layout, experts))


def _malformed(origin: str, detail: str) -> StoreError:
    return StoreError(
        f"{origin} is malformed: {detail}; remove its directory and run `flashmoe spread` again"
    )
