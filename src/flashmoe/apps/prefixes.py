"""``prefix``: what a prefix cache has on disk, and clearing it.

Owns the two commands, their table and their question; what lies there, and how it is removed
while others use it, is :mod:`flashmoe.prefix.inventory`'s.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from flashmoe.apps import terminal
from flashmoe.errors import InputError

if TYPE_CHECKING:
    from flashmoe.prefix.inventory import Piece, Room

UNKNOWN = "?"
AGES_S = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}

_AGE = re.compile(r"([0-9]{1,9})([mhdw])\Z")

commands = typer.Typer(name="prefix", help="See what a prefix cache has on disk, and clear it.")

Directory: TypeAlias = Annotated[
    Path | None,
    typer.Argument(
        metavar="DIR",
        help="What `--prefix-cache` names.",
        show_default="~/.cache/flashmoe/prefixes, which chat and serve use",
    ),
]


@commands.command("list")
def list_(
    directory: Directory = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Read every file whole, and compare it with its checksum."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Show what is kept: how many beginnings, tokens of the longest, size, last use.

    A line for each store, kernels and form of keys and values. Files that cannot be used are
    named, with the reason; they do no harm, and `prefix clear --broken` removes them.
    """
    from flashmoe.prefix.inventory import survey

    path = _place(directory)
    rooms = survey(path, whole=check)
    if as_json:
        terminal.write(json.dumps(_object(path, rooms)) + "\n")
    else:
        _show(path, rooms)


@commands.command()
def clear(
    directory: Directory = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="ID", help="Only of this model: its id, or how that begins."
        ),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option("--store", metavar="STORE", help="Only of this store."),
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option(
            "--older-than",
            metavar="AGE",
            help="Only what has not been used for so long: `90m`, `12h`, `30d`, `8w`.",
        ),
    ] = None,
    broken: Annotated[
        bool,
        typer.Option("--broken", help="Only files that cannot be used; reads every one whole."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove what is kept, all of it or a part; asks first.

    Other processes may be using the directory: they go on, and pass again what has gone.
    """
    from flashmoe.prefix import inventory
    from flashmoe.stream.units import format_bytes

    path = _place(directory)
    rooms = inventory.survey(path, whole=broken)
    unwanted = _unwanted(path, rooms, model, store, older_than, broken=broken)
    chosen = [piece for room in rooms for piece in room.pieces if unwanted(room, piece)]
    if not chosen:
        terminal.write("nothing to remove\n")
        return
    what = f"{_count(chosen)}, {format_bytes(sum(piece.nbytes for piece in chosen))}"
    if not yes and not _agreed(f"remove {what}, from {path}?"):
        terminal.write("nothing was removed\n")
        return
    gone = inventory.clear(path, unwanted)
    terminal.write(f"removed {_count(gone)}, {format_bytes(sum(piece.nbytes for piece in gone))}\n")


def _place(directory: Path | None) -> Path:
    from flashmoe.apps.places import prefix_directory

    found = prefix_directory() if directory is None else directory
    if found is None:
        raise InputError("this user has no home with a prefix cache: name its directory")
    return found


def _unwanted(
    path: Path,
    rooms: Sequence[Room],
    model: str | None,
    store: str | None,
    older_than: str | None,
    *,
    broken: bool,
) -> Callable[[Room, Piece], bool]:
    """What the flags of ``clear`` choose of what was found in a directory.

    Raises:
        InputError: an age that is none, or a model or store that nothing is kept of.
    """
    before = None if older_than is None else time.time() - age_s(older_than)
    faults = {piece.path for room in rooms for piece in room.faults}
    ids = {room.path.name for room in rooms}
    if model is not None:
        ids = {name for name in ids if model and name.startswith(model)}
        if not ids:
            raise InputError(f"--model {model}: {path} has no such id; `prefix list` shows them")
    if store is not None:
        ids &= {room.path.name for room in rooms if room.about.get("store") == _whole(store)}
        if not ids:
            raise InputError(f"--store {store}: nothing is kept of it in {path}")

    def unwanted(room: Room, piece: Piece) -> bool:
        return (
            room.path.name in ids
            and (before is None or piece.used_s < before)
            and (not broken or piece.path in faults)
        )

    return unwanted


def age_s(text: str) -> float:
    """Seconds of an age as people write it.

    Raises:
        InputError: it is none.
    """
    match = _AGE.match(text.strip())
    if match is None:
        raise InputError(
            f"--older-than {text} is no age: write it as 90m (minutes), 12h, 30d or 8w (weeks)"
        )
    return int(match[1]) * AGES_S[match[2]]


def _whole(store: str) -> str:
    """A store as the cache has noted it."""
    from flashmoe.store.reader import locate

    return str(locate(store).absolute())


def _agreed(question: str) -> bool:
    """Ask a person; where nobody is there to be asked, refuse."""
    if not sys.stdin.isatty():
        raise InputError(f"{question} There is no terminal to ask on: give --yes")
    terminal.take_interrupts()
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _count(pieces: Sequence[Piece]) -> str:
    return "1 file" if len(pieces) == 1 else f"{len(pieces)} files"


def _store(room: Room) -> str:
    """The store of a room, for a person."""
    noted = room.about.get("store", UNKNOWN)
    return "demo" if noted == _whole("demo") else noted


def _show(path: Path, rooms: Sequence[Room]) -> None:
    from flashmoe.stream.units import format_bytes

    filled = [room for room in rooms if room.pieces]
    if not filled:
        terminal.write(f"nothing is kept in {path}\n")
        return
    line = "{:21}  {:>4}  {:>7}  {:>10}  {:16}  {}\n".format
    terminal.write(line("id", "kept", "longest", "size", "last used", "store"))
    for room in sorted(filled, key=lambda room: -room.used_s):
        used = f"{datetime.fromtimestamp(room.used_s):%Y-%m-%d %H:%M}"
        size = format_bytes(room.nbytes)
        row = room.path.name, len(room.states), room.tokens, size, used, _store(room)
        terminal.write(line(*row))
    terminal.write(f"{format_bytes(sum(room.nbytes for room in filled))} in {path}\n")
    for piece in [piece for room in filled for piece in room.faults]:
        terminal.write(f"broken: {piece.path}: {piece.fault}\n")


def _object(path: Path, rooms: Sequence[Room]) -> dict[str, Any]:
    return {
        "directory": str(path),
        "bytes": sum(room.nbytes for room in rooms),
        "models": [
            {
                "id": room.path.name,
                "store": room.about.get("store"),
                "kernels": room.about.get("kernels"),
                "kv": room.path.name.partition("-")[2],
                "beginnings": len(room.states),
                "longest_tokens": room.tokens,
                "files": len(room.pieces),
                "bytes": room.nbytes,
                "last_used": _moment(room.used_s) if room.pieces else None,
            }
            for room in rooms
        ],
        "broken": [
            {"path": str(piece.path), "why": piece.fault} for room in rooms for piece in room.faults
        ],
    }


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
