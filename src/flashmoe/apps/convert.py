"""``convert`` and ``verify``: a checkpoint becomes a store; a store is checked.

Owns what is shown while they work, and the last line.
"""

from __future__ import annotations

import time
from pathlib import Path

from flashmoe.apps import progress, terminal
from flashmoe.errors import FlashMoeError, InputError
from flashmoe.store.convert import convert as convert_checkpoint
from flashmoe.store.reader import Store
from flashmoe.store.verify import verify as verify_store
from flashmoe.stream.units import format_bytes
from flashmoe.words import Words


def convert(
    source: Path,
    destination: Path,
    *,
    bits: int | None,
    group: int | None,
    trunk_bits: int | None,
    slices: int | None,
    force: bool,
) -> None:
    """Convert, showing progress; the last line has records, bytes and seconds."""
    terminal.take_interrupts()
    if str(destination) == "demo":
        raise InputError("demo stands for the shipped model: give the store another name")
    began = time.monotonic()
    try:
        with progress.shown("converting") as watcher:
            manifest = convert_checkpoint(
                source,
                destination,
                bits=bits,
                group=group,
                trunk_bits=trunk_bits,
                slices=slices,
                force=force,
                progress=watcher,
            )
    except KeyboardInterrupt:
        terminal.note("interrupted: the same command goes on where it stopped")
        raise
    store = Store(destination, manifest)
    _check_words(store)
    records = sum(len(layer.checksums) for layer in manifest.layers)
    nbytes = sum(store.file_sizes().values())
    terminal.write(
        f"{destination}: {records} records, {format_bytes(nbytes)}, "
        f"{time.monotonic() - began:.1f} s\n"
    )


def _check_words(store: Store) -> None:
    """Say at once what a run would refuse: the weights are whole, the words are not."""
    try:
        words = Words(store)
    except FlashMoeError as error:
        terminal.note(f"warning: the weights are converted, but no text can be used: {error}")
        return
    missing = [name for name in ("tokenizer", "template") if getattr(words, name) is None]
    if missing:
        terminal.note(
            f"warning: the checkpoint brings no usable {' and no '.join(missing)}: put its own "
            "tokenizer.json and chat_template.jinja beside its weights and convert again"
        )


def verify(store: str, against: Path | None, store_dirs: tuple[Path, ...] = ()) -> int:
    """Check a store; prints every fault, then what was checked. Returns the exit code."""
    with progress.shown("verifying") as watcher:
        report = verify_store(store, against=against, store_dirs=store_dirs, progress=watcher)
    for fault in report.faults:
        terminal.write(f"{fault.file}: {fault.name} {fault.detail}\n")
    checked = f"{report.records_checked} records, {format_bytes(report.bytes_checked)} checked"
    count = len(report.faults)
    found = f"{count or 'no'} fault{'s' if count > 1 else ''}"
    terminal.write(f"{store}: {checked}, {found}\n")
    return 1 if report.faults else 0
