"""Markdown as it comes: which of it is final, and how a terminal shows it.

Owns the cut between finished blocks, which are printed once, and the last one, which may still
change; and what differs from rich's own rendering. Invariant: blocks and rest together are the
text that came, and nothing of it is left out on the screen, tags included.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import ClassVar

from markdown_it import MarkdownIt
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import Heading, Markdown, MarkdownElement
from rich.text import Text

_UNDECIDED = re.compile(r"\s*\d{1,9}[.)]?\s*")
"""A line that may yet become the next item of a list, and is a paragraph until then."""


def _parser() -> MarkdownIt:
    # What looks like HTML is text here: a renderer of terminals would leave it out.
    return MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])


class Blocks:
    """Text that comes in pieces, handed on block by block."""

    def __init__(self) -> None:
        self._parser = _parser()
        self.rest = ""
        """What is not final yet: the last block."""

    def push(self, text: str) -> list[str]:
        """The blocks that are final now that ``text`` has come."""
        may_end = "\n" in text or self.rest.endswith("\n")
        self.rest += text
        return self._cut() if may_end else []

    def finish(self) -> list[str]:
        """All that is left."""
        rest, self.rest = self.rest, ""
        return [rest] if rest.strip() else []

    def _cut(self) -> list[str]:
        tokens = self._parser.parse(self.rest)
        starts = [t.map[0] for t in tokens if t.level == 0 and t.nesting >= 0 and t.map]
        lines = re.findall(r"[^\n]*\n|[^\n]+", self.rest)  # as markdown-it counts them
        if len(starts) < 2 or _UNDECIDED.fullmatch("".join(lines[starts[-1] :])):
            return []
        edges = [0, *starts[1:]]
        blocks = ["".join(lines[a:b]) for a, b in pairwise(edges)]
        self.rest = "".join(lines[edges[-1] :])
        return blocks


class _Heading(Heading):
    """On the left, in bold: a box around it would take three lines."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.text.justify = "left"
        yield self.text


class Shown(Markdown):
    """A block as the terminal shows it: an address stands behind its link, readable."""

    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **Markdown.elements,
        "heading_open": _Heading,
    }

    def __init__(self, text: str) -> None:
        # A theme of the terminal's own sixteen colours is readable on light and on dark
        super().__init__(text, code_theme="ansi_dark", hyperlinks=False)
        self.parsed = _parser().parse(text)


def shown(text: str) -> Shown | Text:
    """The block, or the text as it stands where there is no block in it (white space)."""
    return Shown(text) if text.strip() else Text(text)
