"""What ``/system`` is told: a prompt, or the file that has it.

Owns the difference between the two, and the reading. Invariant: what looks like a file and is none
is refused, never taken for the prompt: a name that is mistyped would instruct the model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from flashmoe.apps.visible import one_line
from flashmoe.errors import InputError, reason
from flashmoe.stream.kept import read_kept

SYSTEM_BYTES = 1 << 20
"""Of a system prompt's file."""

NAMED_CHARACTERS = 80
"""Of what was taken for a file."""

_FILE = re.compile(
    r"\S*|[/~].*|\.{1,2}/.*|.*\.(?:txt|text|md|prompt|rst|json|ya?ml)", re.IGNORECASE
)
"""One word, a path, or a name that ends as files of text do."""

_QUOTED = re.compile(r'"([^"]+)"', re.DOTALL)


@dataclass(frozen=True)
class System:
    """A system prompt, and the file that it comes from, if it does."""

    text: str
    file: Path | None = None


def system_of(argument: str) -> System:
    """The prompt that is meant: what stands in double quotes, else what is in the file of that
    name, else the text itself.

    Raises:
        InputError: it looks like a file, and there is none; the file is no text.
    """
    if quoted := _QUOTED.fullmatch(argument):
        return System(quoted[1])
    if "\n" in argument:
        return System(argument)
    path = Path(argument)
    try:
        path = path.expanduser()
        is_there = path.exists()
    except (OSError, ValueError, RuntimeError):  # too long for a name, none at all, or no such user
        is_there = False
    if is_there:
        return System(read_system(path), path)
    if _FILE.fullmatch(argument):
        raise InputError(
            f"there is no file {one_line(argument, NAMED_CHARACTERS)}; where that is the system "
            'prompt itself, put it in double quotes: /system "…"'
        )
    return System(argument)


def read_system(path: Path) -> str:
    """The system prompt in a file, without the line break at its end.

    Raises:
        InputError: it cannot be read as UTF-8, is too long for one, or has nothing in it.
    """
    try:
        text = read_kept(path, SYSTEM_BYTES).removesuffix("\n")
    except (OSError, ValueError) as error:
        raise InputError(f"the system prompt in {path} cannot be read: {reason(error)}") from error
    if not text.strip():
        raise InputError(f"the system prompt in {path} is empty: write one, or name another file")
    return text
