"""The directory in which a store is being made: whose it is, what it has, what may go.

Owns the decision whether a conversion may write to a directory, the check of the disk, the list
of files that are finished, and the wording of a full disk.

Invariants: nothing is removed from a directory that is not a store; an old manifest goes before
the first file that it lists; what the journal calls finished is on disk, of the right size.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from flashmoe.errors import ConversionError
from flashmoe.store.checkpoint import TEXT_FILES
from flashmoe.store.conversion import Conversion
from flashmoe.store.journal import Journal
from flashmoe.store.layout import JOURNAL, MANIFEST, TRUNK, VERSION
from flashmoe.store.reader import MANIFEST_LIMIT_BYTES
from flashmoe.store.writer import PARTIAL, PartialFile, sync_directory

SMALL_FILES_BYTES = 1 << 20
"""Set aside for journal, directory and rounding to blocks."""
CHECKSUM_BYTES = 64
"""What manifest and journal spend on a record together, generously."""
PART_BYTES = 512
"""The same for a part of the trunk, which they call by its name."""
_WEIGHTS = re.compile(rf"(layer-\d+\.safetensors|{re.escape(TRUNK)})({re.escape(PARTIAL)})?")
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Workshop:
    """A claimed directory. ``finished`` maps weight files to their checksums."""

    def __init__(self, directory: Path, journal: Journal, conversion: Conversion) -> None:
        self.directory = directory
        self.sizes = conversion.file_bytes()
        self.finished: dict[str, Any] = {}
        self._journal = journal
        self._conversion = conversion
        self._texts = conversion.checkpoint.text_files

    @property
    def missing_bytes(self) -> int:
        """Bytes of weights still to be written."""
        return sum(size for name, size in self.sizes.items() if name not in self.finished)

    @contextmanager
    def writing(self, name: str) -> Iterator[PartialFile]:
        """Write a file that appears whole or not at all.

        Raises:
            ConversionError: the disk is full, or the system refuses otherwise.
        """
        try:
            with PartialFile(self.directory, name) as file:
                yield file
        except OSError as error:
            raise self._failure(name, error) from error

    def record(self, name: str, checksums: object) -> None:
        """Remember, on disk too, that a weight file is finished."""
        try:
            self._journal.append({"file": name, "checksums": checksums})
        except OSError as error:
            raise self._failure(JOURNAL, error) from error
        self.finished[name] = checksums

    def complete(self) -> None:
        """The manifest is there: the store is complete."""
        try:
            self._journal.finish()
        except OSError as error:
            raise self._failure(JOURNAL, error) from error

    def resume(self) -> None:
        """Believe the journal where the files are there and of the right size."""
        for entry in self._journal.entries:
            name, checksums = entry.get("file"), entry.get("checksums")
            if isinstance(name, str) and name in self.sizes and self._plausible(name, checksums):
                with suppress(OSError):
                    if (self.directory / name).stat().st_size == self.sizes[name]:
                        self.finished[name] = checksums

    def _plausible(self, name: str, checksums: object) -> bool:
        if name == TRUNK:
            parts = self._conversion.trunk_layout[1]
            return isinstance(checksums, dict) and checksums.keys() == parts.keys()
        return isinstance(checksums, list) and len(checksums) == self._conversion.experts

    def check_space(self) -> None:
        """See that the rest fits on the disk, counting what :meth:`clear` will free.

        Raises:
            ConversionError: it does not; names the needed and the free bytes.
        """
        parts = len(self._conversion.trunk_layout[1])
        records = len(self._conversion.layouts) * self._conversion.experts
        checksums = records * CHECKSUM_BYTES + parts * PART_BYTES
        texts = sum(_size(text) for text in self._texts.values())
        needed = self.missing_bytes + checksums + texts + SMALL_FILES_BYTES
        freed = sum(_size(path) for path in self._stale())
        free = shutil.disk_usage(self.directory).free + freed
        if needed > free:
            raise ConversionError(
                f"{self.directory} needs {needed:,} bytes and its disk has {free:,} free: make "
                f"room for {needed - free:,} more, choose another disk, or fewer --bits"
            )

    def clear(self) -> None:
        """Remove what is left of earlier runs, the manifest first."""
        (self.directory / MANIFEST).unlink(missing_ok=True)
        sync_directory(self.directory)
        for path in self._stale():
            path.unlink()

    def _stale(self) -> list[Path]:
        """Files of a store that are not finished files of this one."""
        small = {name + end for name in (*TEXT_FILES, MANIFEST) for end in ("", PARTIAL)}
        return [
            path
            for path in sorted(self.directory.iterdir())
            if path.name not in self.finished
            and (path.name in small or _WEIGHTS.fullmatch(path.name))
        ]

    def _failure(self, name: str, error: OSError) -> ConversionError:
        path = self.directory / name
        again = "then run the same command again: it goes on where it stopped"
        if error.errno in _FULL:
            missing, free = self.missing_bytes, shutil.disk_usage(self.directory).free
            return ConversionError(
                f"{path}: the disk is full; {missing:,} bytes are still to be written and "
                f"{free:,} are free: make room for {max(missing - free, 0):,} more, {again}"
            )
        if error.errno == errno.EFBIG:
            return ConversionError(
                f"{path}: the file would have {self.sizes.get(name, 0):,} bytes, more than this "
                f"process or file system allows: raise the limit (ulimit -f), {again}"
            )
        return ConversionError(f"{path} cannot be written: {error.strerror}; mend that, {again}")


@contextmanager
def claim(directory: Path, conversion: Conversion, *, force: bool) -> Iterator[Workshop]:
    """Take a directory for a conversion: a new or empty one, or to go on in, or by force.

    Raises:
        ConversionError: it holds something else, a complete store, or another conversion, too
            little room is left on its disk, or another process is at work there.
    """
    made = not directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _refuse_foreign(directory)
        journal = Journal(directory)
    except FileExistsError as error:
        raise ConversionError(f"{directory} is a file: choose another destination") from error
    except OSError as error:
        raise ConversionError(
            f"{directory} cannot be written: {error.strerror}; choose another destination"
        ) from error
    try:
        yield _prepare(Workshop(directory, journal, conversion), journal, conversion, force)
    finally:
        journal.close()
        if made:
            with suppress(OSError):  # not empty: something has been achieved
                directory.rmdir()


def _prepare(workshop: Workshop, journal: Journal, conversion: Conversion, force: bool) -> Workshop:
    header = {
        "flashmoe": VERSION,
        "options": conversion.options.describe(),
        "source": conversion.checkpoint.fingerprint(),
    }
    directory = workshop.directory
    if not force and journal.header is None and (directory / MANIFEST).exists():
        raise ConversionError(
            f"{directory} holds a complete store already: choose another destination, or use "
            "--force to replace it"
        )
    if not force and journal.header is not None:
        _refuse_other(directory, journal.header, header)
        workshop.resume()
    try:
        workshop.check_space()
        if journal.header is None or force:
            journal.begin(header)
        workshop.clear()
    except OSError as error:
        raise ConversionError(
            f"{error.filename or directory} cannot be written: {error.strerror}; mend that, or "
            "choose another destination"
        ) from error
    return workshop


def _refuse_foreign(directory: Path) -> None:
    """Refuse a directory that is neither empty nor a store, finished or not."""
    names = {path.name for path in directory.iterdir()} - {JOURNAL + PARTIAL}
    if MANIFEST in names:
        foreign = not _is_ours(directory / MANIFEST)
    elif JOURNAL in names:  # empty until begun, and before that nothing else is written
        foreign = len(names) > 1 and not (directory / JOURNAL).stat().st_size
    else:
        foreign = bool(names)
    if foreign:
        raise ConversionError(
            f"{directory} is not empty and not a store; nothing there has been touched: choose "
            "another destination"
        )


def _is_ours(manifest: Path) -> bool:
    """Whether a manifest is one of a store, of whatever version."""
    if manifest.stat().st_size > MANIFEST_LIMIT_BYTES:
        return False
    try:
        document = json.loads(manifest.read_bytes())
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and document.get("format") == "flashmoe"


def _refuse_other(
    directory: Path, found: Mapping[str, object], wanted: Mapping[str, object]
) -> None:
    if found == wanted:
        return
    was = _flags(found.get("options"))
    if found.get("source") != wanted["source"]:
        what = "of another checkpoint"
    elif found.get("options") != wanted["options"]:
        what = "with other options"
    else:
        what = f"by a flashmoe of store format {found.get('flashmoe')!r}"
    raise ConversionError(
        f"{directory} holds an unfinished conversion {what} (it was begun with {was}): give the "
        "same source and options to go on, or --force to start over"
    )


def _flags(options: object) -> str:
    if not isinstance(options, dict):
        return "unknown options"
    given = [f"--{k.replace('_', '-')} {v}" for k, v in options.items() if v is not None]
    return " ".join(given) or "no options"


def _size(text: Path | bytes) -> int:
    if isinstance(text, bytes):
        return len(text)
    try:
        return text.stat().st_size
    except OSError:
        return 0
