"""What a line means: something to say, or a command and its argument.

Owns the commands' names, their help, and what completes a half-typed one; not what they do
(``desk``). Invariant: what begins with a slash is a command or refused, never said, since it may
be one that was mistyped; with two slashes it is said, without the first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from flashmoe.apps.visible import one_line
from flashmoe.errors import InputError

_COMMAND = re.compile(r"/(\S*)(?:\s+(.*))?", re.DOTALL)

NAMED_CHARACTERS = 40
"""Of what was taken for a command."""


@dataclass(frozen=True)
class Kind:
    """A command's argument as help shows it, and what the command does."""

    takes: str
    does: str


COMMANDS = {
    "help": Kind("", "this list"),
    "system": Kind("[TEXT | FILE | -]", "show, set or remove (-) the system prompt"),
    "tools": Kind("[NAME]", "list the tools, or switch one on or off"),
    "think": Kind("[on | off]", "let the model reason before it answers, or not"),
    "reasoning": Kind("", "show what the last reply was reasoned from"),
    "sessions": Kind("[NAME]", "list the kept conversations, or go on with one"),
    "save": Kind("[NAME]", "keep this conversation, from here on under that name"),
    "clear": Kind("", "begin a new conversation, with the same system prompt and tools"),
    "retry": Kind("", "take the last reply back and ask for another"),
    "stats": Kind("", "what the conversation has cost, and what memory it has"),
    "quit": Kind("", "keep a named conversation and leave"),
}
"""Every command, in the order of its help."""


@dataclass(frozen=True)
class Command:
    """A command that was typed; ``argument`` is empty where there was none."""

    name: str
    argument: str = ""


@dataclass(frozen=True)
class Said:
    """Something for the model."""

    text: str


def read(line: str) -> Command | Said:
    """What a line, or several of them, mean.

    Raises:
        InputError: a command that there is not.
    """
    if line.startswith("//"):
        return Said(line[1:])
    typed = line.strip()
    found = _COMMAND.fullmatch(typed)
    if found is None or typed.startswith("//"):
        return Said(line)
    name, argument = found[1], (found[2] or "").strip()
    if name not in COMMANDS:
        raise InputError(_unknown(name))
    if argument and not COMMANDS[name].takes:
        raise InputError(f"/{name} takes nothing: leave out {argument!r}")
    return Command(name, argument)


def _unknown(name: str) -> str:
    shown = one_line(name, NAMED_CHARACTERS)
    near = get_close_matches(name.lower(), COMMANDS, n=1)
    meant = f"did you mean /{near[0]}? " if near else ""
    return (
        f"there is no command /{shown}; {meant}/help lists them. To say what begins with a slash, "
        f"double the slash: //{shown}"
    )


def help_rows() -> list[tuple[str, str]]:
    """Each command with its argument, and what it does."""
    return [(f"/{name} {kind.takes}".rstrip(), kind.does) for name, kind in COMMANDS.items()]


@dataclass(frozen=True)
class Names:
    """What arguments can name at the moment."""

    tools: Sequence[str] = ()
    sessions: Sequence[str] = ()


def completions(before: str, names: Names) -> list[str]:
    """What the last word before the cursor may become; files are not among it."""
    if "\n" in before or not before.startswith("/") or before.startswith("//"):
        return []
    command, space, argument = before.partition(" ")
    if not space:
        return _beginning(command, (f"/{name}" for name in COMMANDS))
    offered: dict[str, Iterable[str]] = {
        "/tools": names.tools,
        "/sessions": names.sessions,
        "/save": names.sessions,
        "/think": ("on", "off"),
    }
    return _beginning(argument.lstrip(), offered.get(command, ()))


def _beginning(word: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(word)]
