"""The chat on a terminal: what has been said stays above, what is still coming moves below.

Owns the picture of a conversation. Finished blocks are printed once and belong to the terminal's
scrollback; only the last one is drawn again and again, at most as high as the window, so that a
long reply neither flickers nor loses its beginning. Reasoning is a few dim lines while it comes
and one line afterwards. Invariant: nothing that a model, a tool or a file wrote reaches the
terminal but through ``visible``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.padding import Padding
from rich.segment import Segment
from rich.text import Text

from flashmoe.apps import progress
from flashmoe.apps.chat.commands import Names
from flashmoe.apps.chat.editor import Editor
from flashmoe.apps.chat.face import Listener
from flashmoe.apps.chat.markdown import Blocks, shown
from flashmoe.apps.chat.plain import speaking
from flashmoe.apps.plurals import counted
from flashmoe.apps.visible import exact, one_line, visible
from flashmoe.progress import OnProgress
from flashmoe.text.pieces import Call, Content, Piece, Reasoning

FRAME_S = 0.08
"""The last block is drawn no more often: a token may take a millisecond."""

REASONING_LINES = 6
"""Of reasoning, while it comes."""

RESULT_LINES = 8
"""Of a tool's result."""

RECALLED_LINES = 12
"""Of the last reply of a conversation that goes on: its end."""

_ROOM_LINES = 2  # of the window, that the last block leaves free


class Screen:
    """A terminal that can move its cursor."""

    def __init__(self, editor: Editor, console: Console) -> None:
        self._editor = editor
        self._console = console

    def line(self, status: str, names: Names) -> str | None:
        return self._editor.line(status, names)

    @contextmanager
    def reading(self) -> Iterator[OnProgress]:
        with progress.prompt_shown(plain=False) as told:
            yield told

    @contextmanager
    def hearing(self) -> Iterator[Listener]:
        if self._console.is_dumb_terminal:  # nothing can be drawn again
            with speaking() as spoken:
                yield spoken
            return
        drawn = Drawn(self._console)
        try:
            yield drawn
        finally:
            drawn.finish()

    def recalled(self, said: str, replied: str) -> None:
        width = max(self._console.width - 4, 10)
        self._console.print(Text(f"> {one_line(said, width)}", style="dim"), highlight=False)
        if replied.strip():
            self._console.print(Tail(shown(visible(replied)), RECALLED_LINES))

    def called(self, call: Call) -> None:
        told = one_line(f"{call.name} {call.arguments}", max(self._console.width - 4, 10))
        self._console.print(Text(f"→ {told}", style="cyan"), highlight=False)

    def answered(self, call: Call, result: str) -> None:
        lines = visible(result).splitlines()
        more = len(lines) - RESULT_LINES
        left = f"\n… {more} more {'line' if more == 1 else 'lines'}" if more > 0 else ""
        text = "\n".join(lines[:RESULT_LINES]) + left
        self._console.print(Padding(Text(text, style="dim"), (0, 0, 1, 2)), highlight=False)

    def confirm(self, command: str) -> bool:
        """Show the command as it will run, and wait for a yes to it."""
        self._console.print(Text("The model wants to run:", style="bold yellow"))
        self._console.print(Padding(Text(exact(command)), (0, 0, 0, 2)), highlight=False)
        agreed = self._editor.confirm("Run it? [y/N] ")
        if agreed:
            self._console.print(Text("running; Ctrl-C stops it", style="dim"), highlight=False)
        return agreed

    def supply(self, call: Call) -> str:
        self.note(f"{call.name} was called: type its result (Alt-Enter for a new line)")
        return self._editor.text(f"{visible(call.name)} = ")

    def show(self, *parts: RenderableType) -> None:
        for part in parts:
            self._console.print(part, highlight=False, markup=False)

    def note(self, text: str) -> None:
        self._console.print(Text(visible(text), style="yellow"), highlight=False)

    def figures(self, line: str) -> None:
        self._console.print(Text(line, style="dim"), highlight=False)
        self._console.print()


class Drawn:
    """One reply on its way to the terminal."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._live = Live(
            console=console, auto_refresh=False, transient=True, vertical_overflow="crop"
        )
        self._drawn = 0.0
        self._began: float | None = None  # the reasoning
        self._reasoning: list[str] = []
        self._reasoning_tokens = 0
        self._blocks = Blocks()
        self._printed = False
        self._withheld_tokens = 0

    def heard(self, pieces: tuple[Piece, ...], *, withheld: bool = False) -> None:
        """Show what a token has brought."""
        self._live.start()
        self._withheld_tokens = self._withheld_tokens + 1 if withheld else 0
        for piece in pieces:
            if isinstance(piece, Reasoning):
                self._think(piece.text)
            elif isinstance(piece, Content):
                self._say(self._blocks.push(visible(piece.text)))
        if self._reasoning and not pieces:
            self._reasoning_tokens += 1
        self._draw()

    def finish(self) -> None:
        """Print what is left, and leave the terminal as it was."""
        try:
            self._fold()
            self._say(self._blocks.finish())
        finally:
            self._live.update("")
            self._live.stop()

    def _think(self, text: str) -> None:
        if self._began is None:
            self._began = self._clock()
        self._reasoning.append(visible(text))
        self._reasoning_tokens += 1

    def _say(self, blocks: list[str]) -> None:
        if self._blocks.rest.strip() or any(block.strip() for block in blocks):
            self._fold()
        for block in blocks:
            if not block.strip():
                continue
            self._live.update("")  # or the block would stand there twice for a moment
            if self._printed:
                self._console.print()
            self._console.print(shown(block))
            self._printed = True

    def _fold(self) -> None:
        """One line in place of the reasoning."""
        if self._began is None:
            return
        seconds = self._clock() - self._began
        tokens = counted(self._reasoning_tokens, "token")
        told = f"∴ reasoned in {tokens}, {seconds:.1f} s (/reasoning)"
        self._reasoning, self._began = [], None
        self._live.update("")
        self._console.print(Text(told, style="dim"), highlight=False)

    def _draw(self) -> None:
        now = self._clock()
        if now - self._drawn >= FRAME_S:
            self._drawn = now
            self._live.update(self._coming(), refresh=True)

    def _coming(self) -> RenderableType:
        """What is not final yet."""
        room = max(self._console.height - _ROOM_LINES, 1)
        if self._reasoning:
            text = Text("".join(self._reasoning).strip(), style="dim italic")
            return Tail(text, min(REASONING_LINES, room))
        rest = shown(self._blocks.rest)
        if not self._withheld_tokens:
            return Tail(rest, room)
        tokens = counted(self._withheld_tokens, "token")
        written = Text(f"… a call is being written, {tokens}", style="dim")
        return Tail(Group(rest, written) if self._blocks.rest.strip() else written, room)


class Tail:
    """The last lines of something."""

    def __init__(self, whole: RenderableType, lines: int) -> None:
        self._whole = whole
        self._most = lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self._whole, options.update(height=None), pad=False)
        for number, line in enumerate(lines[-self._most :]):
            if number:
                yield Segment.line()
            yield from line
