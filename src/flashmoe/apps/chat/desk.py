"""What commands do, and when a conversation is kept.

Owns the commands' effects on a conversation, the shelf and the tools. What was said is kept after
every turn of a named conversation, the model's state when it is left: that is larger.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from rich.table import Table
from rich.text import Text

from flashmoe.apps.chat import commands, figures, keeping
from flashmoe.apps.chat.commands import Command, Names, Said
from flashmoe.apps.chat.face import Face
from flashmoe.apps.chat.shelf import Kept, Shelf
from flashmoe.apps.chat.system import system_of
from flashmoe.apps.chat.talk import Talk
from flashmoe.apps.chat.transcript import Transcript
from flashmoe.apps.plurals import counted
from flashmoe.apps.visible import one_line, visible
from flashmoe.engine import Engine
from flashmoe.errors import FlashMoeError, InputError
from flashmoe.stream.units import format_bytes
from flashmoe.text.template import Segment
from flashmoe.turn import Turn, default_thinking, segments_of

OPENING_CHARACTERS = 60
"""Of what a kept conversation or a system prompt begins with."""


class Desk:
    """One conversation, and all that can be done with it."""

    def __init__(self, engine: Engine, talk: Talk, shelf: Shelf | None, face: Face) -> None:
        self._engine = engine
        self._talk = talk
        self._shelf = shelf
        self._face = face
        self._kept: Kept | None = None
        self._commands: dict[str, Callable[[str], None]] = {
            "help": self._help,
            "system": self._system,
            "tools": self._tools,
            "think": self._think,
            "reasoning": self._reasoning,
            "sessions": self._sessions,
            "save": self._save,
            "clear": self._clear,
            "stats": self._stats,
        }

    @property
    def greeting(self) -> str:
        """What there is, and how to learn of the rest."""
        plan = self._engine.plan
        return (
            f"{_model(self._talk.transcript.store)}: a context of "
            f"{counted(plan.context_tokens, 'token')}, within {format_bytes(plan.budget_bytes)} "
            "of memory. /help lists what can be typed."
        )

    @cached_property
    def _default_thinking(self) -> bool:
        return default_thinking(self._engine)

    @cached_property
    def _can_switch(self) -> bool:
        """Whether the template writes another prompt where reasoning is switched off."""
        asked = Turn(({"role": "user", "content": "-"},))
        on, off = (segments_of(self._engine, replace(asked, thinking=it)) for it in (True, False))
        return on != off

    @property
    def _thinks(self) -> bool:
        said = self._talk.transcript.thinking
        return self._default_thinking if said is None else said

    @property
    def status(self) -> str:
        """A word on where things stand."""
        talk = self._talk
        parts = [
            _model(talk.transcript.store),
            self._kept.name if self._kept else "not kept",
            f"{len(talk.session.ids)} of {self._engine.plan.context_tokens} tokens",
            *sorted(talk.toolbox.on),
            *(["reasoning"] if self._thinks else []),
        ]
        return visible(" · ".join(parts))

    @property
    def names(self) -> Names:
        """What commands can name."""
        sessions = self._shelf.names() if self._shelf else []
        return Names(list(self._talk.toolbox.tools), sessions)

    def take(self, line: str) -> str | None:
        """Do what a line says; returns why a reply ended, "" where there was none, None to leave.

        Raises:
            FlashMoeError: it cannot be done; the conversation is as it was.
        """
        meant = commands.read(line)
        if isinstance(meant, Command) and meant.name not in ("quit", "retry"):
            self._commands[meant.name](meant.argument)
            return ""
        if isinstance(meant, Command) and meant.name == "quit":
            return None
        try:
            if isinstance(meant, Said):
                return self._talk.say(meant.text, self._face)
            return self._talk.retry(self._face)
        finally:
            self._keep_words()

    def open(self, kept: Kept, *, fresh: Transcript) -> None:
        """Go on with a kept conversation, or begin it from ``fresh``; it is closed with the desk.

        Raises:
            SessionError: its file is damaged.
        """
        found = kept.read()
        self._kept = kept
        if found is None:
            self._talk.begin_anew(fresh)
            self._talk.session.rewind(0)
            return
        if _model(found.store) != _model(fresh.store):
            self._face.note(f"so far {_model(found.store)} has answered in {kept.name}")
        found.store = fresh.store
        found.system = found.system if fresh.system is None else fresh.system
        found.thinking = found.thinking if fresh.thinking is None else fresh.thinking
        self._talk.begin_anew(found)
        self._switch_tools(found, fresh.tools)
        why = keeping.take_out(self._talk.session, kept)
        if why is not None:
            self._face.note(f"the model's state is not used, everything is read anew: {why}")
        known = counted(len(self._talk.session.ids), "token")
        turns = counted(found.turns, "turn")
        self._recall(found)
        self._face.note(f"{kept.name} goes on: {turns}, {known} of it in the model")

    def leave(self) -> None:
        """Keep what is to be kept, and let the conversation go; a state that cannot be kept is
        told of, since everything can be read anew.

        Raises:
            SessionError: what was said cannot be written; the conversation is still at hand.
        """
        if self._kept is None:
            return
        self._kept.write(self._talk.transcript)
        kept, self._kept = self._kept, None
        with kept:
            try:
                self._put_away(kept)
            except FlashMoeError as error:
                self._face.note(f"the model's state is not kept: {error}")

    # --- commands

    def _help(self, argument: str) -> None:
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        for command, does in commands.help_rows():
            table.add_row(Text(command), Text(does))
        self._face.show(table)
        self._face.note(
            "Enter sends; Alt-Enter or a backslash at the end makes a new line; Tab completes a "
            "command; Ctrl-C stops a reply; Ctrl-D leaves. Two slashes at the beginning say a text "
            "that begins with one."
        )

    def _system(self, argument: str) -> None:
        transcript = self._talk.transcript
        if not argument:
            shown = transcript.system
            self._face.show(Text("there is no system prompt" if shown is None else visible(shown)))
            return
        if argument == "-":
            transcript.system = None
            self._face.note("the system prompt is removed")
        else:
            given = system_of(argument)
            transcript.system = given.text
            origin = f" from {given.file}" if given.file else ""
            self._face.note(f"the system prompt{origin}: {self._sketch(given.text)}")
        self._reads_anew()

    def _tools(self, argument: str) -> None:
        box = self._talk.toolbox
        if argument:
            check_tools(self._engine)
            on = box.switch(argument)
            self._talk.transcript.tools = sorted(box.on)
            self._face.note(f"{argument} is {'on' if on else 'off'}")
            self._reads_anew()
            return
        table = Table(box=None, padding=(0, 2, 0, 0))
        for column in ("tool", "", "what it does"):
            table.add_column(column)
        for name, tool in box.tools.items():
            note = f" ({tool.note})" if tool.note else ""
            row = (name, "on" if name in box.on else "off", f"{tool.description}{note}")
            table.add_row(*(Text(visible(cell)) for cell in row))
        self._face.show(table)

    def _think(self, argument: str) -> None:
        transcript = self._talk.transcript
        if argument not in ("", "on", "off"):
            raise InputError(f"/think {argument}: say on or off")
        wanted = argument == "on" if argument else not self._thinks
        if wanted and not self._engine.syntax.think_close:
            raise InputError("the chat template of this model has no mark for reasoning")
        if self._engine.syntax.think_close and not self._can_switch:
            raise InputError(
                "the chat template of this model has no switch for reasoning: the model reasons "
                "as it was trained to"
            )
        transcript.thinking = wanted
        self._face.note(f"reasoning is {'on' if wanted else 'off'}")

    def _reasoning(self, argument: str) -> None:
        told = self._talk.last_reasoning() or "the last reply came without reasoning"
        self._face.show(Text(visible(told), style="dim"))

    def _sessions(self, argument: str) -> None:
        shelf = self._needed_shelf()
        if argument:
            self._move_to(argument, shelf)
            return
        entries = shelf.entries()
        if not entries:
            self._face.note("no conversation is kept yet: /save NAME keeps this one")
            return
        table = Table(box=None, padding=(0, 2, 0, 0))
        for column in ("name", "turns", "used", "state", "begins"):
            table.add_column(column, overflow="fold")
        for entry in entries:
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.changed))
            size = format_bytes(entry.state_bytes) if entry.state_bytes else "-"
            turns, begins = "-", "damaged"
            if entry.about is not None:
                turns = str(entry.about.turns)
                begins = one_line(entry.about.opening, OPENING_CHARACTERS)
            table.add_row(*map(Text, (entry.name, turns, when, size, begins)))
        self._face.show(table, Text(f"kept in {shelf.directory}", style="dim"))

    def _save(self, argument: str) -> None:
        shelf = self._needed_shelf()
        if argument and (self._kept is None or argument != self._kept.name):
            kept = shelf.open(argument)
            try:
                if _taken(kept):
                    raise InputError(
                        f"there is a conversation {argument} already: take another name, or go on "
                        f"with it (/sessions {argument})"
                    )
                self.leave()
            except BaseException:
                kept.close()
                raise
            self._kept = kept
        if self._kept is None:
            raise InputError("this conversation has no name yet: /save NAME")
        self._kept.write(self._talk.transcript)
        self._put_away(self._kept)
        self._face.note(f"kept as {self._kept.name}")

    def _clear(self, argument: str) -> None:
        self.leave()
        self._talk.begin_anew()
        self._talk.session.rewind(0)
        self._face.note("a new conversation, not kept until /save gives it a name")

    def _stats(self, argument: str) -> None:
        self._face.show(figures.stats(self._engine, self._talk))

    # --- what they share

    def _sketch(self, text: str) -> str:
        """A text by its length and beginning."""
        ids = self._engine.tokenizer.encode_segments([Segment(text, markup=False)])
        first = one_line(text.strip().partition("\n")[0], OPENING_CHARACTERS)
        return f"{counted(len(ids), 'token')}, beginning “{first}”"

    def _recall(self, found: Transcript) -> None:
        """Show where the conversation was left."""
        if not found.turns:
            return
        self._face.recalled(*found.last_turn())
        if found.stopped:
            self._face.note("that reply was stopped")

    def _move_to(self, name: str, shelf: Shelf) -> None:
        if self._kept is not None and name == self._kept.name:
            raise InputError(f"{name} is the conversation at hand")
        if self._kept is None and self._talk.transcript.messages:
            raise InputError(
                "this conversation has no name and would be lost: /save NAME keeps it, /clear "
                "drops it"
            )
        if name not in shelf.names():
            raise InputError(f"there is no conversation {name}: /sessions lists them")
        kept = shelf.open(name)
        try:
            kept.read()  # before the one at hand is left
            self.leave()
            self.open(kept, fresh=Transcript(store=self._talk.transcript.store))
        except BaseException:
            if self._kept is not kept:
                kept.close()
            raise

    def _switch_tools(self, found: Transcript, wanted: list[str]) -> None:
        box = self._talk.toolbox
        box.on.clear()
        for name in dict.fromkeys([*found.tools, *wanted]):
            if name in box.tools:
                box.switch(name, True)
            else:
                self._face.note(f"the tool {name} is not there any more, and switched off")
        found.tools = sorted(box.on)

    def _keep_words(self) -> None:
        if self._kept is not None:
            self._kept.write(self._talk.transcript)

    def _put_away(self, kept: Kept) -> None:
        following = self._talk.turn({"role": "user", "content": "-"})
        keeping.put_away(self._engine, self._talk.session, following, kept)

    def _reads_anew(self) -> None:
        if self._talk.transcript.messages:
            self._face.note(
                "this stands before all that was said: the next turn reads the conversation anew"
            )

    def _needed_shelf(self) -> Shelf:
        if self._shelf is None:
            raise InputError("there is no place for conversations: set HOME or XDG_DATA_HOME")
        return self._shelf


def check_tools(engine: Engine) -> None:
    """Refuse tools where the model's calls cannot be told from its text.

    Raises:
        InputError: that is so.
    """
    if engine.syntax.calls is None:
        raise InputError(
            f"the chat template of {engine.store.path} writes calls in a form that is not read "
            "here: use another model for tools"
        )


def _model(store: str) -> str:
    """What a store goes by."""
    return store if store == "demo" else Path(store).resolve().name


def _taken(kept: Kept) -> bool:
    """Whether something is kept there, be it damaged."""
    try:
        return kept.read() is not None
    except FlashMoeError:
        return True
