"""What a run says to the model: a conversation's opening, its next turn, or raw text, as ids.

Owns how the command line's words become token ids; the chat template writes all markup.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from flashmoe.engine import Engine
from flashmoe.errors import InputError, TemplateError
from flashmoe.text.template import Segment

_MARK = "\ue000"  # a private character: it stands for a reply where no text can be mistaken


@dataclass(frozen=True)
class Prompt:
    """What the user said. ``text`` None goes on where a loaded session ends."""

    text: str | None
    raw: bool = False
    system: str | None = None
    tools: list[dict[str, Any]] = field(default_factory=list)
    thinking: bool = False

    def __post_init__(self) -> None:
        if self.raw and (self.system is not None or self.tools):
            raise InputError("--system and --tools need the chat template: leave out --raw")
        if self.raw and self.thinking:
            raise InputError("--think needs the chat template: leave out --raw")


def read_prompt(prompt: str | None) -> str | None:
    """The prompt, from standard input where it is ``-`` or missing and something is piped in.

    One line break at its end is not part of it. None: there is none.

    Raises:
        InputError: standard input is not UTF-8.
    """
    if prompt is not None and prompt != "-":
        return prompt
    if sys.stdin is None or (prompt is None and sys.stdin.isatty()):
        return None
    try:
        text = sys.stdin.buffer.read().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"standard input cannot be read as UTF-8: {error}") from error
    return text.removesuffix("\n")


def read_tools(path: Path) -> list[dict[str, Any]]:
    """The tools of a JSON file: a list of objects in OpenAI's shape.

    Raises:
        InputError: missing, or something else.
    """
    try:
        tools = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"the tools in {path} cannot be read: {error}") from error
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise InputError(
            f"{path} is not a JSON list of tools, such as "
            '[{"type": "function", "function": {"name": …, "parameters": …}}]'
        )
    return tools


def opening(engine: Engine, prompt: Prompt) -> list[int]:
    """The ids that begin a conversation, or of the raw text.

    Raises:
        InputError: the store has no tokenizer or no chat template.
        TemplateError: the template rejects the conversation.
    """
    assert prompt.text is not None
    if prompt.raw:
        return engine.tokenizer.encode(prompt.text)
    messages = [{"role": "user", "content": prompt.text}]
    if prompt.system is not None:
        messages.insert(0, {"role": "system", "content": prompt.system})
    if prompt.tools and not engine.template.takes_tools:
        raise InputError(
            f"the chat template of {engine.store.path} knows no tools: leave out --tools, or use "
            "a model that was trained with them"
        )
    segments = engine.template.render(
        messages, tools=prompt.tools or None, enable_thinking=prompt.thinking
    )
    return engine.tokenizer.encode_segments(segments)


def fixed_part(engine: Engine, prompt: Prompt, ids: Sequence[int]) -> int:
    """How many of an opening's ``ids`` any other opening with its system message and tools has.

    0 where there are neither: what is left is a few tokens of markup.
    """
    if prompt.system is None and not prompt.tools:
        return 0
    assert prompt.text is not None
    others = (opening(engine, replace(prompt, text=text)) for text in ("a", "b"))
    shared = zip(ids, *others, strict=False)
    return sum(1 for _ in takewhile(lambda here: len(set(here)) == 1, shared))


def next_turn(engine: Engine, prompt: Prompt, ids: Sequence[int]) -> list[int]:
    """The ids that follow a saved timeline ``ids`` with another turn; none without text.

    Raises:
        InputError: words that belong to the opening.
        TemplateError: the template does not write turns one after the other.
    """
    if prompt.system is not None or prompt.tools:
        raise InputError(
            "--system and --tools belong to the opening of a conversation: "
            "leave them out, or leave out --load"
        )
    if not prompt.text:
        return []
    if prompt.raw:
        return engine.tokenizer.encode_segments([Segment(prompt.text, markup=True)])
    turn = engine.tokenizer.encode_segments(_after_reply(engine, prompt))
    # A reply that came to its end has the token that closes it already.
    return turn[1:] if ids and turn and turn[0] == ids[-1] else turn


def _after_reply(engine: Engine, prompt: Prompt) -> list[Segment]:
    """What the template writes after a reply when the user speaks again."""
    assert prompt.text is not None
    mark = _MARK
    while mark in prompt.text:
        mark += _MARK
    messages = [
        {"role": "user", "content": "-"},
        {"role": "assistant", "content": mark},
        {"role": "user", "content": prompt.text},
    ]
    segments = engine.template.render(messages, enable_thinking=prompt.thinking)
    for index, segment in enumerate(segments):
        _, found, rest = segment.text.partition(mark)
        if found and not segment.markup:
            return [Segment(rest, markup=False), *segments[index + 1 :]]
    raise TemplateError(
        "the chat template leaves out earlier replies, so a saved conversation cannot go on "
        "through it: use --raw"
    )
