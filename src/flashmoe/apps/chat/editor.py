"""The line that a person types, or several: keys, history, completion, and questions.

Owns prompt-toolkit. Enter sends; Alt-Enter, Ctrl-J or a backslash at the end make a new line, and
what is pasted stays as it is. Ctrl-C empties the line, and where it is empty, twice leaves;
Ctrl-D there leaves at once.
"""

from __future__ import annotations

import os
import sys
import termios
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import (
    CompleteEvent,
    Completer,
    Completion,
    PathCompleter,
)
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import AnyFormattedText
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input import create_input
from prompt_toolkit.input.base import Input
from prompt_toolkit.input.typeahead import clear_typeahead
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import Output, create_output

from flashmoe.apps.chat.commands import Names, completions

_FILES_FOR = "/system "
"""The command whose argument may be a file."""


class Editor:
    """The keyboard of a terminal. ``history`` is a file for what was typed; None keeps none.

    ``tell`` shows a word beside the line.
    """

    def __init__(
        self,
        history: Path | None,
        tell: Callable[[str], None],
        keyboard: Input | None = None,
        display: Output | None = None,
    ) -> None:
        self._tell = tell
        self._names = Names()
        self._status = ""
        self._input = keyboard or create_input(sys.stdin)
        output = display or create_output(sys.stdout)
        # Questions have their own session, so that their answers are not in the history.
        self._questions: PromptSession[str] = PromptSession(input=self._input, output=output)
        self._lines: PromptSession[str] = PromptSession(
            message="> ",
            multiline=True,
            prompt_continuation="· ",
            history=_history(history),
            completer=_Commands(lambda: self._names),
            complete_while_typing=Condition(self._completes),
            key_bindings=_keys(),
            bottom_toolbar=self._toolbar,
            reserve_space_for_menu=4,
            input=self._input,
            output=output,
        )

    def line(self, status: str, names: Names) -> str | None:
        """What is typed next; None where the person leaves."""
        self._names, self._status = names, status
        interrupted = False
        while True:
            try:
                line = self._lines.prompt()
            except EOFError:
                return None
            except KeyboardInterrupt:
                if interrupted:
                    return None
                interrupted = True
                self._tell("Ctrl-C once more, or Ctrl-D, leaves")
                continue
            interrupted = False
            if line.strip():
                return line

    def confirm(self, question: str) -> bool:
        """Whether the answer, typed from now on, is yes."""
        self._forget_typed()
        try:
            return self._questions.prompt(question).strip().lower() in ("y", "yes")
        except EOFError:
            return False

    def text(self, question: str) -> str:
        """An answer of one or more lines."""
        self._forget_typed()
        try:
            return self._questions.prompt(question, multiline=True, key_bindings=_keys())
        except EOFError:
            return ""

    def _forget_typed(self) -> None:
        """What was typed before a question was not meant for it."""
        clear_typeahead(self._input)
        with suppress(OSError, termios.error):
            termios.tcflush(self._input.fileno(), termios.TCIFLUSH)

    def _completes(self) -> bool:
        return self._lines.default_buffer.text.startswith("/")

    def _toolbar(self) -> AnyFormattedText:
        return self._status


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        chosen = buffer.complete_state and buffer.complete_state.current_completion
        if chosen:
            buffer.complete_state = None  # it stands in the line already
        elif buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    @keys.add("c-j")
    def make_a_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c")
    def empty(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt, style="class:aborting")

    return keys


class _Commands(Completer):
    """Completes commands, and files where one is wanted."""

    def __init__(self, names: Callable[[], Names]) -> None:
        self._names = names
        self._paths = PathCompleter(expanduser=True)

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        before = document.text_before_cursor
        if before.startswith(_FILES_FOR):
            rest = Document(before.removeprefix(_FILES_FOR))
            yield from self._paths.get_completions(rest, complete_event)
            return
        word = before.rpartition(" ")[2]
        for name in completions(before, self._names()):
            yield Completion(name, start_position=-len(word))


def _history(path: Path | None) -> History:
    """The file, for this user alone; memory where there is none to be had."""
    if path is None:
        return InMemoryHistory()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))


@contextmanager
def silent_keys() -> Iterator[None]:
    """While the block runs what is typed does not show between what is drawn, and waits, key by
    key, for the next line that is asked for; Ctrl-C works.

    Left to itself the terminal would turn each Enter into Ctrl-J, which makes a line and sends
    none, and would keep a line that was not ended to itself.
    """
    try:
        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
    except (OSError, ValueError, AttributeError, termios.error):  # no terminal, or closed
        yield
        return
    silent = list(before)
    silent[0] &= ~termios.ICRNL
    silent[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(descriptor, termios.TCSADRAIN, silent)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
